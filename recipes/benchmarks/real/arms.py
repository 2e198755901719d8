"""The arms of `real_model.py`: one entry in a table says which rows an arm trains on, and what must be scored for it.

To add one, write a function (measurements, pool, targets, config, seed) -> rows, and an entry in `ARMS`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset

from hf_gist import GISTConfig, Selection
from hf_gist.data.best_match import best_match_order
from hf_gist.functional.measurements import Measurements


UNTRAINED = "untrained"
RANDOM = "random"
WHOLE = "whole_pool"
LABELS = "labels"
GIST = "gist"
RDS_PLUS = "rds_plus"

COSINE = {"score": "cosine", "strategy": "round_robin"}

RECOMMENDED = COSINE | {"sample_from_top": 3.0}
"""Fields of [`GISTConfig`] of the recommended setting."""

SCORERS = {GIST: {}, RDS_PLUS: {"scorer": "rds_plus"}}
"""Fields of [`GISTConfig`] with which the pool is scored."""

PASSES = {LABELS: 0.0, RDS_PLUS: 0.5, GIST: 1.0}
"""Cost of scoring in training passes over the pool, without the warm-up; a forward pass counts half."""

Rows = Callable[[Measurements, Dataset, Dataset, GISTConfig, int], list[int]]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        title (`str`): its name in the table.
        rows (`Callable`): measurements for one target, tokenised pool, tokenised rows of the target, configuration
            with the budget in rows, and seed to the rows of the pool to train on.
        scorer (`str`): whose measurements it gets; those of `LABELS` need no model.
        by_target (`bool`): its rows differ from target to target; otherwise the first target's are used for all.
        proxy (`bool`): the measurements are those of the proxy model.
        scoring_cost (`float`, *optional*): only the rows that the library would score for it can be selected.
    """

    title: str
    rows: Rows
    scorer: str = LABELS
    by_target: bool = True
    proxy: bool = False
    scoring_cost: float | None = None


def random_order(size, seed):
    """All rows of the pool in a random order, of which every random arm takes the first."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def random_rows(measurements, pool, targets, config, seed):
    """Random rows."""
    return random_order(len(pool), seed)[: config.budget]


def all_rows(measurements, pool, targets, config, seed):
    """Every row."""
    return list(range(len(pool)))


def best_matches(measurements, pool, targets, config, seed):
    """Each target row in turn picks its best match by BM25."""
    eligible = measurements.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    return best_match_order(pool, targets, eligible, limit=config.budget)


def chosen(**fields) -> Rows:
    """What the library selects with these fields of [`GISTConfig`]."""

    def rows(measurements, pool, targets, config, seed):
        return Selection.choose(measurements, dataclasses.replace(config, **fields)).indices

    return rows


ARMS = {
    RANDOM: Arm("random rows", random_rows, by_target=False),
    "length_matched": Arm("random rows, lengths of the targets", chosen(strategy="length_matched_random")),
    "bm25": Arm("BM25, targets in turn", best_matches),
    "rds_plus": Arm("RDS+, round robin", chosen(scorer="rds_plus", strategy="round_robin"), RDS_PLUS),
    "gist": Arm("GIST, the paper's rule", chosen(), GIST),
    "recommended": Arm("GIST, recommended setting", chosen(**RECOMMENDED), GIST),
    "plan": Arm("GIST, plain cosine, round robin, for 0.25 passes", chosen(**COSINE), GIST, scoring_cost=0.25),
}
"""Arms that train on a budget of rows."""

PROXY_ARMS = {
    f"proxy_{name}": dataclasses.replace(ARMS[name], title=f"{ARMS[name].title}, chosen by the proxy", proxy=True)
    for name in ("gist", "recommended")
}

WHOLE_POOL = Arm("whole pool", all_rows, by_target=False)

EVERY_ARM = ARMS | PROXY_ARMS | {WHOLE: WHOLE_POOL}
