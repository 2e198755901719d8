"""An earlier selection in the output folder: named before it is replaced, and its files removed."""

from pathlib import Path

from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.history import HISTORY
from hf_gist.gradients.partial import PARTIAL
from hf_gist.report.runs.stream import SELECTED_FILES, STREAM_FILE
from hf_gist.utils.disk import read_json
from hf_gist.utils.terminal import say_wrapped


def say_replaced(folder: Path) -> None:
    """Print that the earlier selection in a folder will be replaced, unless an interrupted run resumes there."""
    if (folder / PARTIAL).exists():
        return
    if (folder / MANIFEST).is_file():
        size = _number(folder / MANIFEST, "selected")
    elif (folder / STREAM_FILE).is_file():
        size = _number(folder / STREAM_FILE, "indices")
    else:
        return
    rows = "" if size is None else f" of {size:,} row{'' if size == 1 else 's'}"
    say_wrapped(f"The earlier selection{rows} in {folder} will be replaced.")


def _number(path: Path, key: str) -> int | None:
    """Rows of an earlier selection; `None` if its file does not say."""
    try:
        value = read_json(path)[key]
    except (ValueError, TypeError, KeyError):
        # a damaged file is replaced too
        return None
    return len(value) if isinstance(value, list) else value


def remove_others(folder: Path, written: Path | None) -> list[str]:
    """Remove the selected rows of an earlier selection, in each format, and what describes one from a stream or several.

    Args:
        folder (`Path`): the output folder of a selection from a whole pool.
        written (`Path`, *optional*): the selected rows that stay; `None` if none were written.

    Returns:
        `list[str]`: names of the removed files with rows.
    """
    for name in (STREAM_FILE, HISTORY):
        (folder / name).unlink(missing_ok=True)
    return remove_other_rows(folder, written)


def remove_other_rows(folder: Path, written: Path | None) -> list[str]:
    """Remove the selected rows of an earlier selection, in each format.

    Args:
        folder (`Path`): the output folder.
        written (`Path`, *optional*): the selected rows that stay; `None` if none were written.

    Returns:
        `list[str]`: names of the removed files.
    """
    others = [folder / name for name in SELECTED_FILES if folder / name != written and (folder / name).is_file()]
    for path in others:
        path.unlink()
    return [path.name for path in others]
