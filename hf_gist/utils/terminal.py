"""Output of the commands: wrapped sentences, names with their values, and tables, all narrower than 100 columns."""

import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


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


# ---- Warnings ----


def _of_hf_gist(category: type[Warning]) -> bool:
    return category.__module__.partition(".")[0] == "hf_gist"


@contextmanager
def short_warnings() -> Iterator[None]:
    """While active, warnings of hf_gist are printed as `NameOfWarning: message`, wrapped, without the line of code.

    Warnings of other libraries are printed as before.
    """
    other = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if not _of_hf_gist(category):
            return other(message, category, filename, lineno, line)
        return wrapped(f"{category.__name__}: {message}") + "\n"

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = other
