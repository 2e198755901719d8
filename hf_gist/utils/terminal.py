"""What the commands write to stdout."""

import sys
import textwrap


def say(text: str = "") -> None:
    """Write lines to stdout, as they are."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_wrapped(text: str = "") -> None:
    """Write paragraphs to stdout, wrapped at 96 columns."""
    wrap = textwrap.TextWrapper(96, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
    say("\n".join(wrap.fill(line) for line in text.split("\n")))
