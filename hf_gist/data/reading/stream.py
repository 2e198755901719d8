"""Rows one after another, for a pool that is read once and never held as a whole."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, load_dataset

from hf_gist.data.bad_rows import Where
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.columns import canonical
from hf_gist.data.reading.files import SAVED, RowFile, find_files
from hf_gist.data.reading.lines import entries_of, unit_of
from hf_gist.data.reading.load import TEXT_FORMATS, check_one_of, name_flag, scan_all
from hf_gist.data.reading.nulls import CHATS, TOOLS, pruned_value
from hf_gist.data.reading.origins import json_line
from hf_gist.data.reading.table import dataset_of


class Line(dict):
    """A row of a text file.

    Args:
        row (`dict`): its columns.
        raw (`bytes`, *optional*): its line, if it is JSONL.
    """

    __slots__ = ("raw",)

    def __init__(self, row: dict[str, Any], raw: bytes | None) -> None:
        super().__init__(row)
        self.raw = raw

    def __reduce__(self) -> Any:
        return Line, (dict(self), self.raw)


def text_of(row: dict[str, Any]) -> bytes:
    """A row as a line of JSONL: the very line, if it was read from one."""
    raw = row.raw if isinstance(row, Line) else None
    return json_line(row) if raw is None else raw


def chunk_of(rows: Sequence[dict[str, Any]]) -> Dataset:
    """Rows of a stream as a dataset; those of text files with the very values."""
    if any(isinstance(row, Line) for row in rows):
        return dataset_of(list(rows))
    return Dataset.from_list([dict(row) for row in rows])


class RowStream:
    """The rows of a flag one after another.

    Text files are read twice: at first for their bad rows, because an error in the middle of the scoring would cost all
    work up to there.

    Args:
        source (`RowSource`): where to read.
        argument (`str`): name of the files' flag, for messages.
        columns (`Mapping[str, str]`, *optional*): see [`canonical`].
        skip_bad_rows (`bool`): leave rows out that cannot be read, instead of an error.
        note (`Callable[[str], Any]`, *optional*): called with what to say about the columns.

    Raises:
        ValueError: see [`read_rows`].
    """

    def __init__(
        self,
        source: RowSource,
        argument: str,
        columns: Mapping[str, str] | None = None,
        skip_bad_rows: bool = False,
        note: Callable[[str], Any] | None = None,
    ) -> None:
        check_one_of(source, argument)
        self.source, self.argument, self.columns, self.note = source, argument, columns or {}, note
        self.files = find_files(source.files, argument) if source.files else []
        saved = next((file for file in self.files if file.format == SAVED), None)
        if saved is not None:
            raise ValueError(f"{saved.flag}: a folder of `save_to_disk` cannot be read with `--streaming`.")
        _, bad = scan_all([file for file in self.files if file.format in TEXT_FORMATS])
        if not skip_bad_rows:
            bad.refuse()
        self.skipped = bad.report()
        self._places: deque[tuple[str, int]] = deque()
        self._noted: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            if file.format in TEXT_FORMATS:
                yield from self._lines(file)
            else:
                place = f"{self.argument} {file.name}"
                yield from self._of_library(place, file.format, data_files=str(file.path), split="train")
        for name in self.source.dataset_names:
            where = {"split": self.source.split, "revision": self.source.revision}
            yield from self._of_library(f"{name_flag(self.argument)} {name}", name, self.source.config_name, **where)

    def _lines(self, file: RowFile) -> Iterator[dict[str, Any]]:
        place = f"{self.argument} {file.name}, {unit_of(file)}"
        for entry in entries_of(file):
            if entry.row is not None:
                self._places.append((place, entry.number))
                yield Line(entry.row, entry.line)

    def _of_library(self, place: str, *args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        rows = load_dataset(*args, streaming=True, **options)
        # not known for rows on the Hub that are no Parquet
        features = rows.features or {}
        for number, row in enumerate(rows, 1):
            self._places.append((f"{place}, row", number))
            tools = [key for key in (*CHATS, TOOLS) if isinstance(row.get(key), list)]
            pruned = {key: pruned_value(key, row[key], features.get(key)) for key in tools}
            # a line, because a table of these rows would have the null keys again
            yield row if pruned == {key: row[key] for key in tools} else Line(row | pruned, None)

    def next_rows(self, chunk: Dataset) -> tuple[Dataset, Where]:
        """The next rows of the stream with the columns that training has, and the place of each.

        Args:
            chunk (`Dataset`): those rows, see [`chunk_of`]; to be called once for every chunk, in order.
        """
        places = [self._places.popleft() for _ in range(len(chunk))]
        what = places[0][0].rpartition(",")[0]
        rows, note, _ = canonical(chunk, self.columns, what)
        if note and note not in self._noted and self.note is not None:
            self._noted.add(note)
            self.note(note)
        return rows, lambda row: f"{places[row][0]} {places[row][1]:,}"
