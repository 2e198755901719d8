"""What can be known to be wrong before any work starts: datasets, labels, columns, lengths."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from torch.utils.data import IterableDataset

from hf_gist.config.gist import GISTConfig
from hf_gist.data.batches import check_batch
from hf_gist.data.rows import IGNORE_INDEX, Collator, fetch_rows, read_column, row_lengths
from hf_gist.functional.budget import rows_in_budget
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gradients.lora import TrackedModule, find_tracked
from hf_gist.gradients.losses import labelled_tokens
from hf_gist.gradients.models import check_dtype, model_device, to_device
from hf_gist.gradients.modes import checkpointing, scoring_mode
from hf_gist.gradients.vectors import per_sample_backward


ROWS_LOOKED_AT = 256
"""Rows of the pool that are collated before the work starts, to see that they carry labels."""


def scalar_columns(dataset: Any) -> dict[str, list[Any]]:
    """The columns of a target set that could name groups: strings, integers and booleans."""
    if isinstance(dataset, Dataset):
        rows = dataset.with_format(None)
        columns = {name: list(rows[name]) for name in rows.column_names}
    else:
        rows = [dataset[i] for i in range(len(dataset))]
        shared = set.intersection(*(set(row) for row in rows)) if rows and isinstance(rows[0], dict) else set()
        columns = {name: [row[name] for row in rows] for name in rows[0] if name in shared} if shared else {}
    return {name: values for name, values in columns.items() if _names_groups(values)}


def _names_groups(values: list[Any]) -> bool:
    kinds = {type(value) for value in values if value is not None}
    return len(kinds) == 1 and issubclass(kinds.pop(), str | int)


def group_columns(targets: Any, config: GISTConfig) -> dict[str, list[Any]]:
    """The columns of the target set that could name groups, the configured one among them, as text.

    Raises:
        ValueError: if the configured column is missing.
    """
    columns, group = scalar_columns(targets), config.target_group_column
    if group is not None:
        columns[group] = [str(value) for value in read_column(targets, group, "target_group_column")]
    return columns


def check_dataset(dataset: Any, argument: str) -> None:
    """Refuse datasets without a length, and empty ones.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(dataset, dict):
        raise ValueError(f"`{argument}` is a dict of splits ({', '.join(map(str, dataset))}); pass one of them.")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{argument}` is a streaming dataset ({type(dataset).__name__}); GIST needs row numbers. Load it as a map "
            "style dataset (`streaming=False`), or `Dataset.from_generator`."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{argument}` is empty.")


def check_labels(dataset: Any, collator: Collator, model: nn.Module, argument: str, rows: Sequence[int]) -> None:
    """Collate some rows and see that they can be told apart and that at least one has a labelled token.

    Raises:
        ValueError: naming the argument, if not.
    """
    total = 0
    for start in range(0, len(rows), 16):
        chunk = rows[start : start + 16]
        batch = collator(fetch_rows(dataset, chunk))
        check_batch(batch, len(chunk), f"`{argument}`")
        total += int(labelled_tokens(model, batch).sum())
    if total == 0:
        raise ValueError(
            f"No labelled token in {len(rows)} rows of `{argument}`: every label is {IGNORE_INDEX}, so there is no loss "
            "and no gradient. Check the prompt mask and the truncation length."
        )


def check_distribution(kind: DistributedType, config: GISTConfig) -> None:
    """Check that DeepSpeed, which trains its own copies of weights and moments, would not silently undo a setting.

    Raises:
        ValueError: naming the setting.
    """
    if kind != DistributedType.DEEPSPEED:
        return
    unsupported = {"after_selection": config.after_selection == "restart", "scorer": scorer_of(config).needs_adam}
    for name in (name for name, used in unsupported.items() if used):
        raise ValueError(
            f"`{name}={getattr(config, name)!r}` does not work under DeepSpeed, which trains its own copies of the "
            "weights and their moments; leave it at its default, or use DDP or FSDP2."
        )


def check_inputs(model: nn.Module, pool: Any, targets: Any, config: GISTConfig, collator: Collator) -> None:
    """Everything that can be known to be wrong before any work starts.

    Raises:
        ValueError: naming the argument, its value and what to do.
    """
    check_dataset(pool, "train_dataset")
    check_dataset(targets, "target_dataset")
    wanted = rows_in_budget(config.budget, config.budget_unit, len(pool))
    if config.prefilter is not None and wanted is not None and isinstance(config.budget, int):
        passed, wanted = int(config.prefilter * len(pool)), int(wanted * config.sample_from_top)
        if passed < wanted:
            raise ValueError(
                f"`prefilter={config.prefilter}` passes on {passed} of {len(pool)} rows, and `budget` with "
                f"`sample_from_top` asks for {wanted}; raise `prefilter`."
            )
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "The parameters are partitioned by DeepSpeed ZeRO-3, which hides them from scoring; use FSDP2."
        )
    tracked = find_tracked(model)
    check_dtype(model, config.scoring_dtype)
    check_labels(targets, collator, model, "target_dataset", range(len(targets)))
    generator = torch.Generator().manual_seed(config.seed)
    check_labels(
        pool,
        collator,
        model,
        "train_dataset",
        torch.randperm(len(pool), generator=generator)[:ROWS_LOOKED_AT].tolist(),
    )
    for dataset, argument in ((targets, "target_dataset"), (pool, "train_dataset")):
        _try_longest(model, dataset, collator, tracked, argument, config.scoring_tokens_per_batch)


def _try_longest(
    model: nn.Module,
    dataset: Any,
    collator: Collator,
    tracked: Sequence[TrackedModule],
    argument: str,
    tokens_per_batch: int,
) -> None:
    """One backward on the longest row, or two if a batch holds them: what cannot work should fail now, not later.

    Raises:
        ValueError: naming the argument.
    """
    lengths = row_lengths(dataset)
    together = 1 if lengths is None or 2 * lengths.max() > tokens_per_batch else 2
    rows = [0] if lengths is None else np.argsort(-lengths, kind="stable")[:together].tolist()
    batch = to_device(collator(fetch_rows(dataset, rows)), model_device(model))
    if not labelled_tokens(model, batch).any():
        return
    try:
        # what scoring falls back to where memory is short
        with scoring_mode(model), checkpointing(model):
            per_sample_backward(model, batch, tracked, lambda name, gradient: None)
    except IndexError as error:
        raise ValueError(
            f"The longest row of `{argument}` has {0 if lengths is None else lengths.max()} tokens, and the model fails on it ({error}). Cut rows to "
            "the model's number of positions."
        ) from error
