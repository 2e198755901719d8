"""The selected rows as a file."""

from collections.abc import Iterable
from pathlib import Path

from hf_gist.commands.flags import SelectArguments
from hf_gist.data.reading.load import raw_table
from hf_gist.data.reading.origins import RawRows
from hf_gist.gist.selection import Selection
from hf_gist.utils.disk import write


def rows_file(arguments: SelectArguments) -> Path:
    """Where the selected rows are written."""
    return arguments.folder / f"selected.{arguments.output_format}"


def write_lines(lines: Iterable[bytes], path: Path) -> None:
    """Write lines of JSONL.

    Args:
        lines (`Iterable[bytes]`): without their ends.
        path (`Path`): the file.
    """
    text = b"".join(line + b"\n" for line in lines)
    write(path, lambda name: Path(name).write_bytes(text))


def write_rows(pool: RawRows, selection: Selection, arguments: SelectArguments) -> Path:
    """Write the selected rows, best first; those of a JSONL pool as the original lines.

    Args:
        pool (`RawRows`): the raw pool.
        selection (`Selection`): a selection from it.
        arguments (`SelectArguments`): output folder and format.

    Returns:
        `Path`: the file.
    """
    path = rows_file(arguments)
    if arguments.output_format == "parquet":
        write(path, raw_table(pool).select(selection.indices).to_parquet)
    else:
        write_lines(pool.texts(selection.indices), path)
    return path
