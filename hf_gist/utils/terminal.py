"""Output of the commands to stdout."""

import sys
import textwrap


def say(text: str = "") -> None:
    """Write a text and a newline to stdout, and flush."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_wrapped(text: str = "") -> None:
    """Write a text to stdout, each of its lines wrapped at 96 columns with an indent of 3."""
    wrap = textwrap.TextWrapper(96, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
    say("\n".join(wrap.fill(line) for line in text.split("\n")))
