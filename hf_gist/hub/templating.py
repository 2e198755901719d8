"""The templates of the cards: every value is escaped, except Markdown made by this package (`Verbatim`)."""

import re
from pathlib import Path
from typing import Any

import jinja2

from hf_gist.hub.markdown import Verbatim, code, fenced, text


TEMPLATES = Path(__file__).parent / "templates"
PLAIN_PNG_NAME = re.compile(r"[\w-]+\.png")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "not recorded"


def kept_samples(value: int | float) -> str:
    """`50%` for a fraction of a batch, `8` for a count."""
    return f"{value:.0%}" if isinstance(value, float) else str(value)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=text,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": code,
        "fenced": fenced,
        "count": _count,
        "number": lambda value: f"{value:.6g}",
    }
    return environment


def render(template: str, **values: Any) -> str:
    """Fill in a template; several empty lines in a row become one.

    Args:
        template (`str`): file name in `hub/templates`.
        values: the template's variables.

    Raises:
        jinja2.UndefinedError: if a variable of the template is missing.
    """
    return _squeeze_empty_lines(_environment().get_template(template).render(**values))


def _squeeze_empty_lines(markdown: str) -> str:
    """At most one empty line in a row, except inside code blocks, and one newline at the end."""
    lines: list[str] = []
    fence = None
    for line in markdown.strip().splitlines():
        ticks = re.match(r"`{3,}", line)
        if ticks and (fence is None or line.strip() == fence):
            fence = ticks.group() if fence is None else None
        if fence is None and not line.strip() and lines and not lines[-1].strip():
            continue
        lines.append(line if fence else line.rstrip())
    return "\n".join(lines) + "\n"


def citations() -> str:
    """BibTeX entries of both papers."""
    return (TEMPLATES / "citations.bib").read_text(encoding="utf-8")


def pictures(paths: list[Path], folder: Path) -> list[dict[str, Verbatim]]:
    """Title and relative path of the images of a card.

    Args:
        paths (`list[Path]`): PNG files; those with other characters than letters, digits, `_` and `-` are left out.
        folder (`Path`): the folder of the card.
    """
    return [
        {
            "title": Verbatim(path.stem.replace("_", " ").capitalize()),
            "path": Verbatim(path.relative_to(folder).as_posix()),
        }
        for path in paths
        if PLAIN_PNG_NAME.fullmatch(path.name)
    ]
