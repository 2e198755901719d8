"""The methods of `while_training.py`."""

from dataclasses import dataclass, field
from typing import Any

from hf_gist import GASTConfig, GISTConfig


UNTRAINED, PLAIN, ONCE, AGAIN = "untrained", "plain", "once", "again"

SAMPLES, COST = "samples", "cost"
"""What is the same for all methods of a table: the trained samples, or the cost."""

RULE = {"score": "cosine", "strategy": "round_robin"}
"""How the callback selects: the rule that also holds where few rows are scored."""


@dataclass(frozen=True)
class Method:
    """One way to train on a pool for a target.

    Args:
        title (`str`): its name in tables.
        gist (`dict`, *optional*): fields of [`GISTConfig`] of the callback.
        gast (`dict`, *optional*): fields of [`GASTConfig`]; every step is given twice as many samples as it keeps.
    """

    title: str
    gist: dict[str, Any] | None = None
    gast: dict[str, Any] | None = None

    def callback_config(self, rows: int, warmup_steps: int, seed: int, scoring_cost: float | None) -> GISTConfig:
        """The configuration of the callback."""
        more = {} if self.gist is None else self.gist
        return GISTConfig(budget=rows, warmup_steps=warmup_steps, seed=seed, scoring_cost=scoring_cost, **RULE, **more)

    def trainer_config(self, keep: int, seed: int) -> GASTConfig:
        """The configuration of GAST."""
        more = {} if self.gast is None else self.gast
        return GASTConfig(keep=keep, seed=seed, **more)


WHOLE = {"group_by": "model", "mode": "topk"}

METHODS = {
    PLAIN: Method("plain LoRA, random rows"),
    ONCE: Method("selected once", gist={}),
    AGAIN: Method("selected again after each pass", gist={"reselect_every": 1}),
    "whole_samples": Method("online, whole samples", gast=WHOLE),
    "greedy": Method("online, whole samples, greedy (GREATS)", gast=WHOLE | {"redundancy": True}),
    "gast": Method("GAST, samples by layer", gast={"mode": "stochastic"}),
}
"""Every method, in the order of the tables; selecting once is in both tables with the same run."""


@dataclass(frozen=True)
class Planned:
    """One run.

    Args:
        table (`str`): `SAMPLES` or `COST`.
        method (`str`): key of `METHODS`, or `UNTRAINED`.
        target (`str`): name of the variant.
        seed (`int`, *optional*): the untrained model has none.
    """

    table: str
    method: str
    target: str
    seed: int | None = None
    file: str = field(init=False)

    def __post_init__(self) -> None:
        end = "" if self.seed is None else f"-seed{self.seed}"
        target = self.target.replace(", ", "-").replace(" ", "_")
        object.__setattr__(self, "file", f"{self.table}-{self.method}-{target}{end}.json")


def plan(targets: list[str], seeds: list[int]) -> list[Planned]:
    """All runs, seed by seed; selecting once comes first, since its cost is that of the second table."""
    order = [(SAMPLES, ONCE), *((SAMPLES, name) for name in METHODS if name != ONCE)]
    order += [(COST, name) for name in METHODS if name != ONCE]
    untrained = [Planned(SAMPLES, UNTRAINED, target) for target in targets]
    return untrained + [Planned(*run, target, seed) for seed in seeds for target in targets for run in order]
