"""The runs of a comparison as a table."""

import math
import statistics
from collections.abc import Sequence

from hf_gist.commands.compare.arms import ARMS, RANDOM
from hf_gist.commands.compare.estimates import (
    Column,
    Estimate,
    Run,
    Runs,
    by_value,
    columns_of,
    difference,
    estimate,
    of_method,
)


NOTE = (
    "rows ±: standard error over the test rows, of one run. seeds ±: standard deviation over the seeds. Differences from "
    "random rows are those of runs with the same seed on the same test rows; rows ± is then that of the mean over the seeds."
)


def errors(found: Estimate) -> str:
    """Standard error over the test rows, and standard deviation over the seeds, as far as they are known."""
    parts = [("rows", found.row_error), ("seeds", found.spread)]
    return "; ".join(f"{name} ± {value:.4f}" for name, value in parts if value is not None)


def shown(found: Estimate) -> str:
    """A mean with its errors."""
    known = errors(found)
    return f"{found.mean:.4f}" + (f" ({known})" if known else "")


def against_random(runs: Runs, method: str, column: Column) -> str:
    """Mean difference from random rows with the same seed, and for how many seeds the method was better."""
    found = None if method == RANDOM else difference(of_method(runs, method), of_method(runs, RANDOM), column)
    if found is None:
        return ""
    better = sum(column.sign * value > 0 for value in found.values)
    known = errors(found)
    return f"{found.mean:+.4f} ({known}{'; ' if known else ''}better in {better} of {len(found.values)} seeds)"


def cost_in_passes(run: Run, pool_tokens: int) -> float:
    """Cost of selecting and training in passes over the pool (forward and backward); a forward alone counts half."""
    return run["selection_passes"] + run["train_tokens"] / pool_tokens


def mean_cost(runs: Runs, pool_tokens: int) -> float:
    """Mean of [`cost_in_passes`]."""
    return statistics.fmean(cost_in_passes(run, pool_tokens) for run in runs)


def mean_of(runs: Runs, name: str) -> float:
    """Mean of one column."""
    return statistics.fmean(run[name] for run in runs)


def markdown(runs: Runs, pool_tokens: int) -> str:
    """The table, one row per method; the best in the first measure of the first test set comes first.

    Args:
        runs (`Runs`): all runs.
        pool_tokens (`int`): tokens of the whole pool.
    """
    columns = columns_of(runs)
    head = ["trained on", "rows", "labelled tokens", "steps"]
    for column in columns:
        head += [column.title, "minus random"]
    head += ["select, s", "train, s", "cost, passes over the pool"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for method in by_value(runs, columns[0]):
        lines.append("| " + " | ".join(_cells(runs, method, columns, pool_tokens)) + " |")
    return "\n".join(lines) + f"\n\n{NOTE}\n"


def _cells(runs: Runs, method: str, columns: Sequence[Column], pool_tokens: int) -> list[str]:
    """One row of the table."""
    own = of_method(runs, method)
    cells = [ARMS[method].title]
    cells += [f"{round(mean_of(own, name)):,}" for name in ("rows", "label_tokens", "steps")]
    for column in columns:
        cells += [shown(estimate(own, column)), against_random(runs, method, column)]
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
            epochs = max(1, math.ceil(cost + 1e-9))
            number = "1 epoch" if epochs == 1 else f"{epochs} epochs"
            lines.append(
                f"- {ARMS[method].title}: selecting and training cost as much computation as training for {cost:.2f} epochs "
                f"on the whole pool. Training on the whole pool for {number} or more costs more than that."
            )
    return "\n".join(lines) + "\n" if lines else ""
