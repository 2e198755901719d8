"""The results of `real_model.py` as Markdown."""

import statistics
from functools import cache
from pathlib import Path

import numpy as np

from real.arms import RANDOM, UNTRAINED
from real.gast import PLAIN, PREFIX


METRICS = {"loss": "test loss", "accuracy_by_sum": "accuracy, sum", "accuracy_by_mean": "accuracy, per token"}
DIFFERENCES = {"loss": "loss", "accuracy_by_sum": "sum", "accuracy_by_mean": "per token"}

EXPLANATION = (
    "Means over the seeds ± their standard deviation, in parentheses the standard error over the test rows. The "
    "difference is that from random rows with the same seeds, with the standard error of the differences by row. Selecting "
    "is counted in training passes over the pool and in seconds, each with the warm-up, for all targets and budgets "
    "together; an empty cell is a time that is not known, because scoring was interrupted."
)


def _cell(runs, metric):
    """Mean over the seeds, ± their standard deviation; in parentheses the standard error over the test rows."""
    values = [run[metric] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    rows = _by_row([run[f"{metric}_rows"] for run in runs])
    return f"{statistics.mean(values):.4f}{spread} ({_error(rows):.4f})"


@cache
def _values(text):
    """The value of each test row; the table is made anew after every run, from all runs."""
    return np.array(text.split(), dtype=float)


def _by_row(texts):
    """The means over several runs of the value of each test row."""
    return np.stack([_values(text) for text in texts]).mean(0)


def _error(values):
    """Standard error of the mean."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0


def paired_difference(runs, baseline, metric):
    """Difference of two means over the seeds that both have, with its standard error over the test rows.

    The same rows are tested, so the error is that of the differences by row.

    Args:
        runs (`list[dict]`): results of an arm on one test set.
        baseline (`list[dict]`): those of the arm to compare with.
        metric (`str`): key of `METRICS`.

    Returns:
        `tuple[float, float]`, *optional*: `None` without a common seed.
    """
    others = {run["seed"]: run[f"{metric}_rows"] for run in baseline}
    # the untrained model has no seed: it is compared with all of them
    runs = [run | {"seed": seed} for run in runs for seed in (others if run["seed"] is None else [run["seed"]])]
    pairs = [(run[f"{metric}_rows"], others[run["seed"]]) for run in runs if run["seed"] in others]
    if not pairs:
        return None
    own, other = (_by_row(texts) for texts in zip(*pairs, strict=True))
    return float((own - other).mean()), _error(own - other)


def _mean_of(runs, name, digits):
    known = [run[name] for run in runs if run.get(name) is not None]
    return f"{statistics.mean(known):.{digits}f}" if known else ""


def _line(runs, baseline):
    first = runs[0]
    seeds = len(runs) if first["seed"] is not None else ""
    cells = [first["title"], str(first.get("rows", "")), str(seeds)]
    cells += [_cell(runs, metric) for metric in METRICS]
    for metric in METRICS:
        found = None if runs is baseline else paired_difference(runs, baseline, metric)
        cells.append("" if found is None else f"{found[0]:+.4f} ({found[1]:.4f})")
    cells += [_mean_of(runs, "selection_passes", 2), _mean_of(runs, "select_seconds", 1)]
    return _row([*cells, _mean_of(runs, "train_seconds", 1)])


def _row(cells):
    return f"| {' | '.join(cells)} |"


def _table(title, runs, baseline):
    """One line for each arm; `baseline` is the name of the arm that the others are compared with."""
    by_arm = {}
    for run in runs:
        by_arm.setdefault(run["arm"], []).append(run)
    columns = ["trained on", "rows", "seeds", *METRICS.values()]
    columns += [f"difference, {name}" for name in DIFFERENCES.values()]
    columns += ["selecting, passes", "select, s", "train, s"]
    lines = ["", title, "", _row(columns), "|---" * len(columns) + "|"]
    return lines + [_line(own, by_arm.get(baseline, [])) for own in by_arm.values()]


def _introduction(report):
    about, settings = report["about"], report["settings"]
    tests = {run["target"]: run["test_rows"] for run in report["results"]}
    return [
        f"{Path(settings['model']).name} in {settings['dtype']} on {about['device_name']}, pool of {about['pool']:,} rows, "
        f"test rows: {', '.join(f'{name} {count:,}' for name, count in tests.items())}. `{about['command']}`",
        "",
        f"Passes over the rows: {settings['passes']}, over the whole pool {settings['whole_pool_passes']}; batches of "
        f"{settings['batch_size']}, learning rate {settings['learning_rate']}. {EXPLANATION}",
    ]


def _tables_of_target(target, runs, budgets):
    """A table for each budget, and one for GAST if there are such runs."""
    name = f"**{target}**, {runs[0]['test_rows']:,} test rows, {runs[0]['target_rows']:,} target rows"
    with_gast = [run for run in runs if run["arm"].startswith(PREFIX)]
    others = [run for run in runs if run not in with_gast]
    lines = []
    for budget in budgets:
        shown = [run for run in others if run["budget"] in (None, budget)]
        lines += _table(f"{name}, {100 * budget:g} % of the pool", shown, RANDOM) if shown else []
    if with_gast:
        title = f"{name}, GAST (passes over the rows: {with_gast[0]['passes']}), differences from plain LoRA"
        untrained = [run for run in others if run["arm"] == UNTRAINED]
        lines += _table(title, [*untrained, *with_gast], PLAIN)
    return lines


def markdown(report):
    """A table for each test set and budget, and one for GAST.

    Args:
        report (`dict`): what is in `results.json`.
    """
    lines = _introduction(report)
    by_target = {}
    for run in report["results"]:
        by_target.setdefault(run["target"], []).append(run)
    for target, runs in by_target.items():
        lines += _tables_of_target(target, runs, report["settings"]["budgets"])
    if report["missing"]:
        lines += ["", f"Missing: {'; '.join(report['missing'])}."]
    return "\n".join(lines) + "\n"
