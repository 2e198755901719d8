"""The selected rows as a file."""

from functools import partial
from pathlib import Path

from datasets import Dataset

from hf_gist.commands.flags import SelectArguments
from hf_gist.gist.selection import Selection
from hf_gist.utils.disk import write


def rows_file(arguments: SelectArguments) -> Path:
    """Where the selected rows are written."""
    return arguments.folder / f"selected.{arguments.output_format}"


def write_table(rows: Dataset, path: Path) -> None:
    """Write rows as JSONL or Parquet, by the suffix of the path."""
    write(path, rows.to_parquet if path.suffix == ".parquet" else partial(rows.to_json, force_ascii=False))


def write_rows(pool: Dataset, selection: Selection, arguments: SelectArguments) -> Path:
    """Write the selected rows, best first; those of a JSONL pool as the original lines.

    Args:
        pool (`Dataset`): the raw pool.
        selection (`Selection`): a selection from it.
        arguments (`SelectArguments`): output folder and format.

    Returns:
        `Path`: the file.
    """
    path = rows_file(arguments)
    lines = [] if arguments.output_format == "parquet" else jsonl_lines(arguments.train_file)
    if len(lines) == len(pool):
        # unchanged lines, because reading them as a table rewrites dates and numbers
        text = "".join(lines[i] + "\n" for i in selection.indices)
        write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
    else:
        write_table(pool.select(selection.indices), path)
    return path


def jsonl_lines(file: str | None) -> list[str]:
    """The lines of a `.jsonl` file without the empty ones; an empty list for other files."""
    if file is None or not file.endswith(".jsonl"):
        return []
    with open(file, encoding="utf-8") as opened:
        return [line.rstrip("\n") for line in opened if line.strip()]
