"""From the runs of a comparison to a table and a picture."""

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
    """Mean difference to random rows of the same seed, and for how many seeds the method was better."""
    random = {run["seed"]: run[test] for run in of_method(runs, RANDOM)}
    pairs = [run[test] - random[run["seed"]] for run in of_method(runs, method) if run["seed"] in random]
    if not pairs or method == RANDOM:
        return ""
    return f"{statistics.fmean(pairs):+.4f} ({sum(p < 0 for p in pairs)} of {len(pairs)} seeds)"


def cost_in_passes(run: dict[str, Any], pool_tokens: int) -> float:
    """Selecting and training in passes over the pool, forward and backward; a forward alone counts half."""
    return run["selection_passes"] + run["train_tokens"] / pool_tokens


def markdown(runs: Runs, pool_tokens: int) -> str:
    """The table, one row per method, best on the first test set first.

    Args:
        runs (`Runs`): all runs.
        pool_tokens (`int`): tokens of the whole pool.
    """
    tests = [name for name in runs[0] if name.startswith("loss_")]
    methods = sorted(
        {run["method"] for run in runs}, key=lambda m: statistics.fmean(run[tests[0]] for run in of_method(runs, m))
    )
    head = ["trained on", "rows", "label tokens", "steps"]
    for test in tests:
        head += [f"{test.removeprefix('loss_')} loss (mean ± sd)", "minus random"]
    head += ["select, s", "train, s", "cost, passes over the pool"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in methods:
        own = of_method(runs, method)
        cells = [ARMS[method].title]
        cells += [
            f"{round(statistics.fmean(run[name] for run in own)):,}" for name in ("rows", "label_tokens", "steps")
        ]
        for test in tests:
            mean, spread = mean_and_spread([run[test] for run in own])
            # one number for an untrained model, which has no seed
            cells += [f"{mean:.4f}" + (f" ± {spread:.4f}" if len(own) > 1 else ""), against_random(runs, method, test)]
        cells += [
            f"{statistics.fmean(run[name] for run in own):,.0f}" for name in ("selection_seconds", "train_seconds")
        ]
        cells.append(f"{statistics.fmean(cost_in_passes(run, pool_tokens) for run in own):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def break_even(runs: Runs, pool_tokens: int) -> str:
    """What selecting costs, in words: from how many passes over the whole pool on it is the cheaper way."""
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = of_method(runs, method)
        if own[0]["selection_passes"] > 0:
            cost = statistics.fmean(cost_in_passes(run, pool_tokens) for run in own)
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
        cost = statistics.fmean(cost_in_passes(run, pool_tokens) for run in own)
        marker = "osD^vP*X"[number % 8]
        axes.errorbar(cost, mean, yerr=spread, fmt=marker, capsize=3, label=ARMS[method].title)
    axes.set(
        xlabel="selecting and training, passes over the pool",
        ylabel=f"test loss, {test.removeprefix('loss_')}",
        title="Quality against cost (mean and standard deviation over the seeds)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    write(path, partial(figure.savefig, dpi=150, format="png"))
