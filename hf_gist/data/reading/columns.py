"""The columns that training has: renamed by `--columns`, or known by their names (Alpaca, ShareGPT)."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from hf_gist.data.reading.table import with_column


FORMATS = (("input_ids",), ("messages",), ("conversations",), ("prompt", "completion"), ("text",))
"""The columns of each format."""

BESIDE = ("labels", "tools", "chat_template_kwargs")
"""Columns that belong to a format and do not make one."""

ALPACA = {"instruction", "output"}

ALPACA_START = "Below is an instruction that describes a task"
ALPACA_INPUT = ", paired with an input that provides further context"
ALPACA_WISH = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"
"""The prompt of Stanford Alpaca, which axolotl, torchtune and alpaca-lora train on as well."""

ASKING = ("question", "query", "instruction", "problem", "input", "user", "source")
ANSWERING = ("answer", "response", "output", "solution", "assistant", "target", "reply")
"""Frequent names, for the example in an error."""


def format_of(columns: Sequence[str]) -> tuple[str, ...] | None:
    """The first format whose columns are there."""
    return next((names for names in FORMATS if set(names) <= set(columns)), None)


# ---- Renaming ----


def _at(value: Any, path: Sequence[str]) -> Any:
    """The value inside nested objects; `None` where there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _has(rows: Dataset, source: str) -> bool:
    """Whether there is a column, or an object with a key, as in `body.messages`."""
    first, *path = source.split(".")
    if source in rows.column_names:
        return True
    return bool(path) and first in rows.column_names and any(_at(row[first], path) is not None for row in _head(rows))


def _head(rows: Dataset) -> list[dict[str, Any]]:
    return list(rows.select(range(min(len(rows), 20))))


def _taken_out(rows: Dataset, target: str, source: str) -> Dataset:
    """The rows with a column of the values inside another column."""
    first, *path = source.split(".")
    return with_column(rows, target, [_at(row[first], path) for row in rows.select_columns([first])])


def rename(rows: Dataset, columns: Mapping[str, str]) -> Dataset:
    """The rows with other names of columns; the columns of all other formats are removed.

    Args:
        rows (`Dataset`): that have all the columns.
        columns (`Mapping[str, str]`): new name to name, or to the place inside an object: `body.messages`.
    """
    sources = set(columns.values())
    known = {name for names in FORMATS for name in names}
    if set(columns) <= set(BESIDE):
        # only tools or the like: the format stays
        known = set()
    hidden = [name for name in rows.column_names if name in known | set(columns) and name not in sources]
    rows = rows.remove_columns(hidden)
    whole = {target: source for target, source in columns.items() if source in rows.column_names}
    # through names that nobody has, because two columns may change places
    rows = rows.rename_columns({source: f"{target} (new)" for target, source in whole.items() if source != target})
    rows = rows.rename_columns({f"{target} (new)": target for target, source in whole.items() if source != target})
    for target, source in columns.items():
        if target not in whole:
            rows = _taken_out(rows, target, source)
    return rows


# ---- Known formats ----


def alpaca_prompt(instruction: str, given: str | None) -> str:
    """The prompt of Stanford Alpaca."""
    more = f"\n\n### Input:\n{given}" if given else ""
    return f"{ALPACA_START}{ALPACA_INPUT if given else ''}{ALPACA_WISH}{instruction}{more}\n\n### Response:\n"


def _is_alpaca(columns: Sequence[str]) -> bool:
    # the published Alpaca has a column `text` with prompt and answer as well
    return ALPACA <= set(columns) and format_of(columns) in (None, ("text",))


def _alpaca(rows: Dataset) -> Dataset:
    """The rows with `prompt` and `completion`."""
    used = [name for name in ("instruction", "input", "output") if name in rows.column_names]
    prompts = []
    answers = []
    for row in rows.select_columns(used):
        asked = row["instruction"]
        # a row without an instruction is refused later, with its place
        prompts.append(alpaca_prompt(asked, row.get("input")) if isinstance(asked, str) else asked)
        answers.append(row["output"])
    rows = rows.remove_columns([name for name in ("text",) if name in rows.column_names])
    return with_column(with_column(rows, "prompt", prompts), "completion", answers)


def _is_sharegpt(rows: Dataset) -> bool:
    turns = [turn for row in _head(rows) for turn in row["conversations"] or []]
    return any(isinstance(turn, dict) and "from" in turn for turn in turns)


# ---- Errors ----


def _nested(rows: Dataset) -> str | None:
    """The place of a conversation inside an object."""
    for row in _head(rows):
        for name, value in row.items():
            inside = value if isinstance(value, dict) else {}
            found = next((key for key in ("messages", "conversations") if isinstance(inside.get(key), list)), None)
            if found:
                return f"{name}.{found}"
    return None


def _example(rows: Dataset) -> str:
    """A value of `--columns` made of the columns there are."""
    names = [name for name in rows.column_names if not name.startswith("Unnamed: ")] or rows.column_names
    place = _nested(rows)
    if place:
        return f"messages={place}"
    row = rows[0]
    chats = [name for name in names if isinstance(row[name], list) and row[name] and isinstance(row[name][0], dict)]
    if chats:
        return f"messages={chats[0]}"
    asking = next((name for name in ASKING if name in names), names[0])
    others = [name for name in names if name != asking]
    answer = next((name for name in ANSWERING if name in others), others[0] if others else None)
    return f"prompt={asking} completion={answer}" if answer else f"text={asking}"


def unknown_columns(rows: Dataset, what: str) -> ValueError:
    """The error for rows in no known format.

    Args:
        rows (`Dataset`): the rows.
        what (`str`): the flag and the file.
    """
    return ValueError(
        f"{what} has the columns {', '.join(rows.column_names)}; expected `messages`, `prompt` and `completion`, "
        f"`text`, or `input_ids` and `labels`. Say which is which, for example `--columns {_example(rows)}`."
    )


def canonical(rows: Dataset, columns: Mapping[str, str], what: str) -> tuple[Dataset, str | None, bool]:
    """The rows with the columns that training has.

    Args:
        rows (`Dataset`): of one file or Hub dataset.
        columns (`Mapping[str, str]`): of `--columns`; they are applied to rows that have them all.
        what (`str`): the flag and the file, for messages.

    Returns:
        The rows, what to say about them, and whether `columns` were applied.

    Raises:
        ValueError: if they are in no known format; the message has the columns found.
    """
    present = [source for source in columns.values() if _has(rows, source)]
    applied = bool(columns) and len(present) == len(columns)
    if applied:
        rows = rename(rows, columns)
    elif present:
        missing = ", ".join(source for source in columns.values() if source not in present)
        raise ValueError(
            f"`--columns`: {what} has no column {missing}. Its columns are {', '.join(rows.column_names)}."
        )
    elif _is_alpaca(rows.column_names):
        note = f"{what}: Alpaca rows, read as `prompt` (instruction and input in the prompt of Stanford Alpaca) and `completion`"
        return _alpaca(rows), note, False
    found = format_of(rows.column_names)
    if found is None:
        raise unknown_columns(rows, what)
    sharegpt = found == ("conversations",) and _is_sharegpt(rows)
    return rows, f"{what}: ShareGPT rows, `conversations` is read as `messages`" if sharegpt else None, applied
