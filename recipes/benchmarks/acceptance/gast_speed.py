"""A GAST step at a large shape, beside the stock step and plain implementations of the paper's two modes."""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gast_step import Variant, summarise

from acceptance.models import PAPER_GAST, Shape, adapted
from acceptance.record import Result, Steps


TIME_GOALS = {"every 1": 1.30, "every 4": 1.10, "momentum": 1.05}
"""Most time of a step, in stock steps."""

MEMORY_GOAL = 1.05
"""Most peak memory of a step, in stock steps."""

PAPER_RANK = 32

ORDER = ("stock", "every 1", "momentum", "every 4", "every 1, own pass", "cached (paper)", "two-pass (paper)")


def options_for(shape: Shape, device: str, small: bool) -> argparse.Namespace:
    """The options of `gast_step.py` (paper: batch 16, 256 tokens, 4 support samples)."""
    return argparse.Namespace(
        device=device, batch_size=4 if small else 16, tokens=16 if small else 256, support_batch_size=2 if small else 4,
        vocabulary=shape.vocabulary, seed=0, rounds=4, bf16=device == "cuda",
    )  # fmt: skip


class Bench:
    """All variants over one model.

    Args:
        model: a peft model.
        options (`argparse.Namespace`): see [`options_for`].
    """

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.model = model
        self.options = options
        self.folder = tempfile.TemporaryDirectory()
        self.stock = self.variant("stock")

    def variant(self, name: str) -> Variant:
        """A trainer of its own, after a whole period of `every 4`."""
        variant = Variant(name, self.options, self.folder.name, self.model)
        for _ in range(4):
            variant.step()
        return variant

    def compare(self, name: str) -> Result:
        """One variant and the stock step, in alternating steps."""
        variants = [self.stock] if name == "stock" else [self.stock, self.variant(name)]
        seconds = defaultdict(list)
        for _ in range(self.options.rounds):
            for variant in variants:
                seconds[variant.name].append(variant.timed())
        stock_peak = self.stock.peak()
        peak = variants[-1].peak()
        row = summarise(name, seconds[name], seconds["stock"], peak, stock_peak)
        time_ratio = row["wall_ratio"]["median"]
        values = {
            "seconds a step": row["wall_seconds"]["median"],
            "time / stock": time_ratio,
            "time goal": TIME_GOALS.get(name, ""),
            "peak GiB": peak / 2**30,
            "peak / stock": row["memory_ratio"],
        }
        passed = None
        if name in TIME_GOALS and self.options.device == "cuda":
            passed = time_ratio <= TIME_GOALS[name] and row["memory_ratio"] <= MEMORY_GOAL
        return Result(passed, {"step": name, **values})


def steps(base: Callable[[], Any], shape: Shape, device: str, small: bool) -> Steps:
    """Each variant beside the stock step."""
    model = adapted(base(), PAPER_RANK, PAPER_GAST, dropout=0.05)
    bench = Bench(model, options_for(shape, device, small))
    for name in ORDER:
        yield name, lambda name=name: bench.compare(name)
    model.unload()
