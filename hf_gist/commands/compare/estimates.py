"""Means over the seeds, and how far test rows and seeds may have moved them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_gist.commands.compare.arms import UNTRAINED
from hf_gist.commands.testing.choices import ACCURACY_PER_TOKEN, ACCURACY_SUM
from hf_gist.commands.testing.measured import deviation, mean, standard_error
from hf_gist.commands.testing.sets import LOSS


Run = dict[str, Any]
Runs = list[Run]
"""One row per method and seed."""

OUTCOMES = "outcomes"
"""Key of a run: test set to measure to the outcome of every test row."""

ERROR = "standard_error"
TITLES = {LOSS: "loss", ACCURACY_SUM: "accuracy, sum", ACCURACY_PER_TOKEN: "accuracy, per token"}


@dataclass(frozen=True)
class Column:
    """A measure on a test set.

    Args:
        test (`str`): name of the test set.
        measure (`str`): the loss, an accuracy, or the value of a metric.
    """

    test: str
    measure: str

    @property
    def name(self) -> str:
        """Its key in a run."""
        return f"{self.measure}_{self.test}"

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.test} {TITLES.get(self.measure, self.measure)}"

    @property
    def sign(self) -> int:
        """-1 if lower values are better, otherwise 1."""
        return -1 if self.measure == LOSS else 1

    def outcomes(self, run: Run) -> list[float] | None:
        """The outcome of every test row, if they are known."""
        return run[OUTCOMES][self.test][self.measure]


def columns_of(runs: Runs) -> list[Column]:
    """Every measure of every test set."""
    return [Column(test, measure) for test, measures in runs[0][OUTCOMES].items() for measure in measures]


def of_method(runs: Runs, method: str) -> Runs:
    """The runs of one method."""
    return [run for run in runs if run["method"] == method]


@dataclass(frozen=True)
class Estimate:
    """A mean over the seeds, or a mean difference of two methods.

    Args:
        mean (`float`): over the seeds.
        values (`list[float]`): of every seed.
        row_error (`float`, *optional*): standard error over the test rows; `None` if it is not known.
        rows (`int`, *optional*): number of test rows; `None` if their outcomes are not known.
    """

    mean: float
    values: list[float]
    row_error: float | None
    rows: int | None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; `None` for a single one."""
        return deviation(self.values)

    @property
    def noise(self) -> float | None:
        """Standard error of the mean: that over the test rows and that over the seeds, in quadrature.

        Other test rows and other seeds are two independent reasons for another result, so their variances add; the larger
        of the two alone would be too small by up to a factor of 1.4 where they are similar. What differs between seeds and
        rows at once is in both, so the noise is rather too large than too small. `None` if neither is known.
        """
        seeds = None if self.spread is None else self.spread / math.sqrt(len(self.values))
        known = [error for error in (self.row_error, seeds) if error is not None]
        return math.hypot(*known) if known else None


def estimate(own: Runs, column: Column) -> Estimate:
    """Mean of one method; the standard error over the rows is that of a single run.

    Args:
        own (`Runs`): the runs of the method.
        column (`Column`): measure and test set.
    """
    values = [run[column.name] for run in own]
    errors = [run[f"{ERROR}_{column.name}"] for run in own]
    known = [error**2 for error in errors if error is not None]
    outcomes = column.outcomes(own[0])
    return Estimate(
        mean(values),
        values,
        math.sqrt(mean(known)) if known else None,
        None if outcomes is None else len(outcomes),
    )


def difference(first: Runs, second: Runs, column: Column) -> Estimate | None:
    """Mean of one method minus that of another, paired by seed and, where their outcomes are known, by test row.

    Args:
        first (`Runs`): the runs of one method.
        second (`Runs`): the runs of the other; `untrained` has no seed and is paired with every seed of the other.
        column (`Column`): measure and test set.

    Returns:
        `Estimate`, *optional*: `None` if no seed has both.
    """
    pairs = _pairs(first, second)
    if not pairs:
        return None
    values = [one[column.name] - other[column.name] for one, other in pairs]
    rows = _row_differences(pairs, column)
    return Estimate(
        mean(values),
        values,
        None if rows is None else standard_error(rows),
        None if rows is None else len(rows),
    )


def by_value(runs: Runs, column: Column) -> list[str]:
    """The methods, the best first; those whose mean is not finite last."""

    def badness(method: str) -> float:
        mean = estimate(of_method(runs, method), column).mean
        return -column.sign * mean if math.isfinite(mean) else math.inf

    return sorted(dict.fromkeys(run["method"] for run in runs), key=badness)


def _pairs(first: Runs, second: Runs) -> list[tuple[Run, Run]]:
    """Runs with the same seed."""
    either = UNTRAINED in (first[0]["method"], second[0]["method"]) if first and second else False
    return [(one, other) for one in first for other in second if either or one["seed"] == other["seed"]]


def _row_differences(pairs: Sequence[tuple[Run, Run]], column: Column) -> list[float] | None:
    """Difference on every test row, averaged over the seeds."""
    differences = []
    for one, other in pairs:
        own = column.outcomes(one)
        others = column.outcomes(other)
        if own is None or others is None:
            return None
        differences.append([a - b for a, b in zip(own, others, strict=True)])
    return [mean(row) for row in zip(*differences, strict=True)]
