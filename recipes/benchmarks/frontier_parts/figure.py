"""The figure of `frontier.py`: loss after training, minus that of random rows, against the cost of selecting."""

import math
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from frontier_parts.arms import UNTRAINED, Arm
from frontier_parts.results import Results, mean_and_spread
from hf_gist.utils.disk import write


COLUMNS = 3
MARKERS = "osD^vP*Xhd<>"


def lines_of(arms: dict[str, Arm]) -> dict[str, list[str]]:
    """Rule to its plans by rising cost, the one on all rows last; only rules with plans."""
    found: dict[str, list[str]] = {}
    for name, arm in sorted(arms.items(), key=lambda item: item[1].cost or math.inf):
        if arm.cost is not None or name == arm.rule:
            found.setdefault(arm.rule, []).append(name)
    return {rule: names for rule, names in found.items() if any(arms[name].cost is not None for name in names)}


def draw(axes: Axes, results: Results, arms: dict[str, Arm], target: str) -> None:
    """One target: plans joined by lines, everything else as points."""
    joined = lines_of(arms)
    on_lines = {name for names in joined.values() for name in names}
    groups = [(arms[rule].title if rule in arms else rule, names, "-") for rule, names in joined.items()]
    groups += [(arm.title, [name], "none") for name, arm in arms.items() if name not in on_lines]
    for number, (title, names, line) in enumerate(groups):
        known = [name for name in names if name != UNTRAINED and results.differences(name, target)]
        if not known:
            continue
        found = [mean_and_spread(results.differences(name, target)) for name in known]
        axes.errorbar(
            [results.passes(name, target) for name in known],
            [mean for mean, _ in found],
            yerr=[spread for _, spread in found],
            label=title,
            marker=MARKERS[number % len(MARKERS)],
            # the default cycle of colours is shorter than the list of arms
            color=f"C{number % 10}",
            linestyle=line,
            capsize=2,
            alpha=0.8,
        )
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set_title(target)
    axes.set_xlabel("selecting, passes over the pool")
    axes.set_ylabel("test loss minus that of random rows")
    axes.grid(alpha=0.3)


def save_figure(results: Results, arms: dict[str, Arm], path: Path) -> None:
    """Write a PNG with a panel for each target.

    Args:
        results (`Results`): finished runs.
        arms (`dict[str, Arm]`): the arms by name.
        path (`Path`): the file.
    """
    columns = min(COLUMNS, len(results.targets))
    rows = math.ceil(len(results.targets) / columns)
    figure = Figure(figsize=(5 * columns, 4 * rows + 1.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, target in zip(panels, results.targets, strict=False):
        draw(axes, results, arms, target)
    for axes in panels[len(results.targets) :]:
        axes.set_visible(False)
    labels = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if labels:
        figure.legend(labels.values(), labels, loc="outside lower center", ncols=columns, fontsize=10)
    write(path, partial(figure.savefig, dpi=150, format="png"))
