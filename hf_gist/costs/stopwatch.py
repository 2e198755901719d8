"""Seconds and peak memory of the phases of a selection, and the names of the phases."""

import sys
import time
from collections.abc import Iterator
from types import ModuleType

import psutil
import torch


resource: ModuleType | None
try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None


WARMUP = "warm-up"
"""Phase of a training run."""
TRAINING = "training"
"""Phase of a training run."""
TARGET_LOSS = "target loss"
"""Phase of a training run: measuring the loss of the target rows."""

SHORTLIST, TARGETS, SUBSPACE, SCORING, COUNTING, CHOOSING = (
    "shortlist",
    "targets",
    "subspace",
    "scoring",
    "counting",
    "choosing",
)
"""Phases of a selection."""


class Stopwatch:
    """Seconds and peak memory per phase.

    Args:
        device (`torch.device`, *optional*): device whose peak memory is recorded; by default the host memory of the
            process.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.forecasts: dict[str, float] = {}
        self.device = device or torch.device("cpu")
        self._last = time.perf_counter()

    def record(self, phase: str) -> None:
        """End the current phase."""
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._last, 3)
        self.peaks[phase] = peak_memory_bytes(self.device)
        self._last = now

    def phases(self) -> Iterator[tuple[str, float, int]]:
        """Name, seconds and peak memory in bytes of each phase so far."""
        for phase, seconds in self.seconds.items():
            yield phase, seconds, self.peaks[phase]


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the allocator on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return getattr(psutil.Process().memory_info(), "peak_wset")  # noqa: B009 - a field on Windows only
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
