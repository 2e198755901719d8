"""Which arm to recommend: how far each is from random rows, and what a choice made on other targets gets on a new one."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from frontier_parts.arms import UNTRAINED
from frontier_parts.results import Results


@dataclass(frozen=True)
class Candidate:
    """An arm on all targets.

    Args:
        arm (`str`): its name.
        changes (`dict[str, float]`): target to the change of its loss from random rows, see [`Results.relative`].
        passes (`float`): largest cost of the selection over the targets.
    """

    arm: str
    changes: dict[str, float]
    passes: float

    def mean(self, targets: Sequence[str]) -> float:
        """Mean change over some targets."""
        return statistics.fmean(self.changes[target] for target in targets)

    @property
    def worst(self) -> str:
        """The target with the largest change."""
        return max(self.changes, key=lambda target: self.changes[target])


@dataclass(frozen=True)
class LeftOut:
    """The arm that would be recommended without a target, and what it gets there.

    Args:
        target (`str`): the target that is left out.
        chosen (`str`): the arm with the lowest mean change on the other targets.
        others (`float`): this mean.
        change (`float`): its change on the target.
        best (`str`): the arm with the lowest change on the target itself.
        best_change (`float`): that change.
    """

    target: str
    chosen: str
    others: float
    change: float
    best: str
    best_change: float


def candidates(results: Results, arms: Sequence[str]) -> list[Candidate]:
    """The arms that were run on every target, apart from the untrained model."""
    found = []
    for arm in arms:
        changes = {target: results.relative(arm, target) for target in results.targets}
        known = {target: change for target, change in changes.items() if change is not None}
        if arm != UNTRAINED and known and len(known) == len(results.targets):
            found.append(Candidate(arm, known, max(results.passes(arm, target) for target in known)))
    return found


def leave_one_out(found: Sequence[Candidate], families: dict[str, str], limit: float | None) -> list[LeftOut]:
    """For every target the arm that the others recommend.

    Args:
        found (`Sequence[Candidate]`): the candidates.
        families (`dict[str, str]`): name of a variant to its target: all variants of a target are left out together.
        limit (`float`, *optional*): largest cost of the selection.
    """
    allowed = [c for c in found if limit is None or c.passes <= limit + 1e-6]
    lines = []
    for target in allowed[0].changes if allowed else []:
        others = [name for name in allowed[0].changes if families[name] != families[target]]
        if not others:
            continue
        chosen = min(allowed, key=lambda c: c.mean(others))
        best = min(allowed, key=lambda c: c.changes[target])
        lines.append(
            LeftOut(target, chosen.arm, chosen.mean(others), chosen.changes[target], best.arm, best.changes[target])
        )
    return lines
