"""The results of `real_model.py` as Markdown."""

import statistics

from real.arms import RANDOM
from real.gast import PLAIN, PREFIX


METRICS = {"loss": "test loss", "accuracy_by_sum": "accuracy, sum", "accuracy_by_mean": "accuracy, per token"}
DIFFERENCES = {"loss": "loss", "accuracy_by_sum": "sum", "accuracy_by_mean": "per token"}

EXPLANATION = (
    "Means over the seeds ± their standard deviation, in parentheses the standard error over the test rows. The "
    "difference is that from {baseline} with the same seeds, with the standard error of the differences by row. Selecting "
    "is counted in training passes over the pool and in seconds, each with the warm-up, for all targets and budgets "
    "together; an empty cell is a time that is not known, because scoring was interrupted."
)


def _cell(runs, metric):
    """Mean over the seeds, ± their standard deviation; in parentheses the standard error over the test rows."""
    values = [run[metric] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    rows = _by_row([run[f"{metric}_rows"] for run in runs])
    return f"{statistics.mean(values):.4f}{spread} ({_error(rows):.4f})"


def _by_row(texts):
    """The means over several runs of the value of each test row."""
    values = [[float(value) for value in text.split()] for text in texts]
    return [statistics.mean(row) for row in zip(*values, strict=True)]


def _error(values):
    """Standard error of the mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


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
    differences = [a - b for a, b in zip(own, other, strict=True)]
    return statistics.mean(differences), _error(differences)


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


def _introduction(about, settings):
    tests = ", ".join(f"{name} {count:,}" for name, count in about["test_rows"].items())
    return [
        f"{settings['model']} in {settings['dtype']} on {about['device_name']}, pool of {about['pool']:,} rows, test rows: "
        f"{tests}. `{about['command']}`",
        "",
        f"{settings['passes']} passes, the whole pool {settings['whole_pool_passes']}; batches of "
        f"{settings['batch_size']}, learning rate {settings['learning_rate']}. {EXPLANATION.format(baseline='random rows')}",
    ]


def markdown(report):
    """A table for each test set and budget, and one for GAST.

    Args:
        report (`dict`): what is in `results.json`.
    """
    about, settings = report["about"], report["settings"]
    lines = _introduction(about, settings)
    for target, count in about["test_rows"].items():
        name = f"**{target}**, {count:,} test rows, {about['targets'][target]} target rows"
        own = [run for run in report["results"] if run["target"] == target]
        with_gast = [run for run in own if run["arm"].startswith(PREFIX)]
        others = [run for run in own if run not in with_gast]
        for budget in settings["budgets"]:
            shown = [run for run in others if run["budget"] in (None, budget)]
            lines += _table(f"{name}, {100 * budget:g} % of the pool", shown, RANDOM) if shown else []
        if with_gast:
            title = f"{name}, GAST: {settings['gast_passes']} passes over random rows, differences from plain LoRA"
            lines += _table(title, with_gast, PLAIN)
    if report["missing"]:
        lines += ["", f"Missing: {'; '.join(report['missing'])}."]
    return "\n".join(lines) + "\n"
