"""Interruptible scoring: finished batches are saved to disk, and a new run resumes after the last saved batch."""

import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_gist.errors import UnfinishedScoresWarning
from hf_gist.utils.disk import read_json, write, write_json


PARTIAL = "partial"
KEY = "key.json"
SECONDS_BETWEEN_SAVES = 60.0


@dataclass
class Shards:
    """The finished batches of one pass over a dataset.

    Every process writes its own files and all are read on restart, so the number of processes may change.

    Args:
        folder (`Path`): on a file system that all processes share.
        name (`str`): name of the pass.
        every (`int`, *optional*): save after this many batches; by default about every minute.
    """

    folder: Path
    name: str
    every: int | None = None
    done: set[int] = field(default_factory=set)
    _waiting: list[tuple[int, Sequence[int]]] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)

    def restore(self, facts: dict[str, Tensor]) -> None:
        """Load the results of earlier runs on the main process, and broadcast the finished batches to all processes.

        Args:
            facts (`dict[str, Tensor]`): tensors of `N` rows each, filled in place; the caller sums them over the
                processes.
        """
        found = [sorted(self.done)]
        if PartialState().is_main_process:
            for path in sorted(self.folder.glob(f"{self.name}-*.safetensors")):
                self._restore_one(path, facts)
            found = [sorted(self.done)]
        broadcast_object_list(found)
        self.done = set(found[0])

    def _restore_one(self, path: Path, facts: dict[str, Tensor]) -> None:
        try:
            tensors = load_file(path)
            batches = set(tensors.pop("batches").tolist())
            rows = tensors.pop("rows")
            for name, values in facts.items():
                if len(tensors[name]) != len(rows) or tensors[name].shape[1:] != values.shape[1:]:
                    raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            text = f"{path} cannot be read ({error}); its rows are scored again."
            warnings.warn(text, UnfinishedScoresWarning, stacklevel=2)
            return
        if batches <= self.done:
            return
        for name, values in facts.items():
            values[rows] = tensors[name]
        self.done |= batches

    def add(self, batch: int, rows: Sequence[int], facts: dict[str, Tensor]) -> None:
        """Record a finished batch, and save if a save is due."""
        self._waiting.append((batch, rows))
        due = time.monotonic() - self._last >= SECONDS_BETWEEN_SAVES
        if due if self.every is None else len(self._waiting) >= self.every:
            self.save(facts)

    def save(self, facts: dict[str, Tensor]) -> None:
        """Atomically write the batches finished since the last save."""
        if not self._waiting:
            return
        rows = torch.tensor([row for _, own in self._waiting for row in own])
        tensors = {name: values[rows].contiguous() for name, values in facts.items()}
        tensors |= {"rows": rows, "batches": torch.tensor([batch for batch, _ in self._waiting])}
        path = self.folder / f"{self.name}-{uuid.uuid4().hex}.safetensors"
        write(path, lambda name: save_file(tensors, name))
        self._waiting = []
        self._last = time.monotonic()


@dataclass(frozen=True)
class PartialScores:
    """A folder of unfinished scores.

    Args:
        folder (`Path`): where the scores are saved.
        every (`int`, *optional*): see [`Shards`].
        start_over (`bool`): delete scores of other settings with a warning instead of raising an error; for training
            runs, which have already run the warm-up.
    """

    folder: Path
    every: int | None = None
    start_over: bool = False

    def open(self, key: dict[str, Any]) -> None:
        """Create the folder, or check that it was created with the same settings.

        Args:
            key (`dict`): everything that the scores depend on.

        Raises:
            ValueError: naming the differences.
        """
        state = PartialState()
        path = self.folder / KEY
        if path.exists():
            try:
                refuse_other_settings(read_json(path), key, self.folder)
            except ValueError as error:
                if not self.start_over:
                    raise
                warnings.warn(f"Unfinished scores are not used: {error}", UnfinishedScoresWarning, stacklevel=2)
                state.wait_for_everyone()
                self.remove()
        state.wait_for_everyone()
        if state.is_main_process and not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, key)
        state.wait_for_everyone()

    def shards(self, name: str) -> Shards:
        """The finished batches of a pass."""
        return Shards(self.folder, name, self.every)

    def kept(self, name: str) -> dict[str, Tensor] | None:
        """Tensors saved under a name; `None` if there are none."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else None

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Save tensors under a name; the main process writes."""
        if PartialState().is_main_process:
            write(self.folder / f"{name}.safetensors", lambda path: save_file(tensors, path))

    def remove(self) -> None:
        """Delete the folder, once the final scores are saved elsewhere."""
        if PartialState().is_main_process and self.folder.exists():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Check that a folder was written with the same settings.

    Raises:
        ValueError: naming the differences.
    """
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is now {now.get(name)!r}" for name in names)
        raise ValueError(f"{where} was written with other settings: {changes}. Use another folder or delete this one.")
