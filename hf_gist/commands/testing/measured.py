"""A measured number with what is known of its test rows."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
        return cls(statistics.fmean(rows), standard_error(rows), list(rows))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of some values, which are independent; `None` for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
