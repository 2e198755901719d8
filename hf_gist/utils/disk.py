"""Files: written to a temporary name and renamed, with errors that name the path."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write(path: Path, writer: Callable[[str], Any]) -> None:
    """Write a file atomically: `writer` writes to a temporary path in the same folder, which is then renamed.

    Args:
        path (`Path`): the file.
        writer (`Callable[[str], Any]`): writes to the path that it is called with.

    Raises:
        OSError: with the path, if it cannot be written; an earlier file of this name is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            writer(str(temporary))
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to write errors: libraries report a full disk in several types of errors, without the path.

    Args:
        path (`Path`): the file or folder that is written inside the `with` block.

    Raises:
        OSError: with the path, for an `OSError` or `SafetensorError` inside the block.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written ({error}).") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; values that JSON cannot represent are written as their `str`.

    Raises:
        OSError: see [`write`].
    """
    text = json.dumps(value, indent=2, default=str) + "\n"
    write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def read(path: Path, reader: Callable[[str], Any], written: str = "at the end of a selection") -> Any:
    """Read an artifact.

    Args:
        path (`Path`): the file.
        reader (`Callable[[str], Any]`): reads the path that it is called with.
        written (`str`): when the file is written, for the message.

    Raises:
        ValueError: with the path, if the file is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it is written {written}. Is this the right folder?")
    try:
        return reader(str(path))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Repeat the run that wrote it.") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: see [`read`].
    """
    return read(path, lambda name: json.loads(Path(name).read_text(encoding="utf-8")))


def as_json(value: Any) -> Any:
    """A value as it would be read back from JSON (tuples as lists), to compare it with one from a file."""
    return json.loads(json.dumps(value, default=str))
