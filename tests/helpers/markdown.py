"""Reads Markdown files: code blocks, headings, links, tables."""

import re
from functools import cache
from pathlib import Path

from tests import ROOT


README = ROOT / "README.md"
GUIDES = sorted((ROOT / "recipes" / "guides").rglob("*.md"))
RECIPES = ROOT / "recipes" / "README.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
NUMBER = re.compile(r"(?<![\w.])(?<!\w-)\d[\d,]*(?:\.\d+)?")
"""`3.0280` and `1,433`, but not the numbers of names such as Llama-2 and FSDP2."""

ALTERNATIVE_TEXT = re.compile(r'<[^>]*\balt="([^"]*)"[^>]*>')


@cache
def text_of(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of every code block."""
    return FENCE.findall(text_of(path))


def prose(text: str) -> str:
    """The text without code blocks and comments."""
    return COMMENT.sub("", FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of all links and pictures outside of code."""
    return [target or source for target, source in LINK.findall(CODE.sub("`code`", prose(text)))]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def sections(path: Path) -> dict[str, str]:
    """The text below each heading up to the next heading of any level, by anchor."""
    found: dict[str, str] = {}
    parts = re.split(r"^#{1,6} (.+)$", FENCE.sub("", text_of(path)), flags=re.MULTILINE)
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        anchor = slug(heading)
        repeats = sum(1 for name in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", name))
        found[f"{anchor}-{repeats}" if repeats else anchor] = body
    return found


def table_numbers(text: str) -> list[str]:
    """The numbers in the rows of all tables, without their header."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [number for row in rows for number in numbers(row)]


def numbers(text: str) -> list[str]:
    """The numbers of a text outside of code, tags and the targets of links; those of alternative texts count."""
    shown = ALTERNATIVE_TEXT.sub(r"\1", re.sub(r"\]\([^)]*\)", "]", CODE.sub("", text)))
    return NUMBER.findall(re.sub(r"<[^>]+>", "", shown))


def is_rounded(short: str, exact: str) -> bool:
    """Whether a number is another one, rounded to the digits that it has."""
    digits = len(short.partition(".")[2])
    value = float(exact.replace(",", ""))
    # half a unit in the last place, and what rounding to binary adds
    return abs(float(short.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-9
