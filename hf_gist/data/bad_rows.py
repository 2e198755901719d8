"""Rows that cannot be used: counted, located and explained, or left out."""

from collections.abc import Callable
from typing import Any


SHOWN = 3
"""Number of rows named in the error."""

Where = Callable[[int], str]
"""From a row number to the place of the row: `train_file pool.jsonl, line 1,402`."""


class BadRows:
    """The unusable rows of one dataset.

    Args:
        size (`int`): number of rows of the dataset.
        where (`Where`): place of a row, for messages.
    """

    def __init__(self, size: int, where: Where) -> None:
        self.size = size
        self.where = where
        self.reasons: dict[int, str] = {}

    def add(self, row: int, reason: str) -> None:
        """Record a row; the reason is a sentence without a full stop, and the first one recorded is kept."""
        self.reasons.setdefault(row, reason)

    def refuse(self, advice: str = "Correct them, or leave them out with `--skip_bad_rows`.") -> None:
        """Raise for the recorded rows, if there are any.

        Args:
            advice (`str`): the end of the message; the default names the flag of the commands.

        Raises:
            ValueError: with their number, and the place and the reason of the first three.
        """
        if not self.reasons:
            return
        first = sorted(self.reasons.items())[:SHOWN]
        shown = "\n".join(f"  {self.where(row)}: {reason}" for row, reason in first)
        more = f"\n  and {len(self.reasons) - SHOWN:,} more" if len(self.reasons) > SHOWN else ""
        raise ValueError(f"{len(self.reasons):,} of {self.size:,} rows cannot be used:\n{shown}{more}\n{advice}")

    def kept(self) -> list[int]:
        """Row numbers of the other rows, in order."""
        return [row for row in range(self.size) if row not in self.reasons]

    def report(self) -> list[dict[str, Any]]:
        """The entry in the manifest: place and reason of every row."""
        return [{"row": self.where(row), "reason": reason} for row, reason in sorted(self.reasons.items())]
