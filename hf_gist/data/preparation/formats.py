"""The format of raw rows, and a warning where the targets have another one than the pool."""

import warnings
from typing import Any

from datasets import Dataset

from hf_gist.errors import TargetFormatWarning
from hf_gist.utils.guides import guide


CONVERSATIONS = "conversations"
PROMPTS = "plain prompts with completions"
TEXT = "plain text"


def format_of(rows: Any) -> str | None:
    """The format of the first row, as it is prepared: a prompt with a completion before messages, and those before text.

    Args:
        rows: a dataset, raw or prepared by a trainer that keeps the raw columns.

    Returns:
        `str`, *optional*: `None` for rows without raw columns.
    """
    if not isinstance(rows, Dataset) or not len(rows):
        return None
    columns = [n for n in ("prompt", "completion", "messages", "conversations", "text") if n in rows.column_names]
    if not columns:
        return None
    first = rows.with_format(None).select_columns(columns)[0]
    if first.get("prompt") is not None and "completion" in first:
        return PROMPTS if isinstance(first["prompt"], str) else CONVERSATIONS
    if first.get("messages") is not None or first.get("conversations") is not None:
        return CONVERSATIONS
    return None if first.get("text") is None else TEXT


def warn_other_format(targets: Any, pool: Any, names: tuple[str, str]) -> None:
    """Warn if the targets have another format than the pool.

    Args:
        targets: the rows of the target set.
        pool: those of the pool.
        names (`tuple[str, str]`): what the user knows both by, such as `target_dataset` and `train_dataset`.
    """
    theirs = format_of(targets)
    wanted = format_of(pool)
    if theirs is None or wanted is None or theirs == wanted:
        return
    template = (
        "only one of them gets the chat template" if CONVERSATIONS in (theirs, wanted) else "other tokens are labelled"
    )
    warnings.warn(
        f"The rows of `{names[0]}` are {theirs}, those of `{names[1]}` {wanted}: {template}, so gradients differ by the "
        f"format too, and the selection may follow it instead of the task. Write the targets in the format of the pool. "
        f"See {guide('data', 'formats')}.",
        TargetFormatWarning,
        stacklevel=2,
    )
