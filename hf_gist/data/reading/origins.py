"""Raw rows together with the place that each of them came from."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from datasets import Dataset

from hf_gist.data.reading.files import RowFile
from hf_gist.data.reading.lines import lines_of


@dataclass(frozen=True)
class Part:
    """The rows of one file or Hub dataset.

    Args:
        rows (`Dataset`): with the columns of the file.
        name (`str`): of the file, or Hub id; for messages.
        source (`str`): what the rows are called in the column `source`.
        argument (`str`): the flag, without dashes.
        unit (`str`): what `numbers` count, `line` or `row`.
        numbers (`Sequence[int]`): line or row of every row in the file, from 1.
        lines (`RowFile`, *optional*): the file, if its rows are lines of JSONL.
        stamp (`tuple`, *optional*): size and time of that file when it was read.
    """

    rows: Dataset
    name: str
    source: str
    argument: str
    unit: str
    numbers: Sequence[int]
    lines: RowFile | None = None
    stamp: tuple[int, int] | None = None

    def where(self, row: int) -> str:
        """The place of a row."""
        return f"{self.argument} {self.name}, {self.unit} {self.numbers[row]:,}"

    def select(self, rows: list[int]) -> "Part":
        """Some of the rows."""
        return replace(self, rows=self.rows.select(rows), numbers=[self.numbers[row] for row in rows])

    def texts(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Some rows as JSON: the very lines of the file, or else the values of the columns.

        Args:
            rows (`Sequence[int]`): row numbers.

        Raises:
            ValueError: if the file has changed since it was read.
        """
        if self.lines is None:
            return {row: json_line(self.rows[row]) for row in rows}
        if self.lines.stamp != self.stamp:
            raise ValueError(f"{self.lines.flag} has changed since it was read; run the command again.")
        wanted = {self.numbers[row]: row for row in rows}
        last = max(wanted, default=0)
        found = {}
        with self.lines.open() as opened:
            for number, line in lines_of(opened):
                if number > last:
                    break
                if number in wanted:
                    found[wanted[number]] = line
        return found


def _plain(value: Any) -> Any:
    """A value that JSON does not have, such as a date, as text."""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def json_line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSONL, without its end."""
    return json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8")


@dataclass(frozen=True)
class RawRows:
    """The rows of a flag, before they are tokenised.

    Args:
        rows (`Dataset`): all rows, with the columns that training has: `messages`, `prompt` and `completion`, ...
        parts (`list[Part]`): the same rows as they were read, file by file.
        argument (`str`): the flag, without dashes.
        skipped (`list[dict]`): place and reason of every row that was left out; see [`BadRows.report`].
        notes (`list[str]`): what to say about the columns.
        renamed (`bool`): whether `--columns` was applied.
    """

    rows: Dataset
    parts: list[Part]
    argument: str
    skipped: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    renamed: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _starts(self) -> list[int]:
        """Number of the first row of every part."""
        return [0, *accumulate(len(part.rows) for part in self.parts)][:-1]

    def _by_part(self, rows: Sequence[int]) -> list[list[int]]:
        """For every part its rows among some rows, by their numbers in the part."""
        found: list[list[int]] = [[] for _ in self.parts]
        for row in rows:
            at = bisect_right(self._starts, row) - 1
            found[at].append(row - self._starts[at])
        return found

    def where(self, row: int) -> str:
        """The place of a row: `train_file pool.jsonl, line 1,402`."""
        at = bisect_right(self._starts, row) - 1
        return self.parts[at].where(row - self._starts[at])

    def texts(self, rows: Sequence[int]) -> Iterator[bytes]:
        """Some rows as lines of JSONL, without their ends and in the order given; those of JSONL files unchanged.

        Args:
            rows (`Sequence[int]`): row numbers.
        """
        found: dict[int, bytes] = {}
        for start, part, own in zip(self._starts, self.parts, self._by_part(rows), strict=True):
            found |= {start + row: text for row, text in part.texts(own).items()}
        return (found[row] for row in rows)

    def select(self, rows: Sequence[int], skipped: Sequence[dict[str, Any]] = ()) -> "RawRows":
        """Some of the rows, in the order of the files.

        Args:
            rows (`Sequence[int]`): their numbers, ascending.
            skipped (`Sequence[dict]`): place and reason of the others, for the manifest.
        """
        parts = [part.select(own) for part, own in zip(self.parts, self._by_part(rows), strict=True)]
        return replace(self, rows=self.rows.select(rows), parts=parts, skipped=[*self.skipped, *skipped])
