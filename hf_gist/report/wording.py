"""Numbers as people read them, and text of unknown origin made harmless to look at."""

import unicodedata


JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need; all other format characters are shown by their number."""

HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs"}


def visible(text: str, limit: int = 2000) -> str:
    r"""A text in which nothing is hidden: control characters, direction overrides and lone surrogates become `\u202e`.

    Line ends and tabs stay.

    Args:
        text (`str`): any text, however long; only its beginning is looked at.
        limit (`int`): longer texts are cut, and end with an ellipsis.

    Returns:
        `str`: a text that can be written as UTF-8.
    """
    shown = "".join(_visible(character) for character in text[:limit].replace("\r\n", "\n"))
    return shown + "…" if len(text) > limit else shown


def _visible(character: str) -> str:
    if character in "\n\t" or character in JOINERS or unicodedata.category(character) not in HIDDEN:
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def short(text: str, limit: int = 60) -> str:
    """A name on one line."""
    return visible(text[: limit + 1].replace("\n", " ").replace("\t", " "), limit)


def count(number: int | float) -> str:
    """`12,345`."""
    return f"{int(number):,}"


def plural(number: int, noun: str) -> str:
    """`1 row`, `12,345 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float) -> str:
    """`5.0%`; a tiny share is not shown as nothing."""
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
