"""The loss of the target rows during a training, as a series, and whether it rose by more than its noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


START = "before the first step"
WARMED_UP = "after the warm-up"
AT_THE_END = "at the end"

MANIFEST_KEY = "target_loss"
"""Key of the series in the manifest of a selection that was trained on."""

STANDARD_ERRORS = 2.0
"""A rise counts if it is larger than this many standard errors of the rows' differences."""

SMALLEST_RISE = 1e-3
"""A rise counts if it is larger than this share of the loss before, which is above any rounding."""


@dataclass(frozen=True)
class TargetLoss:
    """The loss of every target row at one point of a training.

    Args:
        step (`int`): optimizer steps done.
        event (`str`): `START`, `WARMED_UP`, `AT_THE_END`, or which pass over the selection has ended.
        passes (`float`, *optional*): passes over the selection done; `None` before the selection.
        losses (`tuple[float, ...]`): each row's own loss `[M]`.
    """

    step: int
    event: str
    passes: float | None
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """The mean over the rows; infinite if the loss of a row is not finite."""
        return mean(self.losses)


def after_passes(passes: float) -> str:
    """The event at the end of a pass: `after pass 2`, or `after 1.5 passes` if training ends in the middle of one."""
    whole = round(passes)
    return f"after pass {whole}" if abs(passes - whole) < 1e-6 else f"after {passes:.3g} passes"


def mean(losses: Sequence[float]) -> float:
    """The mean of some losses; infinite if one of them is not finite."""
    return math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf


def difference(before: TargetLoss, after: TargetLoss) -> tuple[float, float]:
    """By how much the mean loss changed, and the standard error of that, from the differences of the same rows.

    Returns:
        `tuple[float, float]`: mean of the differences `d_i`, and `std(d) / sqrt(M)`: 0 for a single row, which has no
            standard error, and for losses that are not finite.
    """
    change = after.loss - before.loss
    count = len(before.losses)
    if count < 2 or not math.isfinite(after.loss) or not math.isfinite(before.loss):
        return change, 0.0
    apart = [new - old for old, new in zip(before.losses, after.losses, strict=True)]
    variance = math.fsum((value - change) ** 2 for value in apart) / (count - 1)
    return change, math.sqrt(variance / count)


def rose(before: TargetLoss, after: TargetLoss) -> bool:
    """Whether the mean loss rose by more than its noise.

    The noise is that of the choice of target rows: the standard error of the differences of the same rows, which is
    much smaller than that of the losses themselves. A rise counts above `STANDARD_ERRORS` of it and above `SMALLEST_RISE`
    of the loss before. Of a single row, which has no standard error, every rise above `SMALLEST_RISE` counts.
    """
    change, error = difference(before, after)
    if not math.isfinite(change):
        return math.isfinite(before.loss)
    return change > noise(before.loss, error)


def noise(loss: float, error: float) -> float:
    """The largest change of a mean loss that may be noise, see [`rose`].

    Args:
        loss (`float`): the loss before.
        error (`float`): standard error of the change.
    """
    return max(STANDARD_ERRORS * error, SMALLEST_RISE * abs(loss))


@dataclass
class TargetSeries:
    """The loss of the target rows over a training.

    Args:
        rows (`list[int]`): numbers of the measured rows in the target set `[M]`.
        groups (`list[str]`, *optional*): name of each row's group `[M]`, with a `target_group_column`.
        held_out (`bool`): whether the measured rows were held out from the selection.
        points (`list[TargetLoss]`): in the order of the training.
        digest (`str`): of all rows of the target set.
    """

    rows: list[int]
    groups: list[str] | None = None
    held_out: bool = False
    points: list[TargetLoss] = field(default_factory=list)
    digest: str = ""

    def at(self, event: str) -> TargetLoss | None:
        """The point with this event, if there is one."""
        return next((point for point in self.points if point.event == event), None)

    def of_passes(self) -> list[TargetLoss]:
        """The points after the selection."""
        return [point for point in self.points if point.passes is not None]

    def up_to(self, step: int) -> "TargetSeries":
        """The series of a run that has come as far as `step`."""
        return replace(self, points=[point for point in self.points if point.step <= step])

    def to_dict(self) -> dict[str, Any]:
        """For a file from which a resumed run continues: with the losses of the single rows."""
        points = [vars(point) | {"losses": list(point.losses)} for point in self.points]
        return vars(self) | {"points": points}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TargetSeries":
        """The inverse of [`TargetSeries.to_dict`]."""
        points = [TargetLoss(**point | {"losses": tuple(point["losses"])}) for point in values["points"]]
        return cls(**values | {"points": points})

    def summary(self) -> dict[str, Any]:
        """For the manifest: the mean at each point, of all rows and of each group; `None` if it is not finite."""
        points = [
            {
                "step": point.step,
                "event": point.event,
                "passes": point.passes,
                "loss": _finite(point.loss),
                "rows": len(point.losses),
                "change": _finite(difference(self.points[0], point)[0]),
                "standard_error_of_change": difference(self.points[0], point)[1],
                "groups": self._by_group(point),
            }
            for point in self.points
        ]
        return {"rows": self.rows, "held_out": self.held_out, "points": points}

    def _by_group(self, point: TargetLoss) -> dict[str, float | None]:
        losses: dict[str, list[float]] = {}
        for name, loss in zip(self.groups or (), point.losses, strict=False):
            losses.setdefault(name, []).append(loss)
        return {name: _finite(mean(own)) for name, own in sorted(losses.items())}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
