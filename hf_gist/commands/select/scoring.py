"""`hf-gist select`: score a pool with a trained adapter, or with a new LoRA after its warm-up."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel

from hf_gist.commands.flags import SelectArguments
from hf_gist.commands.preparing import Preparer
from hf_gist.commands.warmed import warmed_model
from hf_gist.commands.workspace import Workspace, open_workspace, token_columns
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.ledger import PhaseCost
from hf_gist.data.provenance import RowSource, public_name
from hf_gist.data.reading.origins import RawRows
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gist.selection import Selection
from hf_gist.offline import select
from hf_gist.training.loading import fresh_lora


def evaluation_rows(arguments: SelectArguments, preparer: Preparer) -> Dataset | None:
    """The rows of `--eval_file`, tokenised; `None` without the flag.

    Args:
        arguments (`SelectArguments`): the flags.
        preparer (`Preparer`): tokenises rows.
    """
    raw = [arguments.read(RowSource(file), "eval_file") for file in arguments.eval_file or []]
    return token_columns([preparer.usable(part.rows, "eval_file", part.where) for part in raw])


@dataclass(frozen=True)
class ScoringModel:
    """The model that scores.

    Args:
        model (`PeftModel`): with its adapter.
        checkpoints (`Sequence[AdamCheckpoint]`): what `scorer="less"` needs.
        cost (`PhaseCost`, *optional*): of the warm-up, if there was one.
    """

    model: PeftModel
    checkpoints: Sequence[AdamCheckpoint] = ()
    cost: PhaseCost | None = None


def score(arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig, rows: RawRows) -> Selection:
    """Score the pool, select from it, and save the selection with the provenance of its inputs.

    Args:
        arguments (`SelectArguments`): the flags.
        warmup (`WarmupSettings`): of the warm-up of a new LoRA.
        config (`GISTConfig`): of the selection.
        rows (`RawRows`): the raw pool.
    """
    base = arguments.load_model()
    workspace = open_workspace(arguments, rows, base)
    evaluation = evaluation_rows(arguments, workspace.preparer)
    if arguments.adapter_name_or_path is not None:
        adapter = arguments.adapter_name_or_path
        scoring = ScoringModel(arguments.with_adapter(base, adapter, workspace.tokenizer))
    elif config.strategy in UNSCORED:
        scoring = ScoringModel(fresh_lora(base, warmup, config.seed))
    else:
        warmed = warmed_model(workspace, base, warmup, config, evaluation)
        scoring = ScoringModel(warmed.model, warmed.checkpoints, warmed.cost)
    selection = _select(scoring, workspace, config, evaluation)
    manifest = selection.manifest | _inputs_of(selection, arguments, warmup, config) | workspace.preparer.facts()
    if skipped := workspace.skipped_rows:
        manifest["skipped_rows"] = skipped
    selection = dataclasses.replace(selection, manifest=manifest)
    selection.save(arguments.folder)
    return selection


def _select(scoring: ScoringModel, workspace: Workspace, config: GISTConfig, evaluation: Dataset | None) -> Selection:
    return select(
        scoring.model,
        workspace.pool,
        workspace.targets,
        config,
        data_collator=workspace.collator,
        eval_dataset=evaluation,
        output_dir=workspace.arguments.output_dir,
        checkpoints=scoring.checkpoints,
        warmup=scoring.cost,
    )


def _inputs_of(
    selection: Selection, arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig
) -> dict[str, Any]:
    """The manifest's entries on pool, targets, evaluation rows and adapter or warm-up."""
    entries = arguments.provenance(selection.manifest)
    if arguments.eval_file:
        entries["eval_file"] = [Path(file).name for file in arguments.eval_file]
    if arguments.adapter_name_or_path is not None:
        entries["adapter"] = public_name(arguments.adapter_name_or_path)
    elif config.strategy not in UNSCORED:
        entries["warmup"] = dataclasses.asdict(warmup)
    return entries
