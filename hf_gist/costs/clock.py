"""Seconds of the phases of a training run, across restarts."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_gist.costs.accounting import Sizes, training_cost
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import peak_memory_bytes
from hf_gist.utils.disk import read_json, write_json


CLOCK = "seconds.json"


class RunClock:
    """Adds the time between two calls of [`RunClock.record`] to a phase; starts when it is created."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def record(self, phase: str | None) -> None:
        """Add the time since the last record to a phase; `None` discards it."""
        now = time.perf_counter()
        if phase is not None:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def save(self, folder: Path) -> None:
        """Write the seconds into a checkpoint."""
        write_json(folder / CLOCK, self.seconds)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint; steps lost when a process was killed are not counted."""
        if (folder / CLOCK).exists():
            self.seconds = read_json(folder / CLOCK)

    def cost(
        self,
        phase: str,
        model: torch.nn.Module,
        lengths: np.ndarray | None,
        rows: Sequence[int] | np.ndarray,
        **more: Any,
    ) -> PhaseCost:
        """Cost of training on `rows`.

        Args:
            phase (`str`): its name.
            model (`nn.Module`): the model in training.
            lengths (`np.ndarray`, *optional*): tokens of each row of the pool `[N]`.
            rows (`Sequence[int]`): the rows of all steps, repeated as often as they were trained on.
        """
        more["peak_memory_bytes"] = peak_memory_bytes(next(model.parameters()).device)
        seconds = round(self.seconds.get(phase, 0.0), 3)
        if lengths is None:
            return PhaseCost(phase, seconds, len(rows), **more)
        return training_cost(ModelWork.of(model), Sizes(lengths[rows], 0), phase, seconds, **more)
