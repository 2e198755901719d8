"""From measurements and a configuration to scores and an order of the candidates (paper GIST, Eq. 15-17)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.functional.selection.ranking import (
    group_directions,
    length_matched_order,
    ranked,
    round_robin,
    score_candidates,
    uniform_order,
)


@dataclass(frozen=True)
class ComparisonSpace:
    """The coordinates in which candidates and target groups are compared.

    Args:
        coordinates (`Tensor`): candidates `[N, k]`.
        directions (`Tensor`): target groups `[H, k]`.
        norms (`Tensor`, *optional*): norms `[N]` of the whole vectors, for the plain cosine; by default the norm
            inside the subspace.
    """

    coordinates: Tensor
    directions: Tensor
    norms: Tensor | None = None

    @classmethod
    def of(
        cls, m: Measurements, eligible: Tensor, groups: list[int], rank: int | None, unit_directions: bool
    ) -> "ComparisonSpace":
        """The space of the subspace cosine or of the plain cosine (paper GIST, Eq. 15-16).

        Args:
            m (`Measurements`): of candidates and targets.
            eligible (`Tensor`): candidates that may be selected `[N]` bool.
            groups (`list[int]`): group of each target row, `M` values in `[0, H)`.
            rank (`int`, *optional*): compare the first `rank` directions; by default the whole vectors.
            unit_directions (`bool`): normalise the mean of each group.
        """
        k = len(m.singular_values) if rank is None else rank
        coordinates = torch.where(eligible.unsqueeze(1), m.coordinates[:, :k], torch.zeros(()))
        directions = group_directions(m.target_coordinates[:, :k], groups, len(set(groups)), unit_directions)
        # the full-rank basis spans the targets, so the plain cosine needs only a candidate's coordinates and norm
        norms = torch.where(m.scorable, m.norms, torch.zeros(())) if rank is None else None
        return cls(coordinates, directions, norms)


def _baseline_order(m: Measurements, scorable: Tensor, config: GISTConfig) -> list[int]:
    if config.strategy == "random":
        return uniform_order(scorable, config.seed)
    return length_matched_order(m.label_tokens, m.target_label_tokens, scorable, config.seed)


def _round_robin_order(space: ComparisonSpace, scorable: Tensor, config: GISTConfig) -> list[int]:
    rows = rows_in_budget(config.budget, config.budget_unit, len(scorable))
    # the rows of a share may come late in the order
    of_sources = bool(config.source_shares or config.source_max)
    limit = None if rows is None or of_sources else int(rows * config.sample_from_top)
    return round_robin(space.coordinates, space.directions, scorable, space.norms, limit)


def order_candidates(
    m: Measurements, space: ComparisonSpace, scorable: Tensor, config: GISTConfig
) -> tuple[Tensor, list[int], Tensor]:
    """Scores and order of the candidates (paper GIST, Eq. 17).

    Args:
        m (`Measurements`): of candidates and targets.
        space (`ComparisonSpace`): where they are compared.
        scorable (`Tensor`): candidates that may be selected `[N]` bool.
        config (`GISTConfig`): `score`, `strategy` and the settings of the strategy.

    Returns:
        `tuple[Tensor, list[int], Tensor]`: scores `[N]`, -inf for rows that may not be selected; the scorable rows,
        best first; and each row's best matching group `[N]`.
    """
    reduce = "mean" if config.strategy == "mean" else "max"
    scores, best = score_candidates(space.coordinates, space.directions, space.norms, reduce)
    if config.strategy in UNSCORED:
        order = _baseline_order(m, scorable, config)
        scores = torch.full((len(m.norms),), float("-inf"))
        scores[torch.tensor(order, dtype=torch.long)] = 1 - torch.arange(len(order)) / max(1, len(order))
        return scores, order, best
    if config.score == "grad_norm":
        scores = m.norms
    scores = torch.where(scorable, scores, torch.tensor(float("-inf")))
    if config.strategy == "round_robin":
        return scores, _round_robin_order(space, scorable, config), best
    return scores, ranked(scores)[: int(scorable.sum())].tolist(), best
