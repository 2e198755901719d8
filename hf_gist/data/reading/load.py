"""Reads the rows of a flag: any number of files, folders, patterns or Hub datasets."""

from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from hf_gist.data.bad_rows import BadRows
from hf_gist.data.provenance import RowSource, digest, public_name
from hf_gist.data.reading.columns import canonical, format_of
from hf_gist.data.reading.files import SAVED, SAVED_MARKS, RowFile, find_files
from hf_gist.data.reading.lines import entries_of, unit_of
from hf_gist.data.reading.nulls import without_null_keys
from hf_gist.data.reading.origins import Part, RawRows
from hf_gist.data.reading.table import (
    Kinds,
    add_kinds,
    as_json_column,
    cached_dataset,
    new_kinds,
    with_column,
    with_exact_json,
)


TEXT_FORMATS = ("jsonl", "json", "csv", "tsv")
"""Formats with a reader of this package; `datasets` reads the others."""

SOURCE = "source"
"""Column with the file or Hub dataset of a row, where there are several."""


def name_flag(argument: str) -> str:
    """The flag of the Hub datasets next to a flag of files: `dataset_name` next to `train_file`."""
    return argument.replace("file", "dataset_name").replace("train_", "")


def check_one_of(source: RowSource, argument: str) -> None:
    """Check that either files or Hub ids are given.

    Args:
        source (`RowSource`): where to read.
        argument (`str`): name of the files' flag, such as `train_file`.

    Raises:
        ValueError: if none or both are given; the message has both flags.
    """
    if bool(source.files) == bool(source.dataset_names):
        raise ValueError(f"Give exactly one of `--{argument}` and `--{name_flag(argument)}`.")


# ---- Text files ----


@dataclass
class Scan:
    """What a first pass over a text file found.

    Args:
        file (`RowFile`): the file.
        unit (`str`): what the numbers count.
        stamp (`tuple[int, int]`): size and time of the file.
        numbers (`array`): line or row of every row, also of the bad ones.
        bad (`dict[int, str]`): the unusable rows among them, with the reasons.
        kinds (`Kinds`): of the values of the others.
    """

    file: RowFile
    unit: str
    stamp: tuple[int, int]
    numbers: array = field(default_factory=lambda: array("q"))
    bad: dict[int, str] = field(default_factory=dict)
    kinds: Kinds = field(default_factory=new_kinds)

    def good(self) -> array:
        """The numbers of the usable rows."""
        if not self.bad:
            return self.numbers
        return array("q", (number for row, number in enumerate(self.numbers) if row not in self.bad))


def scan(file: RowFile) -> Scan:
    """Read a text file once: its bad rows, and the types of its columns.

    Args:
        file (`RowFile`): JSONL, JSON or CSV.

    Raises:
        ValueError: for a file without rows, and for one that cannot be read as a whole.
    """
    if not file.stamp[0]:
        raise ValueError(f"{file.flag} is empty.")
    found = Scan(file, unit_of(file), file.stamp)
    for entry in entries_of(file):
        if entry.row is None:
            found.bad[len(found.numbers)] = str(entry.reason)
        else:
            add_kinds(found.kinds, entry.row)
        found.numbers.append(entry.number)
    if not found.numbers:
        raise ValueError(f"{file.flag} has no rows.")
    return found


def scan_all(files: list[RowFile]) -> tuple[list[Scan], BadRows]:
    """[`scan`] for several files, and the bad rows of all of them, numbered from the first file on."""
    scans = [scan(file) for file in files]
    ends: list[tuple[int, Scan]] = []
    size = 0
    for one in scans:
        ends.append((size, one))
        size += len(one.numbers)

    def where(row: int) -> str:
        start, one = next(pair for pair in reversed(ends) if pair[0] <= row)
        return f"{one.file.argument} {one.file.name}, {one.unit} {one.numbers[row - start]:,}"

    bad = BadRows(size, where)
    for start, one in ends:
        for row, reason in one.bad.items():
            bad.add(start + row, reason)
    return scans, bad


def _part_of(scan: Scan) -> Part:
    """The rows of a scanned file."""
    file = scan.file
    if len(scan.bad) == len(scan.numbers):
        raise ValueError(f"{file.flag}: none of its {len(scan.bad):,} rows can be used.")
    rows = (entry.row for entry in entries_of(file) if entry.row is not None)
    dataset = cached_dataset(rows, scan.kinds, f"{file.format[0]}{digest(file.path)}")
    lines = file if scan.unit == "line" and file.format in ("json", "jsonl") else None
    return Part(dataset, file.name, file.stem, file.argument, scan.unit, scan.good(), lines, scan.stamp)


# ---- Other sources ----


def _cause(error: BaseException) -> str:
    """The innermost reason: `datasets` hides it behind a sentence that says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _from_library(what: str, *args: Any, **options: Any) -> Any:
    """`load_dataset` with errors that name the file.

    Raises:
        ValueError: with the flag, the file and the innermost cause.
    """
    try:
        return load_dataset(*args, **options)
    except (DatasetGenerationError, StopIteration, pyarrow.ArrowException) as error:
        raise ValueError(f"{what} cannot be read: {_cause(error)}") from error


def _load_saved(folder: Path, split: str, what: str) -> Dataset:
    """The rows that `save_to_disk` wrote."""
    found = load_from_disk(str(folder))
    if not isinstance(found, DatasetDict):
        return found
    if split not in found:
        raise ValueError(f"{what} has no split {split!r}; its splits are {', '.join(found)}.")
    return found[split]


def _is_saved(name: str) -> bool:
    return any((Path(name).expanduser() / mark).is_file() for mark in SAVED_MARKS)


def _numbered(rows: Dataset, name: str, source: str, argument: str) -> Part:
    rows = without_null_keys(with_exact_json(rows))
    return Part(rows, name, source, argument, "row", range(1, len(rows) + 1))


def _from_file(file: RowFile, source: RowSource) -> Part:
    """The rows of a Parquet file or of a folder of `save_to_disk`."""
    if file.format == SAVED:
        rows = _load_saved(file.path, source.split, file.flag)
    else:
        rows = _from_library(file.flag, file.format, data_files=str(file.path), split="train")
    if not len(rows):
        raise ValueError(f"{file.flag} has no rows.")
    return _numbered(rows, file.name, file.stem, file.argument)


def _from_hub(name: str, source: RowSource, argument: str) -> Part:
    what = f"`--{name_flag(argument)} {name}`"
    if _is_saved(name):
        rows = _load_saved(Path(name).expanduser(), source.split, what)
    else:
        where = {"split": source.split, "revision": source.revision}
        rows = _from_library(what, name, source.config_name, **where)
    public = public_name(name) or name
    return _numbered(rows, public, public.rpartition("/")[2], name_flag(argument))


# ---- All sources ----


def _read_parts(source: RowSource, argument: str, skip_bad_rows: bool) -> tuple[list[Part], BadRows]:
    check_one_of(source, argument)
    if source.dataset_names:
        return [_from_hub(name, source, argument) for name in source.dataset_names], BadRows(0, str)
    files = find_files(source.files, argument)
    scans, bad = scan_all([file for file in files if file.format in TEXT_FORMATS])
    if not skip_bad_rows:
        bad.refuse()
    by_path = {one.file.path: one for one in scans}
    return [_part_of(by_path[f.path]) if f.path in by_path else _from_file(f, source) for f in files], bad


def _joined(tables: list[Dataset]) -> Dataset:
    """The rows of several tables; columns whose types differ become JSON, in which nothing is converted."""
    if len(tables) == 1:
        return tables[0]
    types: dict[str, set[str]] = {}
    for table in tables:
        for name, feature in table.features.items():
            types.setdefault(name, set()).add(repr(feature))
    differing = {name for name, found in types.items() if len(found - {"Value('null')"}) > 1}
    for at, table in enumerate(tables):
        for name in differing & set(table.column_names):
            tables[at] = as_json_column(tables[at], name)
    return with_exact_json(concatenate_datasets(tables))


def _with_sources(tables: list[Dataset], parts: list[Part]) -> list[Dataset]:
    """The tables with a column of the file or Hub dataset of each row; those that have such a column keep it."""
    if len(tables) == 1:
        return tables
    return [
        table if SOURCE in table.column_names else with_column(table, SOURCE, [part.source] * len(table))
        for table, part in zip(tables, parts, strict=True)
    ]


def _check_one_format(tables: list[Dataset], parts: list[Part], argument: str) -> None:
    """Raise ValueError for files of several formats: the rows of one run are prepared in one way."""
    found: dict[tuple[str, ...] | None, str] = {}
    for table, part in zip(tables, parts, strict=True):
        found.setdefault(format_of(table.column_names), part.name)
    if len(found) > 1:
        each = "; ".join(f"{name} has {' and '.join(f'`{n}`' for n in names or ())}" for names, name in found.items())
        raise ValueError(
            f"`--{argument}`: the rows of one run must be in one format, but {each}. Rewrite the rows, or give them "
            "the same columns with `--columns`."
        )


def load_rows(source: RowSource, argument: str, skipped: Collection[str] = ()) -> Dataset:
    """The rows with the columns that they have.

    Args:
        source (`RowSource`): where to read.
        argument (`str`): name of the files' flag, for messages.
        skipped (`Collection[str]`): the places of rows to leave out: those that an earlier run left out. Rows that cannot
            be read are then left out too.

    Raises:
        ValueError: if not exactly one kind of source is given, a file does not exist, cannot be read or has a bad row,
            or its format is not known; the message has the flag.
    """
    parts, _ = _read_parts(source, argument, skip_bad_rows=bool(skipped))
    if skipped:
        parts = [
            part.select([row for row in range(len(part.rows)) if part.where(row) not in skipped]) for part in parts
        ]
    return _joined(_with_sources([part.rows for part in parts], parts))


def read_rows(
    source: RowSource, argument: str, columns: Mapping[str, str] | None = None, skip_bad_rows: bool = False
) -> RawRows:
    """The rows with the columns that training has, and the place of each.

    Args:
        source (`RowSource`): where to read.
        argument (`str`): name of the files' flag, for messages.
        columns (`Mapping[str, str]`, *optional*): new names of columns; see [`canonical`].
        skip_bad_rows (`bool`): leave rows out that cannot be read, instead of an error.

    Raises:
        ValueError: see [`load_rows`]; also for rows in no known format.
    """
    parts, bad = _read_parts(source, argument, skip_bad_rows)
    found = [canonical(part.rows, columns or {}, f"{part.argument} {part.name}") for part in parts]
    tables = [table for table, _, _ in found]
    _check_one_format(tables, parts, argument)
    rows = _joined(_with_sources(tables, parts))
    notes = list(dict.fromkeys(note for _, note, _ in found if note))
    return RawRows(rows, parts, argument, bad.report(), notes, any(applied for *_, applied in found))


def raw_table(raw: RawRows) -> Dataset:
    """All rows with the columns that the files have.

    Args:
        raw (`RawRows`): the rows.
    """
    return _joined([part.rows for part in raw.parts])


def source_names(source: RowSource, argument: str) -> Iterator[str]:
    """The names of the files or Hub datasets, without reading them."""
    if source.dataset_names:
        yield from source.dataset_names
    else:
        yield from (file.name for file in find_files(source.files, argument))
