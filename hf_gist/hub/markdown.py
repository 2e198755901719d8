"""Escaping for Markdown: text from data is shown literally and cannot become markup."""

import re
import unicodedata
from typing import Any


MAX_CHARACTERS = 120
"""Characters of a name from data that a card shows."""

PLAIN = re.compile(r"[\w .,:/@+=-]+")
"""Characters that are safe in a code span, also inside a table; all others become character references."""


class Verbatim(str):
    """Markdown made by this package, which is not escaped."""


def one_line(value: Any, limit: int = MAX_CHARACTERS) -> str:
    """A value on one line, without control characters, cut to `limit` characters."""
    # format characters (Cf) can reverse the writing direction or hide text
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") else c for c in str(value))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _references(text: str) -> str:
    """The text with everything but letters, digits and spaces as character references."""
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text)


def text(value: Any) -> str:
    """A value as running text or a table cell; it cannot become markup, a link or HTML."""
    if isinstance(value, Verbatim):
        return value
    line = one_line(value)
    # words and numbers stay readable in the Markdown source
    return line if re.fullmatch(r"[\w ,.%+-]*", line) and "www." not in line else _references(line)


def code(value: Any) -> Verbatim:
    """A name as a code span, in running text or in a table cell."""
    line = one_line(value)
    if not line:
        return Verbatim("(empty)")
    return Verbatim(f"`{line}`" if PLAIN.fullmatch(line) else f"<code>{_references(line)}</code>")


def fenced(content: str, language: str = "") -> Verbatim:
    """Lines as a code block; its fence is longer than any run of backticks in them."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim(f"{fence}{language}\n{content.rstrip()}\n{fence}")
