"""Prepares a dataset of raw rows: tokens and labels, bad rows, cuts and wrong labels."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_gist.data.bad_rows import BadRows, Where
from hf_gist.data.preparation.encoder import LENGTH, LOST, PROBLEM, REASON, Encoder
from hf_gist.data.preparation.findings import Cuts, Mislabelled
from hf_gist.data.preparation.requests import COLUMNS
from hf_gist.data.preparation.templates import Template, check_trl, find_template, with_template
from hf_gist.data.rows import IGNORE_INDEX, row_lengths
from hf_gist.errors import NoEffectWarning
from hf_gist.version import __version__


ROWS_PER_PROCESS = 20_000
"""Fewer rows are not worth a further process."""

ENCODED = Features(
    {
        "input_ids": List(Value("int64")),
        "labels": List(Value("int64")),
        REASON: Value("string"),
        LENGTH: Value("int64"),
        LOST: Value("bool"),
        PROBLEM: Value("string"),
    }
)


@dataclass
class Prepared:
    """A prepared dataset.

    Args:
        rows (`Dataset`): all rows with their own columns, `input_ids` and `labels`. Bad rows that are left out keep
            their place, with one token and no label, so that they are not selected and row numbers stay those of the
            file.
        bad (`BadRows`): the bad rows.
        cuts (`Cuts`): what was cut.
        mislabelled (`Mislabelled`): rows whose labels are not their answers.
    """

    rows: Dataset
    bad: BadRows
    cuts: Cuts
    mislabelled: Mislabelled

    @property
    def usable(self) -> Dataset:
        """The rows without the bad ones."""
        return self.rows.select(self.bad.kept()) if self.bad.reasons else self.rows


def _is_conversational(dataset: Dataset) -> bool:
    """Whether rows need a chat template."""
    columns = dataset.column_names
    if "prompt" in columns and "completion" in columns:
        first = dataset[0]
        if isinstance(first["prompt"], list) or isinstance(first["completion"], list):
            return True
    return "messages" in columns or "conversations" in columns


def check_format(columns: Sequence[str], argument: str) -> None:
    """Check that the columns are those of a supported format.

    Args:
        columns (`list[str]`): names of the columns of the dataset.
        argument (`str`): name of the dataset for messages.

    Raises:
        ValueError: if they are not; the message has the columns found.
    """
    known = {"messages", "conversations", "text"}
    if not (known.intersection(columns) or {"prompt", "completion"} <= set(columns)):
        raise ValueError(
            f"`{argument}` has the columns {', '.join(columns)}; expected `input_ids` (with `labels`), `messages`, "
            "`conversations`, `prompt` and `completion`, or `text`."
        )


def _template(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, argument: str) -> Template | None:
    if not _is_conversational(dataset):
        return None
    if "conversations" in dataset.column_names:
        check_trl(argument)
    # needs TRL only for a template without generation marks, of which TRL may have a version with them
    template = find_template(tokenizer, argument)
    located = not {"prompt", "completion"} <= set(dataset.column_names)
    if located and not getattr(tokenizer, "is_fast", True):
        raise ValueError(
            f"`{argument}`: the answers of a conversation are found by the characters of each token, which "
            f"{type(tokenizer).__name__} does not tell. Load a fast tokenizer (`use_fast=True`), or give rows with "
            "`prompt` and `completion`."
        )
    return template


def _processes(rows: int) -> int | None:
    """Number of processes for `Dataset.map`; `None` for this one alone."""
    count = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    count = min(count, rows // ROWS_PER_PROCESS)
    return count if count > 1 else None


def _column(encoded: Dataset, name: str) -> pyarrow.ChunkedArray:
    return encoded.select_columns([name]).with_format("arrow")[:][name]


def _texts(encoded: Dataset, name: str) -> dict[int, str]:
    """Row number to the text in a column that is empty in most rows."""
    return {row: text for row, text in enumerate(_column(encoded, name).to_pylist()) if text is not None}


def prepare(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    argument: str,
    *,
    chat_template: str | None = None,
    where: Where | None = None,
    skip_bad_rows: bool = False,
) -> Prepared:
    """Tokens and labels as those of `SFTTrainer`: on the assistant's turns, on the completion, or on the whole text.

    Args:
        dataset (`Dataset`): rows with `messages`, `conversations`, `prompt` and `completion`, or `text`, and optional
            `tools` and `chat_template_kwargs`. Rows with `input_ids` and `labels` are only cut.
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        max_length (`int`, *optional*): longer rows are cut at the end.
        argument (`str`): name of the dataset for messages.
        chat_template (`str`, *optional*): Jinja text instead of the tokenizer's template.
        where (`Where`, *optional*): place of a row, for messages.
        skip_bad_rows (`bool`): leave bad rows out instead of raising.

    Raises:
        ValueError: if the columns are in no supported format, TRL is needed and missing, or rows cannot be prepared.
    """
    columns = dataset.column_names
    bad = BadRows(len(dataset), where or (lambda row: f"{argument}, row {row + 1:,}"))
    if "input_ids" in columns:
        if "labels" not in columns:
            raise ValueError(f"`{argument}` has `input_ids` but no `labels`; add them, -100 where no loss is wanted.")
        return _already_tokenised(dataset, bad, max_length, argument, chat_template)
    check_format(columns, argument)
    if not len(dataset):
        raise ValueError(f"`{argument}` is empty.")
    tokenizer = with_template(tokenizer, chat_template)
    template = _template(dataset, tokenizer, argument)
    encoded = _encode(dataset, Encoder(tokenizer, template, max_length, dict(dataset.features), __version__), argument)
    bad.reasons.update(_texts(encoded, REASON))
    if not skip_bad_rows:
        bad.refuse()
    lengths = _column(encoded, LENGTH).to_numpy()
    cut = 0 if max_length is None else int((lengths > max_length).sum())
    lost = int(_column(encoded, LOST).to_numpy().sum())
    tokens = encoded.select_columns(["input_ids", "labels"])
    rows = concatenate_datasets([dataset.remove_columns([n for n in columns if n == "labels"]), tokens], axis=1)
    found = Mislabelled.of(_texts(encoded, PROBLEM), len(dataset), bad.where)
    return Prepared(rows, bad, Cuts(max_length, len(dataset), cut, lost), found)


PER_TOKEN = ("input_ids", "labels", "attention_mask", "token_type_ids", "position_ids")
"""Columns with a value for each token."""


def _already_tokenised(
    dataset: Dataset, bad: BadRows, max_length: int | None, argument: str, chat_template: str | None
) -> Prepared:
    """Rows that have their tokens, cut to a limit.

    Warns:
        NoEffectWarning: with a chat template.
    """
    if chat_template is not None:
        warnings.warn(
            f"The chat template has no effect on the rows of `{argument}`, which are tokenised already.",
            NoEffectWarning,
            stacklevel=3,
        )
    lengths = row_lengths(dataset)
    cuts = Cuts(max_length, len(dataset))
    if max_length is None or lengths is None or not (lengths > max_length).any():
        return Prepared(dataset, bad, cuts, Mislabelled(len(dataset)))

    def cut(row: dict[str, Any]) -> dict[str, Any]:
        return {name: row[name][:max_length] for name in PER_TOKEN if row.get(name) is not None}

    rows = dataset.with_format(None).map(cut, desc=f"cutting {argument}")
    long = (lengths > max_length).nonzero()[0]
    before, after = (_labelled(some.select(long)) for some in (dataset, rows))
    cuts.cut = len(long)
    cuts.lost = int((before & ~after).sum())
    return Prepared(rows, bad, cuts, Mislabelled(len(dataset)))


def _labelled(rows: Dataset) -> np.ndarray:
    """Whether each row has a labelled token `[n]` bool."""
    labels = rows.with_format(None)["labels"]
    return np.array([any(label != IGNORE_INDEX for label in row) for row in labels], dtype=bool)


def _encode(dataset: Dataset, encoder: Encoder, argument: str) -> Dataset:
    """The encoder's columns for every row."""
    used = [name for name in COLUMNS if name in dataset.column_names]
    # only these columns are read and written
    return (
        dataset.with_format(None)
        .select_columns(used)
        .map(
            encoder,
            batched=True,
            remove_columns=used,
            features=ENCODED,
            num_proc=_processes(len(dataset)),
            desc=f"tokenizing {argument}",
        )
    )


def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    argument: str,
    chat_template: str | None = None,
) -> Dataset:
    """[`prepare`], with its checks: a dataset with the added columns `input_ids` and `labels`.

    Args:
        dataset (`Dataset`): see [`prepare`].
        tokenizer (`PreTrainedTokenizerBase`): see [`prepare`].
        max_length (`int`, *optional*): see [`prepare`].
        argument (`str`): see [`prepare`].
        chat_template (`str`, *optional*): see [`prepare`].

    Raises:
        ValueError: see [`prepare`]; also if the labels of more than 1 % of the rows are not their answers.
    """
    prepared = prepare(dataset, tokenizer, max_length, argument, chat_template=chat_template)
    prepared.mislabelled.check(argument)
    return prepared.rows
