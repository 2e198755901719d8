"""Peak memory of a call as counted by the allocator: the maximum minus what was allocated before."""

from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(function: Callable[[], Any], device: str) -> int:
    """Largest number of bytes that `function` has allocated at a time on `device` (`cpu` or `cuda`)."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    live = peak = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
