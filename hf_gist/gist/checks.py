"""Input checks before scoring: datasets, labels, columns, lengths."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.utils.data import IterableDataset

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.data.rows import IGNORE_INDEX, Collator, fetch_rows, read_names, row_lengths
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gradients.lora import TrackedModule, find_tracked
from hf_gist.gradients.models import check_device, check_dtype, model_device, to_device, unwrapped
from hf_gist.gradients.modes import checkpointing, scoring_mode, scoring_precision
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.row_losses.base import RowLoss
from hf_gist.gradients.vectors import per_sample_backward


ROWS_LOOKED_AT = 256
"""Number of pool rows that are collated before scoring, to check that they have labels."""


def scalar_columns(dataset: Any) -> dict[str, list[Any]]:
    """The columns of a target set that can be group names: strings, integers and booleans."""
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
    """The columns of the target set that can be group names, including the configured one (as text).

    Raises:
        ValueError: if the configured column is missing, or a row has no value there.
    """
    columns = scalar_columns(targets)
    group = config.target_group_column
    if group is not None:
        columns[group] = read_names(targets, group, "target_group_column")
    return columns


def check_dataset(dataset: Any, argument: str) -> None:
    """Check that a dataset has a length and at least one row.

    Raises:
        ValueError: naming the argument, for a path, a dict of splits, a stream or an empty dataset.
    """
    if isinstance(dataset, (str, os.PathLike)):
        raise ValueError(
            f"`{argument}` is the text {str(dataset)!r}, not a dataset. Load the file first: "
            f"`load_dataset('json', data_files={str(dataset)!r}, split='train')`."
        )
    if isinstance(dataset, dict):
        raise ValueError(f"`{argument}` is a dict of splits ({', '.join(map(str, dataset))}); pass one of them.")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{argument}` is a streaming dataset ({type(dataset).__name__}), without a length and row numbers. Load it as "
            "a map-style dataset (`streaming=False`), or use `Dataset.from_generator`."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{argument}` is empty.")


def check_labels(dataset: Any, collator: Collator, loss: RowLoss, argument: str, rows: Sequence[int]) -> torch.Tensor:
    """Collate some rows; check that each row is one sample and that at least one has a labelled token.

    Returns:
        `Tensor`: labelled tokens of each row `[len(rows)]`.

    Raises:
        ValueError: naming the argument.
    """
    counts = []
    for start in range(0, len(rows), 16):
        chunk = rows[start : start + 16]
        batch = collator(fetch_rows(dataset, chunk))
        loss.check(batch, len(chunk), f"`{argument}`")
        counts.append(loss.counts(batch).cpu())
    found = torch.cat(counts)
    if not found.any():
        raise ValueError(
            f"No labelled token in {len(rows)} rows of `{argument}`: every label is {IGNORE_INDEX}, so there is no "
            "loss and no gradient. Check the prompt mask and the truncation length."
        )
    return found


def check_groups(usable: torch.Tensor, groups: Sequence[str] | None) -> None:
    """Check that every named target group has a usable row.

    Args:
        usable (`Tensor`): `[M]` bool, the target rows with a labelled token and a finite gradient.
        groups (`Sequence[str]`, *optional*): name of each row's group `[M]`.

    Raises:
        ValueError: naming the groups without a usable row.
    """
    rows_of = Counter(groups or ())
    lost = rows_of.keys() - {name for name, good in zip(groups or (), usable.tolist(), strict=False) if good}
    if lost:
        named = ", ".join(f"{name!r} ({rows_of[name]:,} rows)" for name in sorted(lost))
        raise ValueError(
            f"Target groups without a usable row: {named}. No row of them has a labelled token and a finite gradient, so "
            "nothing could be selected for them. Check the prompt mask and the truncation length, or remove the groups."
        )


def check_selectable(m: Measurements, eligible: torch.Tensor) -> None:
    """Check that there is a row to select.

    Args:
        m (`Measurements`): of the pool.
        eligible (`Tensor`): `[N]` bool, the rows that may be selected.

    Raises:
        ValueError: with the reasons.
    """
    if eligible.any():
        return
    leaked = 0 if m.leaked is None else int(m.leaked.sum())
    raise ValueError(
        f"No row of the pool can be selected: of {len(eligible):,} rows {int((m.label_tokens == 0).sum()):,} have no "
        f"labelled token, {len(m.not_finite):,} have a gradient that is not finite, and {leaked:,} are also target or "
        "evaluation rows."
    )


def warn_selects_once(config: GISTConfig, where: str) -> None:
    """Warn that rows are not chosen again where no training with the callback follows.

    Args:
        config (`GISTConfig`): the configuration.
        where (`str`): what selects, for the message.
    """
    if config.reselect_every is not None:
        warnings.warn(
            f"`reselect_every={config.reselect_every}` has no effect in {where}, which selects once: rows are chosen again "
            "only by GISTDataSelectorCallback, while it trains.",
            NoEffectWarning,
            stacklevel=3,
        )


def check_distribution(kind: DistributedType, config: GISTConfig) -> None:
    """Check that no setting would silently have no effect under DeepSpeed, which trains copies of weights and moments.

    Raises:
        ValueError: naming the setting.
    """
    if kind != DistributedType.DEEPSPEED:
        return
    unsupported = {
        "after_selection": config.after_selection == "restart",
        "scorer": scorer_of(config).needs_adam,
        "stop_when_target_rises": config.stop_when_target_rises,
    }
    for name in (name for name, used in unsupported.items() if used):
        raise ValueError(
            f"`{name}={getattr(config, name)!r}` does not work under DeepSpeed, which trains its own copies of the "
            "weights and their moments; leave it at its default, or use DDP or FSDP2."
        )


def check_only_selects(config: GISTConfig) -> None:
    """Check that no setting is for the training that follows, where none follows.

    Raises:
        ValueError: naming the setting.
    """
    for name in ("target_holdout", "stop_when_target_rises"):
        if value := getattr(config, name):
            raise ValueError(
                f"`{name}={value}` is for a training with GISTDataSelectorCallback, which measures the loss of the target "
                "rows; here it would have no effect. Leave it out."
            )


def check_inputs(
    dataset_pass: DatasetPass, pool: Any, targets: Any, config: GISTConfig, groups: Sequence[str] | None = None
) -> None:
    """Check all inputs before any work starts; `groups` are the names of the targets' groups, if they have names.

    Raises:
        ValueError: naming the argument, its value and how to fix it.
    """
    model = dataset_pass.model
    check_dataset(pool, "train_dataset")
    check_dataset(targets, "target_dataset")
    # raises if the budget selects nothing or more than the pool
    rows_in_budget(config.budget, config.budget_unit, len(pool))
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError("The parameters are partitioned by DeepSpeed ZeRO-3, so scoring cannot read them; use FSDP2.")
    check_device(model)
    tracked = find_tracked(model)
    check_dtype(model, config.scoring_dtype)
    collator = dataset_pass.collator
    loss = dataset_pass.loss
    labelled = check_labels(targets, collator, loss, "target_dataset", range(len(targets)))
    if config.strategy not in UNSCORED:
        check_groups(labelled > 0, groups)
    generator = torch.Generator().manual_seed(config.seed)
    some = torch.randperm(len(pool), generator=generator)[:ROWS_LOOKED_AT].tolist()
    check_labels(pool, collator, loss, "train_dataset", some)
    for dataset, argument in ((targets, "target_dataset"), (pool, "train_dataset")):
        _try_longest(dataset_pass, dataset, tracked, argument)


def _try_longest(dataset_pass: DatasetPass, dataset: Any, tracked: Sequence[TrackedModule], argument: str) -> None:
    """One backward pass on the longest row, or the two longest if they fit in a batch, so that failures occur early.

    Raises:
        ValueError: naming the argument.
    """
    lengths = row_lengths(dataset)
    together = 1 if lengths is None or 2 * lengths.max() > dataset_pass.tokens_per_batch else 2
    rows = [0] if lengths is None else np.argsort(-lengths, kind="stable")[:together].tolist()
    batch = dataset_pass.collator(fetch_rows(dataset, rows))
    loss = dataset_pass.loss
    if not loss.counts(batch).any():
        return
    model = dataset_pass.model
    batch = to_device(loss.prepared(batch), model_device(model))
    try:
        # scoring uses checkpointing if memory runs out
        with scoring_mode(model), scoring_precision(model, dataset_pass.scoring_dtype), checkpointing(model):
            per_sample_backward(loss, batch, tracked, lambda name, gradient: None)
    except IndexError as error:
        tokens = 0 if lengths is None else int(lengths.max())
        raise ValueError(_index_error_reason(model, batch, argument, tokens, error)) from error


def _index_error_reason(model: Any, batch: dict[str, Any], argument: str, tokens: int, error: IndexError) -> str:
    """Why a model fails on the longest row, of `tokens` tokens: a token that it does not have, or too many tokens."""
    ids = batch.get("input_ids")
    base: Any = unwrapped(model)
    size = getattr(base.get_input_embeddings(), "num_embeddings", None)
    if isinstance(ids, torch.Tensor) and size is not None and int(ids.max()) >= size:
        return (
            f"A row of `{argument}` has the token id {int(ids.max())}, but the model has {size} embeddings. Tokenise the rows "
            "with the model's own tokenizer, or call `model.resize_token_embeddings(len(tokenizer))` before adding LoRA."
        )
    return (
        f"The longest row of `{argument}` has {tokens} tokens, and the model fails on it ({error}). Truncate rows to the "
        "model's maximum length."
    )
