"""A measured number with what is known of its test rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Measured:
    """What one model reaches on one test set in one measure.

    Args:
        value (`float`): the loss, the accuracy, or the metric.
        standard_error (`float`, *optional*): of the value over the test rows; `None` if it is not known.
        rows (`list[float]`, *optional*): the outcome of every row, whose mean is the value; `None` for a metric that is
            not a mean over the rows.
    """

    value: float
    standard_error: float | None
    rows: list[float] | None

    @classmethod
    def mean_of(cls, rows: Sequence[float]) -> "Measured":
        """The mean of the rows' outcomes.

        Args:
            rows (`Sequence[float]`): outcome of every row.
        """
        return cls(mean(rows), standard_error(rows), list(rows))


def mean(values: Sequence[float]) -> float:
    """Mean; not a number if a value is not."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values))


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation; `None` for a single value, not a number if a value is not finite."""
    if len(values) < 2:
        return None
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of values that are independent; `None` for a single one."""
    spread = deviation(values)
    return None if spread is None else spread / math.sqrt(len(values))
