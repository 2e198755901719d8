"""`select()`: GIST without a Trainer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.ledger import PhaseCost
from hf_gist.data.leaks import find_leaks
from hf_gist.data.rows import Collator
from hf_gist.gist.checks import check_only_selects, warn_selects_once
from hf_gist.gist.inputs import prepare
from hf_gist.gist.scorers.base import AdamCheckpoint
from hf_gist.gist.scorers.table import vectors_per_checkpoint
from hf_gist.gist.scoring import measure_and_choose
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import PARTIAL, PartialScores
from hf_gist.gradients.passes import DatasetPass
from hf_gist.report import keep_examples


def select(
    model: nn.Module,
    candidates: Any,
    targets: Any,
    config: GISTConfig | None = None,
    *,
    data_collator: Collator,
    output_dir: str | Path | None = None,
    progress: bool = True,
    eval_dataset: Any = None,
    checkpoints: Sequence[AdamCheckpoint] = (),
    warmup: PhaseCost | None = None,
) -> Selection:
    """Select the candidates whose LoRA gradients align best with those of the targets (paper GIST).

    The adapter should have seen a short warm-up first: while LoRA's `B` is zero, the gradients of `A` are zero too.

    Args:
        model (`PeftModel`): a model with trainable LoRA layers; it is not changed.
        candidates: the pool, `N` tokenised rows (a `datasets.Dataset` or any sized dataset of dicts).
        targets: `M` tokenised rows that are examples of what the model should learn.
        config (`GISTConfig`, *optional*): what to select and how.
        data_collator (`Callable`): collates rows into a padded batch with `labels`; use the one used for training.
        output_dir (`str` or `Path`, *optional*): where to write the artifacts. Interrupted scoring resumes
            after the last batch saved there.
        progress (`bool`, defaults to `True`): show progress bars.
        eval_dataset (*optional*): tokenised evaluation rows; those that are also candidates are not selected.
        checkpoints (`Sequence[AdamCheckpoint]`): for the baseline `scorer="less"`, see
            [`hf_gist.gist.scorers.less.adam_checkpoint`].
        warmup (`PhaseCost`, *optional*): what the warm-up of the adapter cost: part of the ledger and of
            `scoring_cost`. By default the adapter counts as given.

    Returns:
        `Selection`: the selected rows, scores and measurements.

    Raises:
        ValueError: for invalid inputs, before any gradient is computed.

    Warns:
        NoEffectWarning: with `reselect_every`, because rows are selected once.
    """
    config = config or GISTConfig()
    check_only_selects(config)
    warn_selects_once(config, "`select()` and `hf-gist select`")
    inputs = prepare(model, candidates, targets, config, data_collator)
    tokenizer = getattr(data_collator, "tokenizer", None)
    leaks = find_leaks(inputs.pool, inputs.targets, eval_dataset, tokenizer)
    inputs = dataclasses.replace(inputs, leaks=leaks, checkpoints=tuple(checkpoints))
    if config.strategy not in UNSCORED:
        vectors_per_checkpoint(model, config, checkpoints)  # raises early if something is missing
    dataset_pass = DatasetPass(model, data_collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress)
    partial = PartialScores(Path(output_dir) / PARTIAL, config.save_every) if output_dir is not None else None
    selection = measure_and_choose(dataset_pass, inputs, config, partial, warmup)
    if output_dir is not None and partial is not None:
        if PartialState().is_main_process:
            selection.save(output_dir)
            keep_examples(output_dir, selection, inputs.pool, inputs.targets, tokenizer=tokenizer)
        partial.remove()
    return selection
