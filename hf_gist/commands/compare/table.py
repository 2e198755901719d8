"""The runs of a comparison as a table and a figure."""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_gist.commands.compare.arms import ARMS, RANDOM
from hf_gist.utils.disk import write


Runs = list[dict[str, Any]]
"""One row per method and seed."""


def of_method(runs: Runs, method: str) -> Runs:
    """The runs of one method."""
    return [run for run in runs if run["method"] == method]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds (0 for a single one)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def against_random(runs: Runs, method: str, test: str) -> str:
    """Mean difference from random rows with the same seed, and for how many seeds the method was better."""
    random = {run["seed"]: run[test] for run in of_method(runs, RANDOM)}
    pairs = [run[test] - random[run["seed"]] for run in of_method(runs, method) if run["seed"] in random]
    if not pairs or method == RANDOM:
        return ""
    return f"{statistics.fmean(pairs):+.4f} ({sum(p < 0 for p in pairs)} of {len(pairs)} seeds)"


def cost_in_passes(run: dict[str, Any], pool_tokens: int) -> float:
    """Cost of selecting and training in passes over the pool (forward and backward); a forward alone counts half."""
    return run["selection_passes"] + run["train_tokens"] / pool_tokens


def mean_cost(runs: Runs, pool_tokens: int) -> float:
    """Mean of [`cost_in_passes`]."""
    return statistics.fmean(cost_in_passes(run, pool_tokens) for run in runs)


def mean_of(runs: Runs, name: str) -> float:
    """Mean of one column."""
    return statistics.fmean(run[name] for run in runs)


def markdown(runs: Runs, pool_tokens: int) -> str:
    """The table, one row per method; the lowest loss on the first test set comes first.

    Args:
        runs (`Runs`): all runs.
        pool_tokens (`int`): tokens of the whole pool.
    """
    tests = [name for name in runs[0] if name.startswith("loss_")]
    methods = {run["method"] for run in runs}
    head = ["trained on", "rows", "labelled tokens", "steps"]
    for test in tests:
        head += [f"{test.removeprefix('loss_')} loss (mean ± sd)", "minus random"]
    head += ["select, s", "train, s", "cost, passes over the pool"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in sorted(methods, key=lambda m: mean_of(of_method(runs, m), tests[0])):
        lines.append("| " + " | ".join(_cells(runs, method, tests, pool_tokens)) + " |")
    return "\n".join(lines) + "\n"


def _cells(runs: Runs, method: str, tests: Sequence[str], pool_tokens: int) -> list[str]:
    """One row of the table."""
    own = of_method(runs, method)
    cells = [ARMS[method].title]
    cells += [f"{round(mean_of(own, name)):,}" for name in ("rows", "label_tokens", "steps")]
    for test in tests:
        mean, spread = mean_and_spread([run[test] for run in own])
        # one number for an untrained model, which has no seed
        cells += [f"{mean:.4f}" + (f" ± {spread:.4f}" if len(own) > 1 else ""), against_random(runs, method, test)]
    cells += [f"{mean_of(own, name):,.0f}" for name in ("selection_seconds", "train_seconds")]
    cells.append(f"{mean_cost(own, pool_tokens):.2f}")
    return cells


def break_even(runs: Runs, pool_tokens: int) -> str:
    """For each method that scores rows: the number of epochs on the whole pool from which selecting is cheaper."""
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = of_method(runs, method)
        if own[0]["selection_passes"] > 0:
            cost = mean_cost(own, pool_tokens)
            lines.append(
                f"- {ARMS[method].title}: selecting and training cost {cost:.2f} passes over the pool, so it is cheaper "
                f"than training on the whole pool for {max(1, math.ceil(cost + 1e-9))} epoch(s) or more."
            )
    return "\n".join(lines) + "\n" if lines else ""


def save_plot(runs: Runs, pool_tokens: int, path: Path) -> None:
    """Loss on the first test set against the cost in passes over the pool.

    Raises:
        ImportError: if matplotlib is not installed, saying how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "hf_gist[report]".') from error
    test = next(name for name in runs[0] if name.startswith("loss_"))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
        own = of_method(runs, method)
        mean, spread = mean_and_spread([run[test] for run in own])
        style: dict[str, Any] = {"fmt": "osD^vP*X"[number % 8], "capsize": 3, "label": ARMS[method].title}
        axes.errorbar(mean_cost(own, pool_tokens), mean, yerr=spread, **style)
    axes.set_xlabel("selecting and training, passes over the pool")
    axes.set_ylabel(f"test loss, {test.removeprefix('loss_')}")
    axes.set_title("Quality against cost (mean and standard deviation over the seeds)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    write(path, partial(figure.savefig, dpi=150, format="png"))
