"""The figure of a comparison: loss and accuracy against cost."""

from functools import partial
from pathlib import Path
from typing import Any

from hf_gist.commands.compare.arms import ARMS
from hf_gist.commands.compare.estimates import Column, Runs, columns_of, estimate, of_method
from hf_gist.commands.compare.table import mean_cost
from hf_gist.utils.disk import write


def save_plot(runs: Runs, pool_tokens: int, path: Path) -> None:
    """The first test set against the cost in passes over the pool: its loss, and its first accuracy or metric, if any.

    Args:
        runs (`Runs`): all runs.
        pool_tokens (`int`): tokens of the whole pool.
        path (`Path`): of the PNG file.

    Raises:
        ImportError: if matplotlib is not installed, saying how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "hf_gist[report]".') from error
    columns = columns_of(runs)
    columns = [column for column in columns if column.test == columns[0].test][:2]
    figure = Figure(figsize=(1 + 7 * len(columns), 5), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        _draw(axes, runs, column, pool_tokens)
    panels[-1].legend(fontsize=7)
    figure.suptitle("Quality against cost (mean and standard deviation over the seeds)")
    write(path, partial(figure.savefig, dpi=150, format="png"))


def _draw(axes: Any, runs: Runs, column: Column, pool_tokens: int) -> None:
    """One panel, a mark for every method."""
    for number, method in enumerate(dict.fromkeys(run["method"] for run in runs)):
        own = of_method(runs, method)
        found = estimate(own, column)
        style: dict[str, Any] = {"fmt": "osD^vP*X"[number % 8], "capsize": 3, "label": ARMS[method].title}
        # that other test rows would move all methods alike is in the table
        axes.errorbar(mean_cost(own, pool_tokens), found.mean, yerr=found.spread, **style)
    axes.set_xlabel("selecting and training, passes over the pool")
    axes.set_ylabel(f"test {column.title}")
    axes.grid(alpha=0.3)
