"""The arms of a comparison: what each method changes in the configuration, and the rows it chooses for a seed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.budget import cut_to_budget
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.ranking import uniform_order
from hf_gist.gist.scorers.gist import GIST
from hf_gist.gist.scorers.less import LESS
from hf_gist.gist.scorers.rds_plus import RDS_PLUS
from hf_gist.gist.selection import Selection
from hf_gist.gist.wording import SCORES, STRATEGIES


UNTRAINED, WHOLE_POOL, IN_DOMAIN, RANDOM = "untrained", "whole_pool", "in_domain_random", "random"
LABELS = "labels"
"""Key of measurements that hold nothing but label counts."""


@dataclass(frozen=True)
class Arm:
    """One method.

    Args:
        title (`str`): what the table says.
        changes (`dict`): fields of [`GISTConfig`] that make the method.
        random (`bool`): its rows differ from seed to seed.
    """

    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    random: bool = False

    @property
    def scorer(self) -> str:
        """The measurements it chooses from."""
        return LABELS if self.random else self.changes.get("scorer", GIST.name)


ARMS = {
    UNTRAINED: Arm("untrained model"),
    RANDOM: Arm("random rows", {"strategy": "random"}, random=True),
    "length_matched_random": Arm("random rows, lengths of the targets", {"strategy": "length_matched_random"}, True),
    IN_DOMAIN: Arm("random rows of the target's own source (oracle)", random=True),
    "grad_norm": Arm("largest gradient norm", {"score": "grad_norm", "strategy": "max"}),
    "plain_cosine": Arm(SCORES["cosine"].title, {"score": "cosine", "strategy": "max"}),
    "rds_plus": Arm(f"{RDS_PLUS.title}, {STRATEGIES['max'].title}", {"scorer": "rds_plus", "strategy": "max"}),
    "rds_plus_round_robin": Arm(
        f"{RDS_PLUS.title} (its round robin)", {"scorer": "rds_plus", "strategy": "round_robin"}
    ),
    "rds_plus_sampled": Arm(
        f"{RDS_PLUS.title}, round robin, a third of the top",
        {"scorer": "rds_plus", "strategy": "round_robin", "sample_from_top": 3.0},
    ),
    "less": Arm(LESS.title, {"scorer": "less", "strategy": "max"}),
    "gist": Arm(f"{GIST.title} (paper's rule)", {"strategy": "max"}),
    "gist_mean_target": Arm(f"{GIST.title}, all targets averaged", {"strategy": "max"}),
    "gist_round_robin": Arm(f"{GIST.title}, round robin", {"strategy": "round_robin"}),
    "gist_cosine_round_robin": Arm("plain cosine, round robin", {"score": "cosine", "strategy": "round_robin"}),
    "gist_sampled": Arm(
        "plain cosine, round robin, a third of the top",
        {"score": "cosine", "strategy": "round_robin", "sample_from_top": 3.0},
    ),
    WHOLE_POOL: Arm("whole pool"),
}
NEED_NO_ROWS = (UNTRAINED, WHOLE_POOL)


def config_of(arm: Arm, config: GISTConfig, seed: int | None = None) -> GISTConfig:
    """The configuration of an arm; what `config` sets and the arm does not change stays."""
    plain = {"scorer": GIST.name, "score": "subspace_cosine", "sample_from_top": 1.0}
    if arm.scorer != GIST.name:
        plain |= {"prefilter": None, "sketch_dim": None}
    if seed is not None:
        # of the draws; no score depends on it
        plain["seed"] = seed
    return dataclasses.replace(config, **(plain | arm.changes))


def rows_of_arm(
    name: str, measured: Measurements, config: GISTConfig, seed: int, oracle_sources: list[str] | None
) -> list[int]:
    """The rows an arm trains on.

    Args:
        name (`str`): key of `ARMS`.
        measured (`Measurements`): of its scorer.
        config (`GISTConfig`): what the arms share, the budget above all.
        seed (`int`): of the random arms.
        oracle_sources (`list[str]`, *optional*): sources that the targets come from, for `in_domain_random`.
    """
    eligible = measured.eligible(config.drop_target_duplicates)
    if name == WHOLE_POOL:
        return eligible.nonzero().flatten().tolist()
    if name == IN_DOMAIN:
        own = torch.tensor([source in oracle_sources for source in measured.sources]) & eligible
        order = uniform_order(own, seed)
        return cut_to_budget(order, config.budget, config.budget_unit, measured.label_tokens)
    changed = config_of(ARMS[name], config, seed)
    if name == "gist_mean_target":
        column = "__all__"
        together = {column: ["all"] * len(measured.target_coordinates)}
        measured = dataclasses.replace(measured, target_columns=measured.target_columns | together)
        changed = dataclasses.replace(changed, target_group_column=column)
    if changed.strategy in UNSCORED:
        changed = dataclasses.replace(changed, target_group_column=None)
    return Selection.choose(measured, changed).indices
