"""The random share of the pool that is scored when rows are chosen again (`reselect_share`)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.selection.budget import budget_amount, row_sizes
from hf_gist.functional.selection.draws import random_share, seed_of_selection
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scoring_cost.eligible import eligible_before_scoring
from hf_gist.gradients.passes import DatasetPass


@dataclass(frozen=True)
class Share:
    """The rows that are scored.

    Args:
        share (`float`): `reselect_share` of [`GISTConfig`].
        allowed (`Tensor`): `[N]` bool, the drawn rows.
        label_tokens (`Tensor`): labelled tokens of each row of the pool `[N]`.
    """

    share: float
    allowed: Tensor
    label_tokens: Tensor

    @property
    def rows(self) -> list[int]:
        """The drawn rows, in the order of the pool."""
        return self.allowed.nonzero().flatten().tolist()

    def describe(self) -> str:
        """One line for the user."""
        return (
            f"`reselect_share={self.share:g}`: {len(self.rows):,} of {len(self.allowed):,} rows are drawn for scoring"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"reselect_share": self.share, "drawn": len(self.rows), "candidates": len(self.allowed)}


def has_share(config: GISTConfig, number: int) -> bool:
    """Whether a selection, counted from 1, scores a share of the pool only."""
    return number > 1 and config.reselect_share < 1 and config.strategy not in UNSCORED


def draw_share(dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, number: int) -> Share | None:
    """The rows to draw for a selection; `None` if the whole pool is scored.

    Args:
        dataset_pass (`DatasetPass`): collator and loss; only labels are counted.
        inputs (`Inputs`): pool, and what must not be selected.
        config (`GISTConfig`): the share and the seed.
        number (`int`): of the selection, from 1.
    """
    if not has_share(config, number):
        return None
    label_tokens = dataset_pass.scan(inputs.pool, "counting labels", LabelCounts()).label_tokens
    return _drawn(label_tokens, eligible_before_scoring(inputs, config, label_tokens), config, number)


def _drawn(label_tokens: Tensor, eligible: Tensor, config: GISTConfig, number: int) -> Share:
    seed = seed_of_selection(config.seed, number)
    return Share(config.reselect_share, random_share(eligible, config.reselect_share, seed), label_tokens)


def check_share(dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, numbers: Iterable[int]) -> list[Share]:
    """Check that the drawn rows fill the budget in each of some selections.

    Args:
        dataset_pass (`DatasetPass`): collator and loss; only labels are counted.
        inputs (`Inputs`): pool, and what must not be selected.
        config (`GISTConfig`): the share, the seed and the budget.
        numbers (`Iterable[int]`): of the selections, from 1.

    Returns:
        `list[Share]`: the rows of each selection that scores a share of the pool.

    Raises:
        ValueError: with the share that is enough.
    """
    numbers = [number for number in numbers if has_share(config, number)]
    if not numbers:
        return []
    label_tokens = dataset_pass.scan(inputs.pool, "counting labels", LabelCounts()).label_tokens
    eligible = eligible_before_scoring(inputs, config, label_tokens)
    sizes = row_sizes(config.budget_unit, label_tokens)
    everything = int(sizes[eligible].sum())
    amount = budget_amount(config.budget, config.budget_unit, label_tokens) * config.sample_from_top
    # a pool that does not fill the budget either is selected as a whole
    needed = min(math.floor(amount), everything)
    shares = [_drawn(label_tokens, eligible, config, number) for number in numbers]
    drawn = min(int(sizes[share.allowed].sum()) for share in shares)
    if drawn < needed:
        unit = {"rows": "rows", "tokens": "labelled tokens"}[config.budget_unit]
        enough = min(1.0, math.ceil(100 * config.reselect_share * needed / max(1, drawn)) / 100)
        times = f" times `sample_from_top={config.sample_from_top:g}`" if config.sample_from_top > 1 else ""
        raise ValueError(
            f"`reselect_share={config.reselect_share:g}` draws only {drawn:,} of {everything:,} {unit} that may be "
            f"selected, but `budget={config.budget}`{times} needs {needed:,}. Set it to about {enough:g} or more, or "
            "lower `budget`."
        )
    return shares
