"""The tables of `while_training.py`."""

import statistics

from while_training_parts.methods import COST, METHODS, ONCE, PLAIN, SAMPLES, UNTRAINED


HEADER = ["method", "seeds", "steps", "samples trained", "cost, passes", "test loss", "difference from plain LoRA"]

TITLES = {SAMPLES: "as many trained samples", COST: "the same cost"}


def _row(cells):
    return f"| {' | '.join(cells)} |"


def _spread(values, form):
    return f"{statistics.fmean(values):{form}}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def _line(title, runs, plain):
    """One method; differences are those with the same seed."""
    trained = runs[0]["seed"] is not None
    differences = [
        run["loss"] - other["loss"] for run in runs for other in plain if run["seed"] in (None, other["seed"])
    ]
    is_plain = runs == plain
    return _row(
        [
            title,
            str(len(runs)) if trained else "",
            f"{statistics.fmean(run['steps'] for run in runs):.0f}" if trained else "0",
            f"{statistics.fmean(run['samples'] for run in runs):.0f}" if trained else "0",
            f"{statistics.fmean(run['passes'] for run in runs):.2f}" if trained else "0",
            _spread([run["loss"] for run in runs], ".4f"),
            "" if is_plain or not differences else _spread(differences, "+.4f"),
        ]
    )


def _table(target, table, runs):
    """One table of a target."""
    own = [run for run in runs if run["target"] == target and "loss" in run]
    by_method = {name: [] for name in (UNTRAINED, *METHODS)}
    for run in own:
        if run["table"] == table or run["method"] in (UNTRAINED, ONCE):
            by_method[run["method"]].append(run)
    titles = {UNTRAINED: "untrained"} | {name: method.title for name, method in METHODS.items()}
    lines = [_line(titles[name], found, by_method[PLAIN]) for name, found in by_method.items() if found]
    return ["", f"**{target}**, {TITLES[table]}", "", _row(HEADER), _row(["---"] * len(HEADER)), *lines]


def markdown(runs, missing, about):
    """All tables.

    Args:
        runs (`list[dict]`): what the files of the runs hold.
        missing (`int`): number of runs that are not finished.
        about (`str`): a sentence on the settings.
    """
    lines = ["# Selecting once, again and online", ""]
    lines += [
        f"{about} Means over the seeds ± standard deviation; the cost has the warm-up, the selections and training."
    ]
    for target in dict.fromkeys(run["target"] for run in runs):
        for table in (SAMPLES, COST):
            lines += _table(target, table, runs)
    for run in runs:
        if "refused" in run:
            lines += [
                "",
                f"Not run: {METHODS[run['method']].title}, {run['target']}, seed {run['seed']}: {run['refused']}",
            ]
    if missing:
        lines += ["", f"Missing runs: {missing}."]
    return "\n".join(lines) + "\n"
