"""Text that came with data, as Markdown that shows it and does nothing else."""

import re
import unicodedata
from typing import Any


LONGEST = 120
"""Characters that a name from data may take on a card."""

PLAIN = re.compile(r"[\w .,:/@+=-]+")
"""What a code span shows as it is, in a table too. Everything else becomes character references."""


class Verbatim(str):
    """Markdown made here, to be left as it is."""


def one_line(value: Any, longest: int = LONGEST) -> str:
    """A value on one line, without control characters, cut to `longest` characters."""
    # format characters (Cf) turn the direction of writing around, or hide text
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") else c for c in str(value))
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _references(text: str) -> str:
    return "".join(c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text)


def text(value: Any) -> str:
    """A value as running text or a table cell: no markup, no link, no HTML comes out of it."""
    if isinstance(value, Verbatim):
        return value
    line = one_line(value)
    # numbers and words stay readable in the source; what could start markup or a link does not
    return line if re.fullmatch(r"[\w ,.%+-]*", line) and "www." not in line else _references(line)


def code(value: Any) -> Verbatim:
    """A name as code, in text and in tables alike."""
    line = one_line(value)
    if not line:
        return Verbatim("(empty)")
    return Verbatim(f"`{line}`" if PLAIN.fullmatch(line) else f"<code>{_references(line)}</code>")


def fenced(content: str, language: str = "") -> Verbatim:
    """Lines as a code block that nothing in them can end."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim(f"{fence}{language}\n{content.rstrip()}\n{fence}")
