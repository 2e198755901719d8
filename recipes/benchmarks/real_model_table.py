"""The results of `real_model.py` as Markdown."""

import statistics


METRICS = {"loss": "test loss", "accuracy_by_sum": "accuracy, sum", "accuracy_by_mean": "accuracy, per token"}
BASELINE = "random rows"


def _cell(runs, metric):
    """Mean over the seeds, ± their standard deviation; in parentheses the standard error over the test rows."""
    values = [run[metric] for run in runs]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({runs[0][f'{metric}_error']:.4f})"


def paired_difference(runs, baseline, which):
    """Difference of two accuracies over the seeds that both have, with its standard error over the test rows.

    The same rows are tested, so the error is that of the differences by row.

    Args:
        runs (`list[dict]`): results of an arm on one test set.
        baseline (`list[dict]`): those of the arm to compare with.
        which (`str`): `"by_sum"` or `"by_mean"`.

    Returns:
        `tuple[float, float]`, *optional*: `None` without a common seed.
    """
    others = {run["seed"]: run[f"right_{which}"] for run in baseline}
    # the untrained model has no seed: it is compared with all of them
    runs = [run | {"seed": seed} for run in runs for seed in (others if run["seed"] is None else [run["seed"]])]
    pairs = [(run[f"right_{which}"], others[run["seed"]]) for run in runs if run["seed"] in others]
    if not pairs:
        return None
    by_seed = [[int(own) - int(other) for own, other in zip(*pair, strict=True)] for pair in pairs]
    by_row = [statistics.mean(differences) for differences in zip(*by_seed, strict=True)]
    error = statistics.stdev(by_row) / len(by_row) ** 0.5 if len(by_row) > 1 else 0.0
    return statistics.mean(by_row), error


def _seconds(runs, name):
    known = [run[name] for run in runs if name in run]
    return f"{statistics.mean(known):.1f}" if known else ""


def _line(arm, runs, baseline):
    seeds = len(runs) if runs[0]["seed"] is not None else ""
    cells = [arm, str(runs[0].get("rows", "")), str(seeds)]
    cells += [_cell(runs, metric) for metric in METRICS]
    for which in ("by_sum", "by_mean"):
        found = None if arm == BASELINE else paired_difference(runs, baseline, which)
        cells.append("" if found is None else f"{found[0]:+.4f} ({found[1]:.4f})")
    cells += [_seconds(runs, "select_seconds"), _seconds(runs, "train_seconds")]
    return f"| {' | '.join(cells)} |"


def markdown(report):
    """A table for each test set.

    Args:
        report (`dict`): what is in `results.json`.
    """
    about, settings = report["about"], report["settings"]
    lines = [
        f"Pool: {about['pool']:,} rows. {settings['passes']} passes, the whole pool {settings['whole_pool_passes']}; "
        f"batches of {settings['batch_size']}, learning rate {settings['learning_rate']}, {settings['dtype']} on "
        f"{about['device_name']}. Means over the seeds ± their standard deviation, in parentheses the standard error over "
        "the test rows. Differences are those from random rows with the same seeds, with the error by row. The seconds "
        "of a selection are those of the warm-up and of scoring for all targets together.",
    ]
    columns = ["trained on", "rows", "seeds", *METRICS.values(), "difference, sum", "difference, per token"]
    columns += ["select, s", "train, s"]
    for target, count in about["test_rows"].items():
        by_arm = {}
        for run in report["results"]:
            if run["target"] == target:
                by_arm.setdefault(run["arm"], []).append(run)
        lines += ["", f"**{target}**, {count:,} test rows, {about['targets'].get(target, 0)} target rows", ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [_line(arm, runs, by_arm.get(BASELINE, [])) for arm, runs in by_arm.items()]
    if report["missing"]:
        lines += ["", f"Missing: {'; '.join(report['missing'])}."]
    return "\n".join(lines) + "\n"
