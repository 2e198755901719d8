"""Rows of JSONL, JSON and CSV files with their line numbers; what cannot be read is an entry with its reason."""

import codecs
import csv
import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from hf_gist.data.reading.files import RowFile


UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

LONGEST_CELL = 2**31 - 1
"""Characters of a CSV cell; the default of the csv module is 131,072."""


class Entry(NamedTuple):
    """A row of a file, or the reason why it cannot be used.

    Args:
        number (`int`): the line that it begins on, or its number in a JSON list; from 1.
        row (`dict`, *optional*): the row.
        reason (`str`, *optional*): why there is no row.
        line (`bytes`, *optional*): the line of a JSONL file, without its end and without a byte order mark.
    """

    number: int
    row: dict[str, Any] | None
    reason: str | None = None
    line: bytes | None = None


class _Unusable(ValueError):
    """A row that cannot be read; the text is the reason."""


# ---- JSON ----


def _text_of(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise _Unusable(f"no UTF-8 (byte 0x{byte:02x} at column {error.start + 1}); save the file as UTF-8") from None


def _why_no_json(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].strip()
    if error.msg == "Extra data" and rest == ",":
        return "no JSON: a comma after the object (a JSONL file has none between its lines)"
    if error.msg == "Extra data" and rest.startswith("{"):
        return f"two objects on one line (the second at column {error.colno})"
    return f"no JSON: {_said(error)} at column {error.colno}"


def _said(error: json.JSONDecodeError) -> str:
    """The message of the json module, which may end as if a position followed."""
    return error.msg.rstrip(": ").removesuffix(" at")


def _check_object(value: Any, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        raise _Unusable(f"{kind} instead of an object with the columns of the row")
    # `\ud83d` without its second half is JSON, but no text; one character is found much faster than three
    if "\\" in text and ("\\ud" in text or "\\uD" in text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start]).strip("'")
            raise _Unusable(f"half of a surrogate pair ({half}), which is no character") from None
    return value


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object of a line of JSONL.

    Raises:
        ValueError: with the reason why it is none.
    """
    text = _text_of(raw)
    try:
        return _check_object(json.loads(text), text)
    except json.JSONDecodeError as error:
        raise _Unusable(_why_no_json(text, error)) from None
    except RecursionError:
        raise _Unusable("no JSON: nested too deeply") from None


def lines_of(opened: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers, without their ends and without byte order marks."""
    for number, ended in enumerate(opened, 1):
        # files that were joined have a byte order mark in the middle
        line = ended.rstrip(b"\r\n").removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _read_jsonl(opened: IO[bytes]) -> Iterator[Entry]:
    for number, line in lines_of(opened):
        try:
            yield Entry(number, parse_object(line), None, line)
        except ValueError as error:
            yield Entry(number, None, str(error))


def _list_of(text: str, file: RowFile) -> list[Any]:
    """The rows of a file that is one JSON value."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno:,}, column {error.colno}"
        raise ValueError(f"{file.flag}, {place}: no JSON: {_said(error)}.") from None
    if isinstance(value, list):
        return value
    keys = f" with the keys {', '.join(value)}" if isinstance(value, dict) else ""
    raise ValueError(f"{file.flag} contains one JSON value{keys}; expected a list of rows, or one row per line.")


def _read_list(file: RowFile) -> Iterator[Entry]:
    with file.open() as opened:
        raw = opened.read()
    text = _whole_text(raw, file)
    for number, value in enumerate(_list_of(text, file), 1):
        try:
            yield Entry(number, _check_object(value, text))
        except ValueError as error:
            yield Entry(number, None, str(error))


def _whole_text(raw: bytes, file: RowFile) -> str:
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        text = f"{file.flag}, line {line:,}: no UTF-8 (byte 0x{byte:02x}); save the file as UTF-8."
        raise ValueError(text) from None


def is_list(file: RowFile) -> bool:
    """Whether a JSON or JSONL file is one value, in general a list, instead of one object per line."""
    with file.open() as opened:
        first = b""
        for ended in opened:
            first = ended.removeprefix(codecs.BOM_UTF8).strip()
            if first:
                break
        one_line = not opened.read(1)
    if first.startswith(b"["):
        # `[1, 2]` on the first of several lines is a bad line
        return one_line or not _is_json(first)
    return file.format == "json" and bool(first) and not _is_json(first) and not one_line


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


# ---- CSV ----


def _text_lines(opened: IO[bytes], file: RowFile) -> Iterator[str]:
    for number, raw in enumerate(opened, 1):
        try:
            yield (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            text = f"{file.flag}, line {number:,}: no UTF-8 (byte 0x{byte:02x}); save the file as UTF-8."
            raise ValueError(text) from None


def _header_of(cells: list[str], file: RowFile) -> list[str]:
    # the name that pandas and `datasets` give to a column of row numbers
    names = [name or f"Unnamed: {at}" for at, name in enumerate(cells)]
    twice = [name for at, name in enumerate(names) if name in names[:at]]
    if twice:
        raise ValueError(f"{file.flag}: the column `{twice[0]}` is there twice.")
    return names


def _csv_entry(number: int, cells: list[str], names: list[str]) -> Entry:
    if len(cells) != len(names):
        return Entry(number, None, f"{len(cells)} cells, but the header has {len(names)}")
    # texts as they are: a number read as one would lose `007` and `1.0`
    return Entry(number, {name: cell or None for name, cell in zip(names, cells, strict=True)})


def _read_csv(opened: IO[bytes], file: RowFile) -> Iterator[Entry]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(_text_lines(opened, file), delimiter="\t" if file.format == "tsv" else ",", strict=True)
    names: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quoted cell has no end" if "end of data" in str(error) else f"no CSV: {error}"
            yield Entry(number, None, what)
            continue
        if not cells:
            continue
        if names is None:
            names = _header_of(cells, file)
        else:
            yield _csv_entry(number, cells, names)


# ---- All ----


def unit_of(file: RowFile) -> str:
    """What the numbers of the entries count: `line` or `row`."""
    return "row" if file.format in ("json", "jsonl") and is_list(file) else "line"


def _check_encoding(file: RowFile) -> None:
    with file.open() as opened:
        start = opened.read(4)
    if start.startswith(UTF_16) or b"\0" in start:
        raise ValueError(f"{file.flag}, line 1: no UTF-8 but UTF-16 or UTF-32; save the file as UTF-8.")


def entries_of(file: RowFile) -> Iterator[Entry]:
    """The rows of a JSONL, JSON or CSV file.

    Raises:
        ValueError: if the file as a whole cannot be read, with the line.
    """
    _check_encoding(file)
    if unit_of(file) == "row":
        yield from _read_list(file)
        return
    with file.open() as opened:
        yield from _read_csv(opened, file) if file.format in ("csv", "tsv") else _read_jsonl(opened)
