"""The arms of a comparison: what each method changes in the configuration, and the rows it selects with a seed."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.data.best_match import order_by_turns
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import cut_to_budget, rows_in_budget
from hf_gist.functional.selection.ranking import uniform_order
from hf_gist.gist.scorers.gist import GIST
from hf_gist.gist.scorers.less import LESS
from hf_gist.gist.scorers.rds_plus import RDS_PLUS
from hf_gist.gist.selection import Selection
from hf_gist.gist.sources import quotas_of
from hf_gist.gist.wording import SCORES, STRATEGIES


UNTRAINED = "untrained"
WHOLE_POOL = "whole_pool"
IN_DOMAIN = "in_domain_random"
RANDOM = "random"
PLANNED = "gist_planned"
LABELS = "labels"
"""Key of measurements that hold only label counts."""
BM25 = "bm25"
NEAREST = "nearest"
LOSS_DROP = "loss_drop"
ONE_GROUP = "__all__"


@dataclass(frozen=True)
class Arm:
    """One method.

    Args:
        title (`str`): its name in the table.
        changes (`dict`): fields of [`GISTConfig`] that define the method.
        random (`bool`): its rows differ from seed to seed.
        baseline (`str`, *optional*): it selects by the row scores of this baseline, which is no setting of
            [`GISTConfig`].
        planned (`bool`): only the rows that `scoring_cost` pays for are scored; the other arms have all scores.
    """

    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    random: bool = False
    baseline: str | None = None
    planned: bool = False

    @property
    def scorer(self) -> str:
        """Name of the scorer whose measurements, or of the baseline whose row scores it selects from."""
        if self.random:
            return LABELS
        return PLANNED if self.planned else self.baseline or self.changes.get("scorer", GIST.name)


ARMS = {
    UNTRAINED: Arm("untrained model"),
    RANDOM: Arm("random rows", {"strategy": "random"}, random=True),
    "length_matched_random": Arm("random rows, lengths of the targets", {"strategy": "length_matched_random"}, True),
    IN_DOMAIN: Arm("random rows of the target's own source (oracle)", random=True),
    NEAREST: Arm("nearest mean embeddings, round robin over targets", baseline=NEAREST),
    BM25: Arm("BM25, round robin over targets", baseline=BM25),
    LOSS_DROP: Arm("largest fall of the loss after training on the targets", baseline=LOSS_DROP),
    "grad_norm": Arm("largest gradient norm", {"score": "grad_norm", "strategy": "max"}),
    "plain_cosine": Arm(SCORES["cosine"].title, {"score": "cosine", "strategy": "max"}),
    "rds_plus": Arm(f"{RDS_PLUS.title}, {STRATEGIES['max'].title}", {"scorer": "rds_plus", "strategy": "max"}),
    "rds_plus_round_robin": Arm(
        f"{RDS_PLUS.title} (its own rule: round robin)", {"scorer": "rds_plus", "strategy": "round_robin"}
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
    PLANNED: Arm(
        "plain cosine, round robin, within `--scoring_cost`",
        {"score": "cosine", "strategy": "round_robin"},
        planned=True,
    ),
    WHOLE_POOL: Arm("whole pool"),
}
NEED_NO_ROWS = (UNTRAINED, WHOLE_POOL)


def config_of(arm: Arm, config: GISTConfig, seed: int | None = None) -> GISTConfig:
    """The configuration of an arm.

    Args:
        arm (`Arm`): the method.
        config (`GISTConfig`): settings that the arms share; fields that the arm does not change are kept.
        seed (`int`, *optional*): of the random draws; no score depends on it.
    """
    changes: dict[str, Any] = {"scorer": GIST.name, "score": "subspace_cosine", "sample_from_top": 1.0}
    changes["scoring_cost"] = config.scoring_cost if arm.planned else None
    if arm.scorer not in (GIST.name, PLANNED):
        changes["sketch_dim"] = None
    if seed is not None:
        changes["seed"] = seed
    return dataclasses.replace(config, **(changes | arm.changes))


def rows_of_arm(
    name: str,
    measured: Measurements,
    config: GISTConfig,
    seed: int,
    oracle_sources: list[str] | None,
    row_scores: Tensor | None = None,
) -> list[int]:
    """The rows an arm trains on.

    Args:
        name (`str`): key of `ARMS`.
        measured (`Measurements`): of its scorer; of a baseline, those with the label counts.
        config (`GISTConfig`): settings that the arms share, mainly the budget.
        seed (`int`): of the random arms.
        oracle_sources (`list[str]`, *optional*): sources of the targets, for `in_domain_random`.
        row_scores (`Tensor`, *optional*): of a baseline, see [`rows_by_scores`].
    """
    if row_scores is not None:
        return rows_by_scores(row_scores, measured, config)
    eligible = measured.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    if name == WHOLE_POOL:
        return eligible.nonzero().flatten().tolist()
    if name == IN_DOMAIN:
        own = torch.tensor([source in (oracle_sources or ()) for source in measured.sources or []]) & eligible
        order = uniform_order(own, seed)
        return cut_to_budget(order, config.budget, config.budget_unit, measured.label_tokens)
    own_config = config_of(ARMS[name], config, seed)
    if name == "gist_mean_target":
        measured = _in_one_group(measured)
        own_config = dataclasses.replace(own_config, target_group_column=ONE_GROUP)
    if own_config.strategy in UNSCORED:
        own_config = dataclasses.replace(own_config, target_group_column=None)
    return Selection.choose(measured, own_config).indices


def rows_by_scores(row_scores: Tensor, measured: Measurements, config: GISTConfig) -> list[int]:
    """The rows that the scores of a baseline select within the budget: each ranking in turn picks its best row.

    Args:
        row_scores (`Tensor`): `G` rankings of the pool `[G, N]`, higher is better; -inf for rows not to be selected.
        measured (`Measurements`): label counts, sources, leaks and copies.
        config (`GISTConfig`): settings that the arms share.
    """
    eligible = measured.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    allowed = eligible & (row_scores > float("-inf")).all(0)
    quotas = quotas_of(config, measured.sources)
    # the rows of a share may come late in the order
    limit = None if quotas.given else rows_in_budget(config.budget, config.budget_unit, len(allowed))
    order = order_by_turns(row_scores, allowed, limit)
    return cut_to_budget(order, config.budget, config.budget_unit, measured.label_tokens, quotas)


def _in_one_group(measured: Measurements) -> Measurements:
    """The measurements with a further target column, `ONE_GROUP`, that has the same value in every row."""
    column = {ONE_GROUP: ["all"] * len(measured.target_coordinates)}
    return dataclasses.replace(measured, target_columns=measured.target_columns | column)
