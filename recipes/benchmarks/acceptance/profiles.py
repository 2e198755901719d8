"""Where time goes: kernels, launches and host synchronisations of a scored batch and of a GAST step."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from acceptance.gast_speed import Bench as GASTBench
from acceptance.gast_speed import options_for
from acceptance.models import ATTENTION, PAPER_GAST, Shape, adapted, workload
from acceptance.record import Result, Steps
from acceptance.scoring_speed import Bench, Scale, score_floor
from torch.profiler import ProfilerActivity, profile


SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
OF_THE_PROFILER = 1
"""Synchronisations at the end of a profile."""

KERNELS_SHOWN = 8


def profiled(function: Callable[[], Any], device: str) -> tuple[dict[str, Any], str]:
    """Counts of one call, and its most expensive kernels (operations on a CPU)."""
    function()
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as found:
        function()
        if device == "cuda":
            torch.cuda.synchronize()
    events = found.events()
    names = Counter(event.name for event in events)
    operations = sum(count for name, count in names.items() if name.startswith("aten::"))
    values = {"operations": operations, "host reads (aten::item)": names["aten::_local_scalar_dense"]}
    if device == "cuda":
        on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        values["kernels"] = len(on_device)
        values["kernel ms"] = sum(event.device_time_total for event in on_device) / 1000
        values["launches"] = sum(names[name] for name in LAUNCHES)
        values["synchronisations"] = sum(names[name] for name in SYNCHRONISATIONS) - OF_THE_PROFILER
    return values, _most_expensive(events, device)


def _most_expensive(events: Any, device: str) -> str:
    total: Counter[str] = Counter()
    for event in events:
        if device == "cuda" and event.device_type == torch.autograd.DeviceType.CUDA:
            total[event.name[:90]] += event.device_time_total
        elif device == "cpu":
            total[event.name] += event.self_cpu_time_total
    return "\n".join(f"{microseconds / 1000:9.2f} ms  {name}" for name, microseconds in total.most_common(KERNELS_SHOWN))


def _results(name: str, plain: Callable[[], Any], ours: Callable[[], Any], device: str) -> list[Result]:
    results = []
    for step, function in ((f"{name}: without the library", plain), (f"{name}: library", ours)):
        values, detail = profiled(function, device)
        results.append(Result(None, {"step": step, **values}, detail))
    return results


def steps(base: Callable[[], Any], shape: Shape, device: str, small: bool, scale: Scale) -> Steps:
    """A scored batch beside the floor, a GAST step with a support pass beside the stock step."""
    rank = scale.ranks[0]
    model = adapted(base(), rank, ATTENTION).eval()
    bench = Bench(model, rank, scale, shape.vocabulary)
    rows = workload(180 // scale.shortened, bench.tokens_per_batch, shape.vocabulary)

    def scored() -> list[Result]:
        bench.find_basis()
        floor = lambda: score_floor(model, rows, bench.tokens_per_batch, "auto")  # noqa: E731
        return _results("scoring", floor, lambda: bench.library(rows, "auto"), device)

    yield "scoring", scored
    bench.basis = {}
    model.unload()
    trained = adapted(base(), 32, PAPER_GAST, dropout=0.05)
    gast = GASTBench(trained, options_for(shape, device, small))

    def step() -> list[Result]:
        masked = gast.variant("every 1")
        return _results("GAST", gast.stock.step, masked.step, device)

    yield "GAST", step
    trained.unload()
