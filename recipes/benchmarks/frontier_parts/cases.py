"""One target with one seed: the measurements that arms choose from, and what their choice costs."""

import dataclasses
from functools import cached_property

import numpy as np
import torch

from frontier_parts.data import TARGET, Variant
from frontier_parts.scores import WARMUP_RATIO, Scores
from hf_gist import GISTConfig
from hf_gist.costs.accounting import ScoringRun, Sizes, training_cost
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import TRAINING, WARMUP
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scoring_cost.nearest import nearest_order
from hf_gist.gist.scoring_cost.plan import ScoringPlan, plan_scoring
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import padding_collator
from hf_gist.training.warmup import warmup_rows


EVERYTHING = 1e6
"""A `scoring_cost` that pays for all rows."""


class Refused(ValueError):
    """A cost does not pay for the rows that an arm needs."""


def warmup_ratio(cost: float | None) -> float:
    """Share of the pool that the warm-up of a plan trains on: the usual one, or less where it would take too much."""
    return WARMUP_RATIO if cost is None else min(WARMUP_RATIO, cost / 5)


class Case:
    """What the arms choose from, for one target and one seed.

    Args:
        variant (`Variant`): target and pool, `N` rows.
        scores (`Scores`): of the whole pool.
        share (`float`): share of the pool to train on.
    """

    def __init__(self, variant: Variant, scores: Scores, share: float) -> None:
        self.variant = variant
        self.scores = scores
        self.seed = scores.seed
        self.size = rows_in_budget(share, "rows", len(variant.pool))
        self.every = torch.ones(len(variant.pool), dtype=torch.bool)
        self._measured: dict[str, Measurements] = {}
        self._plans: dict[tuple[float | None, str], ScoringPlan] = {}

    # ---- Measurements ----

    def measured(self, scorer: str = "gist") -> Measurements:
        """The measurements of the pool for this target only."""
        if scorer not in self._measured:
            whole = self.scores.measured(scorer).for_targets(TARGET, self.variant.target)
            rows = torch.tensor(self.variant.kept)
            # the pool has neither copies nor target rows
            self._measured[scorer] = dataclasses.replace(
                whole,
                coordinates=whole.coordinates[rows],
                norms=whole.norms[rows],
                label_tokens=whole.label_tokens[rows],
                leaked=None,
                copy_of=None,
            )
        return self._measured[scorer]

    def only(self, rows: list[int]) -> Measurements:
        """The measurements as if only some rows had been scored."""
        mask = torch.zeros(len(self.variant.pool), dtype=torch.bool)
        return dataclasses.replace(self.measured(), scored=mask.index_fill(0, torch.tensor(rows), True))

    @cached_property
    def nearest(self) -> list[int]:
        """All rows by their mean input embeddings, each target in turn."""
        return nearest_order(self.scores.model, self.variant.pool, self.variant.targets, self.every)

    # ---- Costs, in training passes over the pool ----

    def plan(self, cost: float | None, scorer: str = "gist") -> ScoringPlan:
        """The library's plan for `scoring_cost`, or with `None` for all rows.

        Raises:
            Refused: if the cost does not pay for the rows of the budget.
        """
        key = (cost, scorer)
        if key not in self._plans:
            config = GISTConfig(budget=self.size, scorer=scorer, scoring_cost=EVERYTHING if cost is None else cost)
            model = self.scores.model
            collator = padding_collator(self.scores.tokenizer)
            dataset_pass = DatasetPass(model, collator, config.scoring_tokens_per_batch, progress=False)
            inputs = Inputs(self.variant.pool, self.variant.targets, {})
            try:
                self._plans[key] = plan_scoring(dataset_pass, inputs, config, self.warmup(warmup_ratio(cost)))
            except ValueError as error:
                raise Refused(str(error)) from error
        return self._plans[key]

    def warmup(self, ratio: float) -> PhaseCost:
        """Cost of a warm-up on a share of the pool."""
        config = GISTConfig(warmup_ratio=ratio, seed=self.seed)
        rows = warmup_rows(config, self.scores.settings, len(self.variant.pool))
        return training_cost(self.scores.work, Sizes(self.variant.lengths[rows], 0), WARMUP, 0.0)

    @cached_property
    def one_pass(self) -> float:
        """Operations of a training pass over the pool."""
        return training_cost(self.scores.work, Sizes(self.variant.lengths, 0), TRAINING, 0.0).flops

    @cached_property
    def price_by_row(self) -> np.ndarray:
        """Cost of scoring each row exactly `[N]`."""
        run = ScoringRun(self.scores.work, GISTConfig())
        labelled = self.variant.label_tokens.numpy()
        return run.flops_by_row(self.variant.lengths, labelled, len(self.variant.targets)) / self.one_pass

    def affordable(self, order: list[int], amount: float) -> list[int]:
        """The first rows of an order whose exact scores cost at most `amount`."""
        return order[: int((np.cumsum(self.price_by_row[order]) <= amount).sum())]

    def training_passes(self, rows: list[int]) -> float:
        """Cost of one pass over some rows."""
        return (
            training_cost(self.scores.work, Sizes(self.variant.lengths[rows], 0), TRAINING, 0.0).flops / self.one_pass
        )
