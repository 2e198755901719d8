"""Scoring at a large shape: the library, the floor, and a loop over rows with a full projection."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acceptance.models import ATTENTION, Shape, adapted, pad, workload
from acceptance.record import Result, Steps
from hf_gist.costs.stopwatch import Stopwatch
from hf_gist.data.batches import plan_batches
from hf_gist.data.rows import fetch_rows, row_lengths
from hf_gist.gist.scorers.base import CheckpointVectors
from hf_gist.gist.target_subspace import find_target_subspace
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.losses import prepared, sample_losses
from hf_gist.gradients.models import adapter_parameters, to_device
from hf_gist.gradients.modes import scoring_precision
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.vectors import GradientVectors


MEDIANS = {"instruction": 180, "short": 60, "long": 900}
LIBRARY_GOAL = 0.90
"""Least share of the floor's speed."""

LOOP_GOAL = 4.0
"""Least speed in loops, at a median of 180 tokens."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Args:
        ranks (`tuple[int, ...]`): ranks of the adapter on q, k, v, o.
        targets (`int`): target rows.
        tokens (`int`): tokens of a workload.
        tokens_per_batch (`dict[int, int]`): from rank; the basis of a large rank leaves less room.
        rounds (`int`): timed rounds.
        shortened (`int`): the median lengths are divided by this.
        loop_rows (`int`): rows that the loop scores.
    """

    ranks: tuple[int, ...]
    targets: int
    tokens: int
    tokens_per_batch: dict[int, int]
    rounds: int
    loop_rows: int
    shortened: int = 1

    def rows(self, name: str, vocabulary: int) -> Any:
        """The rows of a workload."""
        return workload(MEDIANS[name] // self.shortened, self.tokens, vocabulary)


LARGE = Scale((16, 128), 64, 32_768, {16: 8192, 128: 4096}, 2, 12)
TINY = Scale((4,), 8, 256, {4: 128}, 1, 4, shortened=10)


def score_floor(model: nn.Module, rows: Any, tokens_per_batch: int, scoring_dtype: str) -> None:
    """Forward and backward of the same batches with a frozen adapter: no per-sample work."""
    device = next(model.parameters()).device
    trainable = [p for p in model.parameters() if p.requires_grad]
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        for indices in plan_batches(row_lengths(rows), len(rows), tokens_per_batch):
            batch = to_device(prepared(model, pad(fetch_rows(rows, indices))), device)
            with scoring_precision(model, scoring_dtype):
                losses, _ = sample_losses(model, batch)
                losses.sum().backward()
    finally:
        handle.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)


class Bench:
    """One adapter on the model, with a basis from target gradients.

    Args:
        model (`nn.Module`): a peft model in eval mode.
        rank (`int`): of the adapter.
        scale (`Scale`): how much is measured.
        vocabulary (`int`): of the model.
    """

    def __init__(self, model: nn.Module, rank: int, scale: Scale, vocabulary: int) -> None:
        self.model = model
        self.rank = rank
        self.scale = scale
        self.vocabulary = vocabulary
        self.tokens_per_batch = scale.tokens_per_batch[rank]
        self.device = next(model.parameters()).device
        self.vectors = GradientVectors(model)
        self.basis: dict[str, Tensor] = {}

    def dataset_pass(self, scoring_dtype: str = "auto") -> DatasetPass:
        """The library's pass."""
        return DatasetPass(self.model, pad, self.tokens_per_batch, scoring_dtype, progress=False)

    def find_basis(self) -> Result:
        """Subspace of the targets."""
        median = MEDIANS["instruction"] // self.scale.shortened
        targets = workload(median, median * self.scale.targets, self.vocabulary, seed=7)
        per_checkpoint = [CheckpointVectors(self.vectors, self.vectors, self.model)]
        self.reset_peak()
        watch = Stopwatch(self.device)
        subspace = find_target_subspace(self.dataset_pass(), per_checkpoint, targets, watch, None)
        self.basis = subspace.basis[0]
        size = sum(values.numel() * 4 for values in self.basis.values())
        found = f"{len(subspace.singular)} directions, basis of {size / 2**30:.3g} GiB"
        return Result(None, {"step": "targets", "rank": self.rank, "workload": found, "peak GiB": self.peak()})

    def library(self, rows: Any, scoring_dtype: str) -> None:
        """Coordinates and norms of all rows."""
        collect_coordinates(self.dataset_pass(scoring_dtype), rows, self.basis, "rows", self.vectors)

    def loop(self, rows: Any) -> int:
        """The published code's way: a row at a time, its whole gradient, its projection; returns the rows scored."""
        parameters = adapter_parameters(self.model)
        some = range(0, len(rows), max(1, len(rows) // self.scale.loop_rows))
        for index in some:
            batch = to_device(pad([rows[index]]), self.device)
            gradients = torch.autograd.grad(self.model(**batch).loss, list(parameters.values()))
            named = zip(parameters, gradients, strict=True)
            sum(self.basis[name] @ gradient.flatten().float() for name, gradient in named).cpu()
        return len(some)

    def reset_peak(self) -> None:
        """Start measuring memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float | str:
        """GiB allocated at most since then, model and basis included."""
        if self.device.type != "cuda":
            return ""
        return torch.cuda.max_memory_allocated() / 2**30

    def seconds(self, function: Callable[[], Any]) -> float:
        """Wall time of a call, with the device's work."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(bench: Bench, name: str, scoring_dtype: str) -> list[Result]:
    """Floor and library in alternating rounds, then the loop on some rows."""
    rows = bench.scale.rows(name, bench.vocabulary)
    variants = {
        "floor": lambda: score_floor(bench.model, rows, bench.tokens_per_batch, scoring_dtype),
        "library": lambda: bench.library(rows, scoring_dtype),
    }
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    peaks: dict[str, float | str] = {}
    for turn in range(bench.scale.rounds + 1):
        for variant, function in variants.items():
            bench.reset_peak()
            taken = bench.seconds(function)
            if turn:  # the first round warms up
                seconds[variant].append(taken)
                peaks[variant] = bench.peak()
    rates = {variant: len(rows) / statistics.median(taken) for variant, taken in seconds.items()}
    share = statistics.median(f / own for f, own in zip(seconds["floor"], seconds["library"], strict=True))
    loop = _loop_rate(bench, rows) if scoring_dtype == "auto" else None
    about = {"rank": bench.rank, "workload": name, "rows": len(rows), "dtype": scoring_dtype}
    mine = {"rows/s": rates["library"], "peak GiB": peaks["library"], "share of floor": share}
    reached = share >= LIBRARY_GOAL
    results = [Result(None, {**about, "step": "floor", "rows/s": rates["floor"], "peak GiB": peaks["floor"]})]
    if loop is not None:
        mine["times the loop"] = rates["library"] / loop
        reached = reached and (name != "instruction" or mine["times the loop"] >= LOOP_GOAL)
        results.append(Result(None, {**about, "step": "loop", "rows/s": loop}))
    on_gpu = bench.device.type == "cuda"
    return [*results, Result(reached if on_gpu else None, {**about, "step": "library", **mine})]


def _loop_rate(bench: Bench, rows: Any) -> float:
    bench.loop(rows.select(range(0, len(rows), max(1, len(rows) // 2))))  # warms up
    scored = 0

    def run() -> None:
        nonlocal scored
        scored = bench.loop(rows)

    seconds = bench.seconds(run)
    return scored / seconds


def _with_adapter(
    base: Callable[[], Any], shape: Shape, scale: Scale, rank: int, workloads: list[tuple[str, str]]
) -> list[Result]:
    """The basis of a new adapter, then some workloads (name and compute dtype)."""
    model = adapted(base(), rank, ATTENTION).eval()
    try:
        bench = Bench(model, rank, scale, shape.vocabulary)
        results = [bench.find_basis()]
        for name, scoring_dtype in workloads:
            results += measure(bench, name, scoring_dtype)
        return results
    finally:
        # the sections share the base model
        model.unload()


def steps(base: Callable[[], Any], shape: Shape, scale: Scale) -> Steps:
    """Scoring with each adapter; the median of 180 tokens first.

    Args:
        base (`Callable`): returns the base model.
        shape (`Shape`): its sizes.
        scale (`Scale`): how much is measured.
    """
    first = {rank: [("instruction", "auto")] for rank in scale.ranks}
    first[scale.ranks[0]].append(("instruction", "bfloat16"))
    for workloads in (first, {rank: [("short", "auto"), ("long", "auto")] for rank in scale.ranks}):
        for rank in scale.ranks:
            yield f"scoring r{rank}", partial(_with_adapter, base, shape, scale, rank, workloads[rank])
