"""The description of each setting, read from the class docstring, for `--help` and the reference."""

import inspect
import re


ENTRY = re.compile(r"^    (\w+) \((.+?)\): ", re.MULTILINE)
"""Start of an entry of `Args:`, `name (type, defaults to value): `."""

SENTENCE_END = re.compile(r"(?<=[^.].\.)\s+(?=[A-Z0-9`])")


def setting_texts(cls: type) -> dict[str, str]:
    """The text of every entry of `Args:` in a class docstring, as one line; empty without docstrings (`-OO`)."""
    doc = inspect.cleandoc(cls.__doc__ or "")
    section = doc.partition("Args:\n")[2].split("\n\n")[0]
    parts = ENTRY.split(section)
    texts = (" ".join(text.split()) for text in parts[3::3])
    return {name: text[:1].upper() + text[1:] for name, text in zip(parts[1::3], texts, strict=True)}


def setting_help(cls: type) -> dict[str, str]:
    """The first sentence of the description of every setting, without Markdown, for `--help`."""
    return {name: SENTENCE_END.split(text)[0].replace("`", "") for name, text in setting_texts(cls).items()}
