"""Where time goes: kernels, launches and host synchronisations of a scored batch and of a GAST step."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from acceptance.gast_speed import PAPER_RANK, options_for
from acceptance.gast_speed import Bench as GASTBench
from acceptance.models import ATTENTION, PAPER_GAST, Shape, adapted, workload
from acceptance.record import Result, Steps
from acceptance.scoring_speed import Bench, Scale, score_floor


SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
OF_THE_PROFILER = 1
"""Synchronisations at the end of a profile."""

KERNELS_SHOWN = 14


def profiled(function: Callable[[], Any], device: str) -> tuple[dict[str, Any], str]:
    """Counts of one call, its time without the profiler, and its most expensive kernels (operations on a CPU)."""
    function()
    milliseconds = 1000 * statistics.median(timed(function, device) for _ in range(2))
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        function()
        if device == "cuda":
            torch.cuda.synchronize()
    events = found.events()
    names = Counter(event.name for event in events)
    operations = sum(count for name, count in names.items() if name.startswith("aten::"))
    values = {"ms": milliseconds, "operations": operations, "host reads": names["aten::_local_scalar_dense"]}
    if device == "cuda":
        on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        values["kernels"] = len(on_device)
        values["kernel ms"] = sum(event.device_time_total for event in on_device) / 1000
        values["launches"] = sum(names[name] for name in LAUNCHES)
        values["synchronisations"] = sum(names[name] for name in SYNCHRONISATIONS) - OF_THE_PROFILER
    return values, _most_expensive(events, device)


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds of a call, with the device's work."""
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _most_expensive(events: Any, device: str) -> str:
    total: Counter[str] = Counter()
    for event in events:
        if device == "cuda" and event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name[:90]] += event.device_time_total
        elif device == "cpu":
            total[event.name] += event.self_cpu_time_total
    return "\n".join(
        f"{microseconds / 1000:9.2f} ms  {name}" for name, microseconds in total.most_common(KERNELS_SHOWN)
    )


def _results(variants: dict[str, Callable[[], Any]], device: str) -> list[Result]:
    results = []
    for step, function in variants.items():
        values, detail = profiled(function, device)
        results.append(Result(None, {"step": step, **values}, detail))
    return results


def _scoring(base: Callable[[], Any], rank: int, shape: Shape, device: str, scale: Scale) -> list[Result]:
    """One batch."""
    model = adapted(base(), rank, ATTENTION).eval()
    bench = Bench(model, rank, scale, shape.vocabulary)
    rows = workload(180 // scale.shortened, bench.tokens_per_batch // 2, shape.vocabulary)
    bench.find_basis()
    variants = {
        f"scoring r{rank}: floor": lambda: score_floor(model, rows, bench.tokens_per_batch, "auto"),
        f"scoring r{rank}: library": lambda: bench.library(rows, "auto"),
    }
    try:
        return _results(variants, device)
    finally:
        model.unload()


def _gast(base: Callable[[], Any], shape: Shape, device: str, small: bool) -> list[Result]:
    """One step."""
    model = adapted(base(), PAPER_RANK, PAPER_GAST, dropout=0.05)
    bench = GASTBench(model, options_for(shape, device, small))
    variants = {"GAST: stock": bench.stock.step, "GAST: every 1": bench.variant("every 1").step}
    try:
        return _results(variants, device)
    finally:
        model.unload()


def steps(base: Callable[[], Any], shape: Shape, device: str, small: bool, scale: Scale) -> Steps:
    """A scored batch beside the floor, a GAST step beside the stock step."""
    yield "GAST", lambda: _gast(base, shape, device, small)
    for rank in scale.ranks:
        yield "scoring", lambda rank=rank: _scoring(base, rank, shape, device, scale)
