"""The finished runs of `frontier.py`, compared with random rows of the same seed."""

import statistics
from collections.abc import Sequence
from typing import Any

from frontier_parts.arms import RANDOM


Run = dict[str, Any]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


class Results:
    """Finished runs.

    Args:
        runs (`list[dict]`): what the files of the runs hold.
    """

    def __init__(self, runs: list[Run]) -> None:
        self.refused = [run for run in runs if "refused" in run]
        self.done = [run for run in runs if "loss" in run]
        self.targets = list(dict.fromkeys(run["target"] for run in self.done))
        self._by_key: dict[tuple[str, str], list[Run]] = {}
        for run in self.done:
            self._by_key.setdefault((run["arm"], run["target"]), []).append(run)

    def of(self, arm: str, target: str) -> list[Run]:
        """The runs of an arm for a target."""
        return self._by_key.get((arm, target), [])

    def pairs(self, arm: str, target: str, other: str = RANDOM) -> list[tuple[float, float]]:
        """The losses of an arm and of another one with the same seed; the untrained model is paired with all seeds."""
        others = {run["seed"]: run["loss"] for run in self.of(other, target)}
        found = []
        for run in self.of(arm, target):
            seeds = others if run["seed"] is None else [run["seed"]]
            found += [(run["loss"], others[seed]) for seed in seeds if seed in others]
        return found

    def differences(self, arm: str, target: str) -> list[float]:
        """Loss minus that of random rows, for each seed that both have."""
        return [own - random for own, random in self.pairs(arm, target)]

    def relative(self, arm: str, target: str) -> float | None:
        """Mean over the seeds of the loss's change from random rows, as a share of the loss of these."""
        pairs = self.pairs(arm, target)
        return statistics.fmean([own / random - 1 for own, random in pairs]) if pairs else None

    def passes(self, arm: str, target: str) -> float:
        """Mean cost of the selection in training passes over the pool."""
        return statistics.fmean(run["selection_passes"] for run in self.of(arm, target))

    def gains(self, arm: str, exact: str, target: str) -> tuple[float, float] | None:
        """Mean gains of two arms over random rows, over the seeds that all three have; `None` without one."""
        losses = [{run["seed"]: run["loss"] for run in self.of(name, target)} for name in (arm, exact, RANDOM)]
        seeds = [seed for seed in losses[0] if all(seed in own for own in losses)]
        if not seeds:
            return None
        own, best, random = (statistics.fmean(found[seed] for seed in seeds) for found in losses)
        return random - own, random - best


def shares_of_gain(results: Results, arm: str, exact: str) -> tuple[list[float], float | None, int]:
    """The share of the exact selection's gain over random rows that an arm reaches.

    Args:
        results (`Results`): finished runs.
        arm (`str`): a plan.
        exact (`str`): the same rule on all rows.

    Returns:
        `tuple`: the share for each target where the exact selection has a gain, all gains there together as a share
            of its gains (`None` without any), and the number of targets that have both.
    """
    found = [results.gains(arm, exact, target) for target in results.targets]
    pairs = [gains for gains in found if gains is not None]
    with_gain = [(own, wanted) for own, wanted in pairs if wanted > 0]
    total = sum(wanted for _, wanted in with_gain)
    summed = sum(own for own, _ in with_gain) / total if with_gain else None
    return [own / wanted for own, wanted in with_gain], summed, len(pairs)
