"""The files behind a flag: paths, folders and patterns, their formats and compressions."""

import bz2
import gzip
import io
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any

import pyarrow


FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""File suffix to format."""

SAVED = "saved"
"""Format of a folder that `save_to_disk` wrote."""

SAVED_MARKS = ("state.json", "dataset_dict.json")


def _open_zstd(path: str) -> Any:
    compressed = pyarrow.CompressedInputStream(pyarrow.OSFile(path, "rb"), "zstd")
    return io.BufferedReader(compressed)


COMPRESSIONS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
"""Suffix of a compressed text file to its opener."""

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException)
"""What the openers raise for a file that is cut off or is not compressed."""


@dataclass(frozen=True)
class RowFile:
    """A file, or a folder that `save_to_disk` wrote.

    Args:
        path (`Path`): where it is.
        format (`str`): a value of [`FORMATS`], or [`SAVED`].
        name (`str`): its name in messages, cards and manifests, without the folders.
        argument (`str`): the flag it was given with, without dashes.
    """

    path: Path
    format: str
    name: str
    argument: str

    @property
    def flag(self) -> str:
        """The flag and the file, for messages."""
        return f"`--{self.argument} {self.path}`"

    @property
    def stem(self) -> str:
        """The name without suffixes, which names the source of the rows."""
        return Path(self.name).name.removesuffix("".join(suffixes_of(self.path)))

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the last change."""
        facts = self.path.stat()
        return facts.st_size, facts.st_mtime_ns

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes.

        Raises:
            ValueError: for a damaged file.
        """
        compression = suffixes_of(self.path)[1]
        opener = COMPRESSIONS.get(compression)
        try:
            with opener(str(self.path)) if opener else open(self.path, "rb") as opened:
                yield opened
        except DAMAGED as error:
            raise ValueError(f"{self.flag} cannot be read: {error}") from error


def suffixes_of(path: Path) -> tuple[str, str]:
    """The suffixes of format and compression, as in `(".jsonl", ".gz")`; the second is often empty."""
    if path.suffix in COMPRESSIONS:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def format_of(path: Path) -> str | None:
    """The format of a file or folder; `None` if it is not known."""
    if path.is_dir():
        return SAVED if any((path / mark).is_file() for mark in SAVED_MARKS) else None
    suffix, compression = suffixes_of(path)
    found = FORMATS.get(suffix)
    return None if found == "parquet" and compression else found


def _in_folder(folder: Path, argument: str) -> list[Path]:
    visible = [path for path in sorted(folder.rglob("*")) if not path.relative_to(folder).parts[0].startswith(".")]
    found = [path for path in visible if path.is_file() and format_of(path)]
    if not found:
        raise ValueError(f"`--{argument} {folder}`: the folder has no file of a known format ({', '.join(FORMATS)}).")
    return found


def _paths_of(given: str, argument: str) -> list[Path]:
    """The files that one value of a flag stands for."""
    path = Path(given).expanduser()
    if path.is_file() or format_of(path) == SAVED:
        return [path]
    if path.is_dir():
        return _in_folder(path, argument)
    if has_magic(given):
        matches = [Path(name) for name in sorted(glob(str(path), recursive=True))]
        found = [match for match in matches if match.is_file() or format_of(match) == SAVED]
        if found:
            return found
        raise ValueError(f"`--{argument} {given}`: no file matches.")
    raise ValueError(f"`--{argument} {given}`: no such file.")


def _names_of(paths: Sequence[Path]) -> list[str]:
    """The file names; files of the same name in several folders with their folder."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def find_files(given: Sequence[str], argument: str) -> list[RowFile]:
    """The files that the values of a flag stand for, each once.

    Args:
        given (`Sequence[str]`): files, folders and patterns such as `data/*.jsonl`.
        argument (`str`): the flag, without dashes.

    Raises:
        ValueError: for a value without a file, and for unknown formats.
    """
    # a list, because a pattern may match a file that is also given by name
    paths = list(dict.fromkeys(path for one in given for path in _paths_of(one, argument)))
    files = []
    for path, name in zip(paths, _names_of(paths), strict=True):
        found = format_of(path)
        if found is None:
            known = f"{', '.join(FORMATS)}; all but .parquet also with {', '.join(COMPRESSIONS)}"
            raise ValueError(f"`--{argument} {path}`: unknown format; use one of {known}.")
        files.append(RowFile(path, found, name, argument))
    return files
