"""Numbers formatted for the page, and text of unknown origin with its invisible characters made visible."""

import unicodedata
from typing import SupportsInt


JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need; all other format characters are shown as escape sequences."""

HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs"}
"""Unicode categories that are shown as escape sequences: control, format, unassigned, private use, surrogate."""


def visible(text: str, limit: int = 2000) -> str:
    r"""A text with control characters, direction overrides and lone surrogates as escape sequences (`\u202e`).

    Line ends and tabs are kept.

    Args:
        text (`str`): any text, however long; only its beginning is read.
        limit (`int`): longer texts are cut, and end with an ellipsis.

    Returns:
        `str`: a text that can be encoded as UTF-8.
    """
    shown = "".join(_visible(character) for character in text[:limit].replace("\r\n", "\n"))
    return shown + "…" if len(text) > limit else shown


def _visible(character: str) -> str:
    if character in "\n\t" or character in JOINERS or unicodedata.category(character) not in HIDDEN:
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def short(text: str, limit: int = 60) -> str:
    """A name on one line, cut to `limit` characters."""
    return visible(text[: limit + 1].replace("\n", " ").replace("\t", " "), limit)


def count(number: SupportsInt) -> str:
    """`12,345`; fractions are cut off."""
    return f"{int(number):,}"


def plural(number: int, noun: str) -> str:
    """`1 row`, `12,345 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float) -> str:
    """`5.0%`; a share above 0 that would be rounded to 0.0% is `below 0.1%`."""
    if 0 < share < 0.0005:
        return "below 0.1%"
    return f"{share:.1%}"


def seconds(number: float) -> str:
    """`12.3 s`, `26 min 46 s` or `3 h 12 min`."""
    if number < 120:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
