"""Metrics as `evaluate` modules that are loaded from folders; nothing is downloaded."""

from pathlib import Path

import evaluate


OWN = Path(__file__).parent / "metrics"
RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "metrics"
"""The metrics of the recipes, in a checkout; an installed package does not have them."""


def row_accuracy() -> evaluate.EvaluationModule:
    """The package's own metric: accuracy and its standard error over the rows."""
    return evaluate.load(str(OWN / "row_accuracy"), keep_in_memory=True)


def metric_file(name: str, argument: str, known: Path = RECIPES) -> Path:
    """The module of a metric, by its name in the recipes, or by the path of its folder.

    Args:
        name (`str`): of a folder that contains a module of the same name: `my_metric/my_metric.py`.
        argument (`str`): the setting that names the metric, with its value, for the message.
        known (`Path`): folder of the metrics that are known by their names; it need not exist.

    Raises:
        ValueError: if there is no such metric; the message lists the known ones.
    """
    for folder in (known / name, Path(name)):
        module = folder / f"{folder.name}.py"
        if module.is_file():
            return module
    names = ", ".join(sorted(path.name for path in known.iterdir() if path.is_dir())) if known.is_dir() else ""
    either = f"neither a metric of the recipes ({names}) nor" if names else "not"
    raise ValueError(
        f"`{argument}` is {either} a folder that contains a metric; give the path of a folder with an `evaluate` module "
        "of the same name, such as my_metric for my_metric/my_metric.py."
    )


def load_metric(name: str, argument: str, known: Path = RECIPES) -> evaluate.EvaluationModule:
    """The metric of [`metric_file`], whose arguments and errors it has.

    Args:
        name (`str`): see [`metric_file`].
        argument (`str`): see [`metric_file`].
        known (`Path`): see [`metric_file`].
    """
    return evaluate.load(str(metric_file(name, argument, known).parent), keep_in_memory=True)
