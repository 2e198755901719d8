"""Which rows are scored for a price (`scoring_cost`), before any row is scored."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.accounting import ScoringRun, Sizes, training_cost
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import SUBSPACE, TARGETS, TRAINING
from hf_gist.data.rows import row_lengths
from hf_gist.functional.selection.budget import budget_amount, row_sizes
from hf_gist.functional.selection.quotas import Quotas
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring_cost.eligible import eligible_before_scoring
from hf_gist.gist.scoring_cost.nearest import nearest_order
from hf_gist.gist.scoring_cost.share import Share
from hf_gist.gist.sources import quotas_of
from hf_gist.gradients.passes import DatasetPass


LARGEST_FACTOR = float(1 << 40)
"""A selection that is so many times as large has every row that may be selected."""

BISECTIONS = 100
"""Halvings of an interval of this size until neighbouring numbers of rows are told apart."""


@dataclass(frozen=True)
class ScoringPlan:
    """The rows that are scored for a price, and what that costs in training passes over the pool.

    Args:
        limit (`float`): `scoring_cost` of [`GISTConfig`].
        warmup (`float`): cost of the warm-up.
        targets (`float`): cost of scoring the targets, with their subspace.
        scoring (`float`): cost of scoring `rows`.
        candidates (`int`): rows of the pool.
        label_tokens (`Tensor`): labelled tokens of each row of the pool `[N]`.
        rows (`list[int]`, *optional*): the rows to score, in the order of the pool; `None` for all.
    """

    limit: float
    warmup: float
    targets: float
    scoring: float
    candidates: int
    label_tokens: Tensor
    rows: list[int] | None = None

    @property
    def total(self) -> float:
        """The whole cost, warm-up included."""
        return self.warmup + self.targets + self.scoring

    @property
    def scored(self) -> int:
        """Number of rows that are scored."""
        return self.candidates if self.rows is None else len(self.rows)

    def describe(self) -> str:
        """One line for the user."""
        parts = f"warm-up {self.warmup:.3f}, targets {self.targets:.3f}, rows {self.scoring:.3f}"
        plan = f"`scoring_cost={self.limit:g}`: {parts}, in all {self.total:.3f} training passes over the pool"
        if self.rows is None:
            return f"{plan}; all {self.candidates:,} rows are scored"
        others = self.candidates - self.scored
        return (
            f"{plan}; the {self.scored:,} rows nearest to a target are scored, {others:,} of {self.candidates:,} are "
            "not looked at"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        costs = {"warmup": self.warmup, "targets": self.targets, "scoring": self.scoring, "total": self.total}
        rounded = {name: round(value, 4) for name, value in costs.items()}
        return {"scoring_cost": self.limit, **rounded, "scored": self.scored, "candidates": self.candidates}


def plan_scoring(
    dataset_pass: DatasetPass,
    inputs: Inputs,
    config: GISTConfig,
    warmup: PhaseCost | None = None,
    passes: int | None = None,
    share: Share | None = None,
) -> ScoringPlan | None:
    """The plan for `scoring_cost`; `None` without it.

    Args:
        dataset_pass (`DatasetPass`): model, collator and loss; only labels are counted.
        inputs (`Inputs`): pool, targets and what must not be selected.
        config (`GISTConfig`): the cost, the budget and how rows are scored.
        warmup (`PhaseCost`, *optional*): cost of the warm-up, spent or to be spent.
        passes (`int`, *optional*): checkpoints that every row is scored at; by default those of the inputs.
        share (`Share`, *optional*): the drawn rows, if only a share of the pool is scored.

    Raises:
        ValueError: if the cost does not pay for enough rows, naming what would; if no row can be selected; for rows
            without token ids.
    """
    if config.scoring_cost is None or config.strategy in UNSCORED:
        return None
    prices = _Prices.measured(dataset_pass, inputs, config, warmup, passes or max(1, len(inputs.checkpoints)))
    left = config.scoring_cost - prices.spent
    eligible = eligible_before_scoring(inputs, config, prices.label_tokens)
    if share is not None:
        eligible = eligible & share.allowed
    elif prices.by_row.sum() <= left:
        return _plan(config, prices, None)
    if prices.by_row[eligible.numpy()].sum() <= left:
        return _plan(config, prices, eligible.nonzero().flatten().tolist())
    wanted = Wanted.of(config, prices.label_tokens, inputs.sources)
    limit = None if wanted.quotas.given else max(math.ceil(wanted.amount), prices.most_rows(eligible, left) + 1)
    order = nearest_order(dataset_pass.model, inputs.pool, inputs.targets, eligible, limit)
    # the same on all processes: a rounding difference must not change the rows of one of them
    order = broadcast_object_list([order])[0]
    needed = wanted.rows(order, 1.0)
    if prices.of(needed) > left:
        _refuse(config, prices, needed)
    return _plan(config, prices, sorted(_affordable(order, left, prices, wanted)))


@dataclass(frozen=True)
class Wanted:
    """The rows that a selection is chosen from.

    Args:
        amount (`float`): the budget times `sample_from_top`.
        sizes (`Tensor`): what each row takes of the budget `[N]` int64.
        quotas (`Quotas`): what each source gets.
        times (`float`): `sample_from_top`.
    """

    amount: float
    sizes: Tensor
    quotas: Quotas
    times: float

    @classmethod
    def of(cls, config: GISTConfig, label_tokens: Tensor, sources: list[str] | None) -> "Wanted":
        """From the budget and the quotas of a configuration."""
        amount = budget_amount(config.budget, config.budget_unit, label_tokens) * config.sample_from_top
        sizes = row_sizes(config.budget_unit, label_tokens)
        return cls(amount, sizes, quotas_of(config, sources), config.sample_from_top)

    def rows(self, order: list[int], factor: float) -> list[int]:
        """The first rows of an order for a budget, and limits of sources, that are `factor` times as large."""
        return self.quotas.pick(order, self.amount * factor, self.sizes, self.times * factor)


def _affordable(order: list[int], left: float, prices: "_Prices", wanted: Wanted) -> list[int]:
    """As many of the first rows of an order as `left` pays for, with the sources in the proportions of the selection."""
    low = 1.0
    high = LARGEST_FACTOR
    if prices.of(wanted.rows(order, high)) <= left:
        # the limits of the sources leave out the others
        return wanted.rows(order, high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if prices.of(wanted.rows(order, middle)) <= left:
            low = middle
        else:
            high = middle
    return wanted.rows(order, low)


def _plan(config: GISTConfig, prices: "_Prices", rows: list[int] | None) -> ScoringPlan:
    scoring = prices.by_row.sum() if rows is None else prices.by_row[rows].sum()
    return ScoringPlan(
        limit=float(config.scoring_cost or 0),
        warmup=prices.warmup,
        targets=prices.targets,
        scoring=float(scoring),
        candidates=len(prices.by_row),
        label_tokens=prices.label_tokens,
        rows=rows,
    )


@dataclass(frozen=True)
class _Prices:
    """Costs in training passes over the pool: of the warm-up, of the targets and of each row of the pool `[N]`."""

    warmup: float
    targets: float
    by_row: np.ndarray
    label_tokens: Tensor

    @property
    def spent(self) -> float:
        """What is spent before the first row of the pool is scored."""
        return self.warmup + self.targets

    def of(self, rows: list[int]) -> float:
        """Cost of scoring some rows."""
        return float(self.by_row[rows].sum())

    def most_rows(self, eligible: Tensor, left: float) -> int:
        """The largest number of rows that can be paid for: the cheapest ones."""
        costs = np.sort(self.by_row[eligible.numpy()]).cumsum()
        return int(np.searchsorted(costs, left, side="right"))

    @classmethod
    def measured(
        cls, dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, warmup: PhaseCost | None, passes: int
    ) -> "_Prices":
        lengths = row_lengths(inputs.pool)
        wanted = row_lengths(inputs.targets)
        if lengths is None or wanted is None:
            raise ValueError(
                f"`scoring_cost={config.scoring_cost:g}` needs the lengths of the rows, but they are tokenised by the "
                "collator only. Tokenise pool and targets first (`input_ids`), or leave it out."
            )
        counts = LabelCounts()
        labelled = dataset_pass.scan(inputs.pool, "counting labels", counts).label_tokens
        of_targets = int(dataset_pass.scan(inputs.targets, "counting labels", counts).label_tokens.sum())
        work = ModelWork.of(dataset_pass.model)
        run = ScoringRun(work, config, scorer_of(config).forward_only, passes)
        rank = len(wanted)
        sizes = {TARGETS: Sizes(wanted, of_targets)}
        targets = sum(run.cost(phase, 0.0, sizes, rank).flops for phase in (TARGETS, SUBSPACE))
        one_pass = training_cost(work, Sizes(lengths, int(labelled.sum())), TRAINING, 0.0).flops
        by_row = run.flops_by_row(lengths, labelled.numpy(), rank) / one_pass
        return cls(0.0 if warmup is None else warmup.flops / one_pass, targets / one_pass, by_row, labelled)


def _refuse(config: GISTConfig, prices: _Prices, needed: list[int]) -> None:
    limit = float(config.scoring_cost or 0)
    paid = int((prices.by_row[needed].cumsum() <= limit - prices.spent).sum())
    enough = math.ceil(1000 * (prices.spent + prices.of(needed))) / 1000
    lower = ["`budget`", *(["`sample_from_top`"] if config.sample_from_top > 1 else [])]
    if prices.warmup:
        lower.append("`warmup_ratio`" if config.warmup_steps is None else "`warmup_steps`")
    fewer = " Or use fewer target rows." if prices.targets > 0.2 * limit else ""
    raise ValueError(
        f"`scoring_cost={limit:g}` pays for scoring {paid:,} rows, after {prices.warmup:.3f} training "
        f"passes over the pool for the warm-up and {prices.targets:.3f} for the targets, but `budget` times "
        f"`sample_from_top` needs {len(needed):,}. Set it to {enough:g} or more, or lower {' or '.join(lower)}.{fewer}"
    )
