"""Files: written to a temporary name and renamed, and read with errors that name them."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


def write(path: Path, writer: Callable[[str], Any]) -> None:
    """Call `writer` with a temporary name beside `path`, then rename: the file is there whole or not at all.

    Raises:
        OSError: naming the file, if it cannot be written; what stood under its name before is still there.
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
    """Say in the error what could not be written; a full disk comes as three types of error, none with the name.

    Raises:
        OSError: naming the file or folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written ({error}).") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON as [`write`] does."""
    text = json.dumps(value, indent=2, default=str) + "\n"
    write(path, lambda name: Path(name).write_text(text, encoding="utf-8"))


def read(path: Path, reader: Callable[[str], Any]) -> Any:
    """Read one artifact.

    Raises:
        ValueError: naming the file, if it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; it is written at the end of a selection. Is this the right folder?")
    try:
        return reader(str(path))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}); write the selection again.") from error


def read_json(path: Path) -> Any:
    """Read JSON as [`read`] does."""
    return read(path, lambda name: json.loads(Path(name).read_text(encoding="utf-8")))


def as_json(value: Any) -> Any:
    """A value as it comes back from JSON, to compare with what was read."""
    return json.loads(json.dumps(value, default=str))
