"""Imports of other libraries."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_module(name: str) -> Iterator[None]:
    """Import a library as if another one, which it uses if it can, was not installed.

    Args:
        name (`str`): the package to hide. If it was imported before, it is unchanged afterwards.
    """
    hidden = {key: module for key, module in sys.modules.items() if key == name or key.startswith(f"{name}.")}
    for key in hidden:
        del sys.modules[key]
    missing: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    missing[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(hidden)
