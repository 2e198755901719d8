"""Test rows with `choices` and `answer`: checked, and each choice as a row of its own."""

import copy
from typing import Any

from datasets import Dataset

from hf_gist.data.bad_rows import BadRows
from hf_gist.data.preparation.labels import shortened
from hf_gist.data.preparation.messages import SHAREGPT_ROLES, RowError, is_sharegpt
from hf_gist.data.preparation.requests import COLUMNS


CHOICES, ANSWER = "choices", "answer"

Holder = tuple[dict[str, Any], str]
"""The object that holds a text, and its key."""


# ---- The answer of a row ----


def _last_turn(messages: list[Any], name: str) -> Holder:
    """The text of a conversation's last turn, which must be the assistant's only one in a row."""
    turns = [turn for turn in messages if isinstance(turn, dict)]
    if len(turns) < len(messages) or not turns:
        raise RowError(f"`{name}` must be a list of messages with the answer at the end")
    said, spoke = ("value", "from") if is_sharegpt(turns) else ("content", "role")
    speakers = [SHAREGPT_ROLES.get(str(turn.get(spoke)), turn.get(spoke)) for turn in turns]
    if speakers[-1] != "assistant" or speakers[-2:-1] == ["assistant"]:
        raise RowError(f"`{name}` must end with one turn of the assistant, the answer; its roles are {speakers}")
    return turns[-1], said


def _holder(row: dict[str, Any]) -> Holder:
    """Where the answer of a row is; as in the preparation of rows, a prompt with a completion is preferred.

    Raises:
        RowError: if the row has no answer.
    """
    if row.get("prompt") is not None and "completion" in row:
        completion = row["completion"]
        return _last_turn(completion, "completion") if isinstance(completion, list) else (row, "completion")
    names = ("messages", "conversations")
    for name in reversed(names) if is_sharegpt(row.get("conversations")) else names:
        if isinstance(row.get(name), list):
            return _last_turn(row[name], name)
    raise RowError("it needs `messages` that end with the answer, or `prompt` and `completion`")


def reference_of(row: dict[str, Any]) -> str:
    """The answer of a row.

    Raises:
        RowError: if it has none, or one that is not text.
    """
    holder, key = _holder(row)
    text = holder.get(key)
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"its answer must be a text, got {text!r}")
    return text


def with_answer(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The row with another answer, which keeps the white space around the old one.

    Args:
        row (`dict`): the row; it is not changed.
        text (`str`): the other answer.
    """
    row = copy.deepcopy(row)
    holder, key = _holder(row)
    old = holder[key]
    at = old.index(old.strip())
    holder[key] = old[:at] + text.strip() + old[at + len(old.strip()) :]
    return row


# ---- Checks ----


def check_row(row: dict[str, Any]) -> None:
    """Check the choices of a row, and that its answer is the right one of them.

    Args:
        row (`dict`): as it was read.

    Raises:
        RowError: with the reason, if it cannot be answered.
    """
    choices = row[CHOICES]
    answer = row[ANSWER]
    if choices is None:
        raise RowError("it has no `choices`, but other rows of the file have")
    if not isinstance(choices, list) or not all(isinstance(text, str) and text.strip() for text in choices):
        raise RowError(f"`choices` must be a list of non-empty texts, got {shortened(repr(choices))}")
    if len(choices) < 2:
        raise RowError(f"`choices` needs at least two texts, got {shortened(repr(choices))}")
    texts = [text.strip() for text in choices]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise RowError(f"`choices` has {shortened(twice)!r} twice")
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise RowError(f"`answer` must be the number of the right choice, counted from 0, got {answer!r}")
    if not 0 <= answer < len(choices):
        raise RowError(f"`answer` must be from 0 to {len(choices) - 1}, the numbers of its choices, got {answer}")
    reference = reference_of(row).strip()
    if reference != texts[answer]:
        raise RowError(
            f"its answer is {shortened(reference)!r}, but choice {answer}, which `answer` says is right, is "
            f"{shortened(texts[answer])!r}"
        )


def check_rows(rows: Dataset, bad: BadRows) -> None:
    """[`check_row`] for every row; bad ones are recorded.

    Args:
        rows (`Dataset`): with a column `choices`.
        bad (`BadRows`): of these rows.
    """
    if ANSWER not in rows.column_names:
        raise ValueError(
            f"{bad.where(0)} has `choices` but no `answer`: add the number of the right choice, counted from 0, to every "
            "row, or remove `choices` for the loss alone."
        )
    for number, row in enumerate(rows.with_format(None)):
        try:
            check_row(row)
        except RowError as error:
            bad.add(number, str(error))


# ---- Choices as rows ----


def _expanded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A batch of rows with every choice of every row as a row."""
    found: dict[str, list[Any]] = {name: [] for name in batch if name in COLUMNS}
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        choices = row.pop(CHOICES)
        for text in choices:
            for name, value in with_answer(row, text).items():
                found[name].append(value)
    return found


def choices_as_rows(rows: Dataset) -> Dataset:
    """All choices of the first row as its answers, then those of the second row, and so on.

    Args:
        rows (`Dataset`): checked rows.
    """
    used = [name for name in COLUMNS if name in rows.column_names]
    kept = rows.with_format(None).select_columns([*used, CHOICES])
    features = kept.features.copy()
    features.pop(CHOICES)
    return kept.map(_expanded, batched=True, remove_columns=kept.column_names, features=features, desc="choices")
