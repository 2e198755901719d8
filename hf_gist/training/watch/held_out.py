"""Holds target rows out from the selection inside a Trainer."""

import dataclasses

from hf_gist.config.gist import GISTConfig
from hf_gist.data.holdout import draw_held_out
from hf_gist.data.rows import rows_of
from hf_gist.gist.checks import check_labels
from hf_gist.gist.inputs import HeldOut, Inputs
from hf_gist.gradients.passes import DatasetPass


def hold_out(inputs: Inputs, dataset_pass: DatasetPass, config: GISTConfig, kept: list[int] | None) -> Inputs:
    """The inputs without the target rows of `target_holdout`, which are drawn from those with a labelled token.

    Args:
        inputs (`Inputs`): with all target rows; its `leaks` are those of all of them.
        dataset_pass (`DatasetPass`): collator and loss.
        config (`GISTConfig`): share, group column and seed.
        kept (`list[int]`, *optional*): numbers of the target rows that the trainer kept; by default all.

    Raises:
        ValueError: see [`draw_held_out`].
    """
    if not config.target_holdout:
        return inputs
    targets = inputs.targets
    counts = check_labels(targets, dataset_pass.collator, dataset_pass.loss, "target_dataset", range(len(targets)))
    groups = inputs.target_columns.get(config.target_group_column or "")
    out = draw_held_out(config.target_holdout, counts.nonzero().flatten().tolist(), groups, config.seed)
    left = [row for row in range(len(targets)) if row not in set(out)]
    numbers = list(range(len(targets))) if kept is None else kept
    names = None if groups is None else [groups[row] for row in out]
    return dataclasses.replace(
        inputs,
        targets=rows_of(targets, left),
        target_columns={name: [values[row] for row in left] for name, values in inputs.target_columns.items()},
        target_positions=left,
        held_out=HeldOut(targets, out, [numbers[row] for row in out], names),
    )
