"""The rows that a callback was given, in the form of the trainer's own: targets, evaluation rows, sources."""

import copy
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from hf_gist.data.formats import tokenize
from hf_gist.data.rows import keep_columns, read_column
from hf_gist.gist.checks import check_dataset
from hf_gist.gradients.models import signature_columns
from hf_gist.training.caller import calling_trainer


def prepare_targets(targets: Any, args: TrainingArguments, tokenizer: Any, pool: Any, model: nn.Module) -> Any:
    """The target rows with the columns that the rows of the train dataset have.

    Args:
        targets: what the user gave: tokenised rows, or raw ones with `SFTTrainer`.
        args (`TrainingArguments`): of the trainer.
        tokenizer: the trainer's `processing_class`.
        pool: the train dataset.
        model (`nn.Module`): decides which columns are looked at.

    Raises:
        ValueError: for rows that cannot be brought into that form.
    """
    check_dataset(targets, "target_dataset")
    if not isinstance(targets, Dataset):
        return targets
    targets = _tokenized(targets, args, tokenizer, "target_dataset")
    if not isinstance(pool, Dataset):
        return keep_columns(targets, signature_columns(model))
    needed = [name for name in pool.column_names if name in signature_columns(model)]
    missing = [name for name in needed if name not in targets.column_names]
    if missing:
        raise ValueError(
            f"`target_dataset` lacks the column(s) {', '.join(missing)} of the train dataset. Tokenise both with the "
            "same function."
        )
    return targets.select_columns([name for name in pool.column_names if name in targets.column_names])


def read_sources(rows: Any, column: str | None, args: TrainingArguments, pool: Any) -> list[str] | None:
    """The source of every row of the train dataset; `None` without a column.

    Args:
        rows: the `train_dataset` that the callback was given, with all its columns, or `None`.
        column (`str`, *optional*): `source_column`.
        args (`TrainingArguments`): of the trainer.
        pool: the train dataset as the trainer left it.

    Raises:
        ValueError: if the column is missing, or the rows are not those of the train dataset.
    """
    if column is None:
        return None
    if rows is None and not (isinstance(pool, Dataset) and column in pool.column_names):
        raise ValueError(
            f"`source_column={column!r}`: Trainer drops the columns that the model does not take. DatasetPass the dataset to "
            "the callback too: GISTDataSelectorCallback(config, targets, train_dataset=pool)."
        )
    if getattr(args, "shuffle_dataset", False):
        raise ValueError(
            f"`source_column={column!r}`: SFTTrainer shuffles its rows (`shuffle_dataset=True`), so the sources of the "
            "callback's dataset would be those of other rows. Shuffle the dataset yourself before, and set it to False."
        )
    sources = [str(value) for value in read_column(pool if rows is None else rows, column, "source_column")]
    if len(sources) != len(pool):
        raise ValueError(
            f"`train_dataset` of the callback has {len(sources)} rows, that of the trainer {len(pool)}; they must be "
            "the same rows in the same order. (SFTTrainer drops rows that truncation leaves without a label.)"
        )
    return sources


def prepare_evaluation(rows: Any, args: TrainingArguments, tokenizer: Any) -> Any:
    """Evaluation rows that are to be looked for in the pool: raw ones of `SFTTrainer` as it tokenises the pool.

    Raises:
        ValueError: for rows that cannot be brought into that form.
    """
    if isinstance(rows, dict):
        return {name: prepare_evaluation(part, args, tokenizer) for name, part in rows.items()}
    return _tokenized(rows, args, tokenizer, "eval_dataset") if isinstance(rows, Dataset) else rows


def _tokenized(rows: Dataset, args: TrainingArguments, tokenizer: Any, argument: str) -> Dataset:
    """Raw rows as `SFTTrainer` tokenises them; tokenised rows, and those of other trainers, as they are."""
    if "input_ids" in rows.column_names or not hasattr(args, "assistant_only_loss"):
        return rows
    _check_sft_format(args, rows, argument)
    template = getattr(calling_trainer(), "chat_template", None)
    if template is not None:
        # SFTTrainer trains with a template of its own where the tokenizer's has no generation marks
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = template
    answers_only = args.assistant_only_loss or (
        "prompt" in rows.column_names and args.completion_only_loss is not False
    )
    return tokenize(rows, tokenizer, args.max_length, argument, answers_only, args.dataset_text_field)


def _check_sft_format(args: TrainingArguments, targets: Dataset, argument: str) -> None:
    special = [name for name in ("tools", "chat_template_kwargs", "conversations") if name in targets.column_names]
    if args.truncation_mode != "keep_start":
        special.append(f"truncation_mode={args.truncation_mode!r}")
    if args.assistant_only_loss and "prompt" in targets.column_names:
        special.append("assistant_only_loss with prompt and completion")
    if special:
        raise ValueError(
            f"Raw `{argument}` rows with {', '.join(special)} cannot be tokenised here exactly as SFTTrainer does. "
            "Let SFTTrainer do it (`eval_dataset={'rows': rows}`) and set "
            f"`callback.{argument} = trainer.eval_dataset['rows']` before `trainer.train()`."
        )
