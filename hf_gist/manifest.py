"""What a run says of itself: versions, counts, seconds, peak memory."""

import platform
import resource
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from hf_gist.config import GISTConfig
from hf_gist.lora import model_identity
from hf_gist.provenance import describe_dataset
from hf_gist.version import __version__


PREFILTER, TARGETS, SUBSPACE, SCORING, COUNTING, CHOOSING = (
    "prefilter",
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
        device (`torch.device`, *optional*): whose peak memory is looked at; by default that of the process.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.forecasts: dict[str, float] = {}
        self.device = device or torch.device("cpu")
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End the phase that is running."""
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
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def package_versions() -> dict[str, str]:
    """Versions of what a run depends on."""
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def training_manifest(model: nn.Module, **datasets: Any) -> dict[str, Any]:
    """What a reader needs to know of a training without a selection: versions, model, and data sets by role."""
    sized = {role: dataset for role, dataset in datasets.items() if hasattr(dataset, "__len__")}
    return {"hf_gist": __version__, "versions": package_versions(), "model": model_identity(model)} | {
        role: describe_dataset(dataset) for role, dataset in sized.items()
    }


def run_manifest(model: nn.Module, pool: Any, targets: Any, config: GISTConfig) -> dict[str, Any]:
    """Everything that a reader needs to repeat a selection."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "hf_gist": __version__,
        "versions": package_versions(),
        "model": model_identity(model) | {"trainable_parameters": trainable},
        "train_dataset": describe_dataset(pool),
        "target_dataset": describe_dataset(targets),
        "seed": config.seed,
        "processes": PartialState().num_processes,
    }
