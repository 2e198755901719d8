"""Output of the commands: wrapped sentences, names with their values, and tables, all narrower than 100 columns."""

import sys
import textwrap
from collections.abc import Sequence


WIDTH = 96
"""Columns of a wrapped line."""

NAME_WIDTH = 28
"""Columns of the name before a value."""

INDENT = "   "


def say(text: str = "") -> None:
    """Write a text and a newline to stdout, and flush."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wrapped(text: str) -> str:
    """Each line of a text wrapped at 96 columns, with an indent of 3 where it continues; no word is broken."""
    return "\n".join(_wrapped_line(line, INDENT) for line in text.split("\n"))


def _wrapped_line(line: str, indent: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def say_wrapped(text: str = "") -> None:
    """Write a text to stdout, wrapped by [`wrapped`]."""
    say(wrapped(text))


def named(name: str, value: object) -> str:
    """A name and its value, which all start in the same column; a long value continues there."""
    return _wrapped_line(f"{name:<{NAME_WIDTH}}{value}", " " * NAME_WIDTH)


def named_path(name: str, path: object) -> str:
    """As [`named`], with a path, which is never wrapped, so that it can be copied."""
    return f"{name:<{NAME_WIDTH}}{path}"


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first column is aligned to the left, the others to the right, two blanks apart.

    Args:
        rows (`Sequence[Sequence[str]]`): cells, the header first; all rows have as many.
    """
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        shown = [cell.rjust(width + 2) for cell, width in zip(cells, others, strict=True)]
        lines.append((name.ljust(first) + "".join(shown)).rstrip())
    return "\n".join(lines)
