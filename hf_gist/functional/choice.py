"""From measurements and a configuration to scores and an order of the candidates (paper GIST, Eq. 15-17)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.budget import rows_in_budget
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.ranking import (
    group_directions,
    length_matched_order,
    ranked,
    round_robin,
    score_candidates,
    uniform_order,
)


@dataclass(frozen=True)
class ComparisonSpace:
    """Where candidates and target groups are compared.

    Args:
        coordinates (`Tensor`): candidates `[N, k]`.
        directions (`Tensor`): target groups `[H, k]`.
        norms (`Tensor`, *optional*): `[N]` for the plain cosine; by default the norm inside the subspace.
    """

    coordinates: Tensor
    directions: Tensor
    norms: Tensor | None

    @classmethod
    def of(
        cls, m: Measurements, coordinates: Tensor, groups: list[int], number: int, rank: int, config: GISTConfig
    ) -> "ComparisonSpace":
        # The targets lie in the full-rank basis, so there the plain cosine needs no gradient, only the norms. In a
        # single direction every cosine is 1 or -1 and tells no row from another.
        plain = config.score == "cosine" or config.scorer != "gist" or rank == 1
        k = len(m.singular_values) if plain else rank
        # LESS averages the cosines with a group's targets: the mean of unit vectors is not normalised again.
        directions = group_directions(m.target_coordinates[:, :k], groups, number, config.scorer != "less")
        norms = torch.where(m.scorable, m.norms, torch.zeros(())) if plain else None
        return cls(coordinates[:, :k], directions, norms)


def order_candidates(
    m: Measurements, space: ComparisonSpace, scorable: Tensor, config: GISTConfig
) -> tuple[Tensor, list[int], Tensor]:
    """Scores `[N]`, the scorable rows best first, and each row's best matching group `[N]`."""
    nowhere = torch.tensor(float("-inf"))
    reduce = "mean" if config.strategy == "mean" else "max"
    scores, best = score_candidates(space.coordinates, space.directions, space.norms, reduce)
    if config.strategy in UNSCORED:
        if config.strategy == "random":
            order = uniform_order(scorable, config.seed)
        else:
            order = length_matched_order(m.label_tokens, m.target_label_tokens, scorable, config.seed)
        scores = torch.full((len(m.norms),), float("-inf"))
        scores[torch.tensor(order, dtype=torch.long)] = 1 - torch.arange(len(order)) / max(1, len(order))
        return scores, order, best
    if config.score == "grad_norm":
        scores = m.norms
    scores = torch.where(scorable, scores, nowhere)
    if config.strategy == "round_robin":
        limit = rows_in_budget(config.budget, config.budget_unit, len(m.norms))
        limit = None if limit is None else int(limit * config.sample_from_top)
        return scores, round_robin(space.coordinates, space.directions, scorable, space.norms, limit), best
    return scores, ranked(scores)[: int(scorable.sum())].tolist(), best
