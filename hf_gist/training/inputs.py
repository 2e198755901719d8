"""Inputs of a selection inside a Trainer: converts the callback's rows to the format of the trainer's rows."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.data.leaks import find_leaks
from hf_gist.data.preparation.formats import warn_other_format
from hf_gist.data.preparation.run import check_format
from hf_gist.data.rows import IGNORE_INDEX, fetch_rows, keep_columns, read_column
from hf_gist.errors import LeakWarning
from hf_gist.gist.checks import check_dataset, check_distribution, check_groups, check_inputs, group_columns
from hf_gist.gist.forecast import forecast_memory
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.less import check_optimizer
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.sources import check_quotas
from hf_gist.gist.target_subspace import warn_unusable
from hf_gist.gradients.models import signature_columns
from hf_gist.gradients.row_losses.base import RowLoss
from hf_gist.training.losses.choice import own_loss, verified_loss
from hf_gist.training.losses.trainers import PAIR_COLUMNS, check_trainer_kind, trains_on_pairs
from hf_gist.training.parts import (
    TrainerParts,
    as_dataset,
    check_accumulation,
    prepared_as_training_rows,
    prepares_rows,
)
from hf_gist.training.steps.loader import check_loader
from hf_gist.training.watch.best_adapter import check_stopping
from hf_gist.training.watch.held_out import hold_out
from hf_gist.utils.guides import guide


ROW = "hf_gist_row"
"""Column with the number of a target row, while `SFTTrainer` prepares the rows: it drops and shuffles some."""


LABELS_COMPARED = 16
"""Rows of the train dataset whose labels are compared with those of the targets."""


def read_inputs(
    parts: TrainerParts, config: GISTConfig, target_dataset: Any, train_dataset: Any, eval_dataset: Any
) -> Inputs:
    """Check the callback's datasets against the trainer's rows, and prepare them for scoring.

    Args:
        parts (`TrainerParts`): the trainer's objects for this `train()` call.
        config (`GISTConfig`): the selection.
        target_dataset: see [`GISTDataSelectorCallback`].
        train_dataset: see [`GISTDataSelectorCallback`].
        eval_dataset: see [`GISTDataSelectorCallback`].

    Raises:
        ValueError: for invalid inputs, before the first step.
    """
    check_trainer_kind(parts.trainer)
    check_trainer(parts, config)
    pool = parts.pool
    loss: RowLoss | None = own_loss(parts, config)
    dataset_pass = parts.dataset_pass(config, loss)
    # packed rows have other columns than the targets, which would be the less useful error
    first = fetch_rows(pool, range(min(2, len(pool))))
    dataset_pass.loss.check(dataset_pass.collator(first), len(first), "`train_dataset`")
    targets, kept = _prepared_targets(target_dataset, parts)
    columns = _target_columns(parts, config, target_dataset, kept)
    sources = read_sources(train_dataset, config.source_column, parts)
    check_quotas(config, sources)
    check_inputs(dataset_pass, pool, targets, config, columns.get(config.target_group_column or ""))
    if config.strategy not in UNSCORED:
        loss = verified_loss(loss, dataset_pass, parts, config.seed)
    if scorer_of(config).needs_adam:
        check_optimizer(parts.optimizer)
    # raises early; printed where rows are scored
    forecast_memory(dataset_pass, len(pool), len(targets), config, announced=False)
    evaluation = prepare_evaluation(eval_dataset, parts)
    leaks = find_leaks(pool, targets, evaluation, parts.tokenizer)
    return hold_out(Inputs(pool, targets, columns, sources, leaks, loss=loss), dataset_pass, config, kept)


def check_trainer(parts: TrainerParts, config: GISTConfig) -> None:
    """Check that the order of the trainer's dataloader can be replaced.

    Raises:
        ValueError: naming the argument or setting to change.
    """
    args = parts.args
    check_dataset(parts.pool, "train_dataset")
    if getattr(parts.trainer, "hp_search_backend", None) is not None:
        raise ValueError(
            "`hyperparameter_search` trains in a folder of each trial, and the selections of all trials would be written "
            "into one. Search settings of GIST with `hf-gist compare`, or train on rows that were selected before "
            "(`hf-gist select`)."
        )
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        raise ValueError(
            "`packing` or `padding_free` is on: several examples share one row, so their gradients cannot be "
            f"separated. Set both to False. See {guide('errors', 'packed-rows')}."
        )
    check_loader(parts.loader, args)
    check_distribution(AcceleratorState().distributed_type, config)
    check_accumulation(args)
    check_stopping(args, config)


def _target_columns(
    parts: TrainerParts, config: GISTConfig, target_dataset: Any, kept: list[int] | None
) -> dict[str, list[Any]]:
    """The columns to group the target rows by, of the rows that the trainer kept."""
    columns = group_columns(target_dataset, config)
    if kept is not None:
        usable = torch.zeros(len(target_dataset), dtype=torch.bool)
        usable[kept] = True
        groups = columns.get(config.target_group_column or "")
        check_groups(usable, groups)
        warn_unusable(usable, groups)
        columns = {name: [values[row] for row in kept] for name, values in columns.items()}
    if not parts.args.push_to_hub:
        return columns
    # other columns may contain text of the dataset, and would be written into the folder that is uploaded
    return {name: values for name, values in columns.items() if name == config.target_group_column}


def prepare_targets(targets: Any, parts: TrainerParts) -> Any:
    """The target rows with the columns that the rows of the train dataset have.

    Args:
        targets: the user's rows: tokenised, or raw with `SFTTrainer`.
        parts (`TrainerParts`): the train dataset, and the model, whose signature determines the columns used.

    Raises:
        ValueError: for rows that cannot be converted to that format.
    """
    return _prepared_targets(targets, parts)[0]


def _prepared_targets(targets: Any, parts: TrainerParts) -> tuple[Any, list[int] | None]:
    """The prepared target rows, and the numbers of those that the trainer kept; `None` if it did not prepare them."""
    check_dataset(targets, "target_dataset")
    if isinstance(targets, list) and prepares_rows(parts.trainer):
        targets = as_dataset(targets, "target_dataset")
    if not isinstance(targets, Dataset):
        _check_keys(targets, parts)
        return targets, None
    if not prepares_rows(parts.trainer):
        return _with_columns_of_pool(targets, parts), None
    _check_pairs(targets, parts)
    _check_raw_format(targets, parts)
    numbered = targets.add_column(ROW, list(range(len(targets))))
    prepared = prepared_as_training_rows(parts.trainer, numbered, "target_dataset")
    if not len(prepared):
        raise ValueError(
            "No row of `target_dataset` has a labelled token: truncation cuts all answers off. Raise `max_length`."
        )
    # its dataloader has the columns of tokens only
    warn_other_format(prepared, getattr(parts.trainer, "train_dataset", None), ("target_dataset", "train_dataset"))
    _check_labels(targets, prepared, parts)
    if ROW not in prepared.column_names:
        _check_all_kept(targets, prepared, parts)
        return _with_columns_of_pool(prepared, parts), None
    prepared = prepared.sort(ROW)
    return _with_columns_of_pool(prepared, parts), list(prepared[ROW])


def _check_keys(targets: Any, parts: TrainerParts) -> None:
    """Check that target rows that are no `Dataset` have the tokens that the rows of the pool have.

    Raises:
        ValueError: naming what is missing.
    """
    own = targets[0]
    theirs = parts.pool[0]
    if not isinstance(own, Mapping) or not isinstance(theirs, Mapping):
        return
    used = dict.fromkeys(columns_of_batches(parts))
    missing = [name for name in used if name in theirs and name not in own]
    if missing:
        _refuse_columns(missing, list(own))


def _refuse_columns(missing: Sequence[str], names: Sequence[str]) -> NoReturn:
    """Raise for columns of the pool that the targets do not have."""
    raise ValueError(
        f"`target_dataset` does not have the column(s) {', '.join(missing)} of the train dataset; it has "
        f"{', '.join(names)}. Tokenise both with the same function."
    )


def _check_all_kept(targets: Dataset, prepared: Dataset, parts: TrainerParts) -> None:
    """Check that a trainer that keeps only the tokens of its rows, as Unsloth's does, has kept all of them.

    Raises:
        ValueError: with the numbers of rows.
    """
    if len(prepared) != len(targets):
        raise ValueError(
            f"{type(parts.trainer).__name__} keeps {len(prepared)} of the {len(targets)} rows of `target_dataset`, and "
            "does not tell which. Pass rows with `input_ids` and `labels`."
        )


def _check_labels(targets: Dataset, prepared: Dataset, parts: TrainerParts) -> None:
    """Check that raw targets are not labelled on all tokens if the train dataset is labelled on a part of them.

    Raises:
        ValueError: as after a change of the labels of the train dataset.
    """
    pool = parts.pool
    if trains_on_pairs(parts.trainer) or "input_ids" in targets.column_names or not isinstance(pool, Dataset):
        return
    if "labels" not in pool.column_names or "labels" not in prepared.column_names:
        return
    theirs = pool[:LABELS_COMPARED]["labels"]
    if all(IGNORE_INDEX in labels for labels in theirs) and not any(IGNORE_INDEX in row for row in prepared["labels"]):
        raise ValueError(
            f"{type(parts.trainer).__name__} labels all tokens of the rows of `target_dataset`, but only a part of those "
            "of the train dataset: their formats differ, or the labels were changed afterwards (as by Unsloth's "
            "`train_on_responses_only`). Pass `target_dataset` with `input_ids` and `labels` made in the same way."
        )


def _check_raw_format(targets: Dataset, parts: TrainerParts) -> None:
    """Check that raw targets have columns that `SFTTrainer` prepares, unless a function of the user's formats them.

    Raises:
        ValueError: with the columns found.
    """
    own = {"input_ids", getattr(parts.args, "dataset_text_field", "text")}
    formatted = getattr(parts.trainer, "_formatting_func", None) is not None
    if not trains_on_pairs(parts.trainer) and not formatted and own.isdisjoint(targets.column_names):
        check_format(targets.column_names, "target_dataset")


def _check_pairs(targets: Dataset, parts: TrainerParts) -> None:
    """Check that the targets of a trainer of preference pairs are pairs, too.

    Raises:
        ValueError: naming the columns.
    """
    names = set(targets.column_names)
    tokens = {f"{name}_ids" for name in PAIR_COLUMNS}
    if trains_on_pairs(parts.trainer) and not (names >= set(PAIR_COLUMNS) or names >= tokens):
        raise ValueError(
            f"{type(parts.trainer).__name__} trains on preference pairs, so `target_dataset` needs the columns "
            f"{' and '.join(PAIR_COLUMNS)}, in the format of the train dataset; it has {', '.join(targets.column_names)}."
        )


def columns_of_batches(parts: TrainerParts) -> list[str]:
    """The columns that a trainer passes to its collator."""
    columns: list[str] | None = getattr(parts.trainer, "_signature_columns", None)
    if trains_on_pairs(parts.trainer) and columns is not None:
        return columns
    return signature_columns(parts.model)


def _with_columns_of_pool(targets: Dataset, parts: TrainerParts) -> Dataset:
    """The target rows with the columns that the pool has and the model takes.

    Raises:
        ValueError: if one is missing.
    """
    pool = parts.pool
    used = columns_of_batches(parts)
    if not isinstance(pool, Dataset):
        return keep_columns(targets, used)
    needed = [name for name in pool.column_names if name in used]
    missing = [name for name in needed if name not in targets.column_names]
    if missing:
        _refuse_columns(missing, targets.column_names)
    return targets.select_columns([name for name in pool.column_names if name in targets.column_names])


def read_sources(rows: Any, column: str | None, parts: TrainerParts) -> list[str] | None:
    """The source of every row of the train dataset; `None` without a column.

    Args:
        rows: the `train_dataset` that the callback was given, with all its columns, or `None`.
        column (`str`, *optional*): `source_column`.
        parts (`TrainerParts`): whose own rows are read if the callback has none.

    Raises:
        ValueError: if the column is missing, or the rows are not those of the train dataset.
    """
    if column is None:
        return None
    if rows is None:
        return _own_sources(column, parts)
    if getattr(parts.args, "shuffle_dataset", False):
        raise ValueError(
            f"`source_column={column!r}`: SFTTrainer shuffles its rows (`shuffle_dataset=True`), so the sources of the "
            "callback's `train_dataset` would belong to other rows. Leave `train_dataset` out: the trainer's own rows have "
            "the column."
        )
    sources = [str(value) for value in read_column(rows, column, "source_column")]
    if len(sources) != len(parts.pool):
        raise ValueError(
            f"`train_dataset` of the callback has {len(sources)} rows, the trainer's has {len(parts.pool)}; they must be "
            "the same rows in the same order. (SFTTrainer drops rows that truncation leaves without a label.) Leave it "
            "out: the callback then reads the column from the trainer's own rows."
        )
    return sources


def _own_sources(column: str, parts: TrainerParts) -> list[str]:
    """The sources in the trainer's own rows, which keep the columns that its dataloader drops.

    Raises:
        ValueError: naming the column and those that exist.
    """
    for rows in (parts.pool, getattr(parts.trainer, "train_dataset", None)):
        if isinstance(rows, Dataset) and column in rows.column_names and len(rows) == len(parts.pool):
            return [str(value) for value in read_column(rows, column, "source_column")]
    names = getattr(getattr(parts.trainer, "train_dataset", None), "column_names", None)
    found = f"; they have {', '.join(names)}" if names else ""
    raise ValueError(
        f"`source_column={column!r}` is not a column of the trainer's rows{found}. If the trainer dropped it, pass the rows "
        "with the column to the callback: GISTDataSelectorCallback(config, targets, train_dataset=pool)."
    )


def prepare_evaluation(rows: Any, parts: TrainerParts) -> Any:
    """Evaluation rows for the duplicate check; `SFTTrainer` prepares them like the pool.

    Raises:
        ValueError: for rows that cannot be converted to that format.
    """
    if isinstance(rows, dict):
        found = {name: prepare_evaluation(part, parts) for name, part in rows.items()}
        return {name: part for name, part in found.items() if part is not None}
    if not isinstance(rows, Dataset | list) or not len(rows) or not prepares_rows(parts.trainer):
        return rows
    prepared = prepared_as_training_rows(parts.trainer, as_dataset(rows, "eval_dataset"), "eval_dataset")
    if len(prepared):
        return prepared
    warnings.warn(
        f"The trainer keeps none of {len(rows):,} rows of `eval_dataset`: `max_length` cuts off every answer. The pool was not "
        "searched for them.",
        LeakWarning,
        stacklevel=3,
    )
    return None
