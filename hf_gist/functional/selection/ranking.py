"""Rankings of candidates: cosines with target groups, round robin, and the orders of the baselines."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


CHUNK_ROWS = 8192
"""Candidates per chunk when comparing with the groups, so that `[N, H]` need not fit in memory."""


def group_directions(
    coordinates: Tensor, groups: Sequence[int], number_of_groups: int, normalise: bool = True
) -> Tensor:
    """Unit directions of the target groups: the mean of each group's coordinates, normalised.

    Args:
        coordinates (`Tensor`): target coordinates `[M, k]`.
        groups (`Sequence[int]`): the group of each target row, `M` values in `[0, H)`.
        number_of_groups (`int`): `H`.
        normalise (`bool`): `False` does not normalise the means, as in LESS, which uses means of unit vectors.

    Returns:
        `Tensor`: `[H, k]` float64; a group whose mean is zero has a zero direction and scores 0.
    """
    index = torch.as_tensor(groups, dtype=torch.long)
    sums = torch.zeros(number_of_groups, coordinates.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, coordinates.double())
    means = sums / torch.bincount(index, minlength=number_of_groups).clamp(min=1).unsqueeze(1)
    return torch.nn.functional.normalize(means, dim=1) if normalise else means


def cosines(coordinates: Tensor, directions: Tensor, norms: Tensor | None = None) -> Tensor:
    """Cosine of every candidate with every group direction.

    Args:
        coordinates (`Tensor`): candidate coordinates `[n, k]`.
        directions (`Tensor`): unit directions `[H, k]`.
        norms (`Tensor`, *optional*): `[n]` full gradient norms, for the plain cosine; by default the norm inside the
            subspace.

    Returns:
        `Tensor`: `[n, H]` float64; a candidate of norm zero scores 0.
    """
    coordinates = coordinates.double()
    norms = coordinates.norm(dim=1) if norms is None else norms.double()
    inner = coordinates @ directions.T
    return inner / torch.where(norms > 0, norms, torch.ones_like(norms)).unsqueeze(1)


def _chunks(coordinates: Tensor, directions: Tensor, norms: Tensor | None) -> Iterator[Tensor]:
    for start in range(0, len(coordinates), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield cosines(coordinates[rows], directions, None if norms is None else norms[rows])


def score_candidates(
    coordinates: Tensor, directions: Tensor, norms: Tensor | None = None, reduce: str = "max"
) -> tuple[Tensor, Tensor]:
    """One score for every candidate.

    Args:
        coordinates (`Tensor`): candidate coordinates `[N, k]`.
        directions (`Tensor`): group directions `[H, k]`.
        norms (`Tensor`, *optional*): see [`cosines`].
        reduce (`str`): `"max"` over groups (paper Eq. 17) or their `"mean"`.

    Returns:
        `tuple[Tensor, Tensor]`: scores `[N]` float32 and the best matching group `[N]`.
    """
    scores = []
    best = []
    for chunk in _chunks(coordinates, directions, norms):
        top, group = chunk.max(dim=1)
        scores.append(chunk.mean(dim=1) if reduce == "mean" else top)
        best.append(group)
    return torch.cat(scores).float(), torch.cat(best)


def energy_inside(coordinates: Tensor, norms: Tensor) -> Tensor:
    """Share of each squared gradient norm inside the subspace.

    Args:
        coordinates (`Tensor`): candidates in the subspace `[N, k]`.
        norms (`Tensor`): norms of their whole gradients `[N]`.

    Returns:
        `Tensor`: `[N]` float32 in [0, 1]; 0 for a gradient of norm zero.
    """
    inside = torch.cat([c.double().square().sum(1) for c in coordinates.split(CHUNK_ROWS)])
    squares = norms.double().square()
    return torch.where(squares > 0, inside / squares, torch.zeros_like(squares)).clamp(max=1).float()


def ranked(scores: Tensor) -> Tensor:
    """Row indices by descending score `[n]`; ties in order of the index."""
    return torch.sort(scores, descending=True, stable=True).indices


def round_robin(
    coordinates: Tensor, directions: Tensor, eligible: Tensor, norms: Tensor | None = None, limit: int | None = None
) -> list[int]:
    """Each group in turn picks its best remaining row.

    Args:
        coordinates (`Tensor`): `[N, k]`.
        directions (`Tensor`): `[H, k]`.
        eligible (`Tensor`): `[N]` bool.
        norms (`Tensor`, *optional*): see [`cosines`].
        limit (`int`, *optional*): rows to pick; by default every eligible row.

    Returns:
        `list[int]`: rows in the order they are picked.
    """
    rows = eligible.nonzero().flatten()
    limit = len(rows) if limit is None else min(limit, len(rows))
    per_group = torch.cat(
        [c.float() for c in _chunks(coordinates[rows], directions, None if norms is None else norms[rows])]
    )
    # a group never needs more rows of its ranking than there are rows to pick
    return take_turns([rows[ranked(column)[:limit]] for column in per_group.T], limit)


def take_turns(orders: Sequence[Tensor], limit: int) -> list[int]:
    """Pick the next unpicked row of each ranking in turn, until `limit` rows are picked."""
    picked: dict[int, None] = {}
    remaining = [_one_by_one(order) for order in orders]
    while len(picked) < limit:
        for order in remaining:
            row = next((row for row in order if row not in picked), None)
            if row is not None and len(picked) < limit:
                picked[row] = None
    return list(picked)


def _one_by_one(order: Tensor) -> Iterator[int]:
    """The rows of a ranking as numbers, some at a time: a number takes four times the memory of its place in a tensor."""
    for chunk in order.split(CHUNK_ROWS):
        yield from chunk.tolist()


def uniform_order(eligible: Tensor, seed: int) -> list[int]:
    """The eligible rows `[N]` in a seeded random order: the random baseline."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(eligible), generator=generator)
    return order[eligible[order]].tolist()


def length_matched_order(
    label_tokens: Tensor, target_label_tokens: Tensor, eligible: Tensor, seed: int, bins: int = 8
) -> list[int]:
    """A seeded random order in which the answer lengths of every prefix are distributed like those of the target set.

    Gradient selection prefers some lengths; its gain over this baseline is not due to length.

    Args:
        label_tokens (`Tensor`): labelled tokens of the candidates `[N]`.
        target_label_tokens (`Tensor`): labelled tokens of the targets `[M]`.
        eligible (`Tensor`): `[N]` bool.
        seed (`int`): seed of the draw.
        bins (`int`): quantile bins of the target lengths.

    Returns:
        `list[int]`: rows; once a bin is exhausted, the other bins fill its positions.
    """
    edges = torch.quantile(target_label_tokens.double(), torch.linspace(0, 1, bins + 1).double()[1:-1]).unique()
    share = torch.bincount(torch.bucketize(target_label_tokens.double(), edges), minlength=len(edges) + 1)
    bin_of = torch.bucketize(label_tokens.double(), edges)
    order = torch.tensor(uniform_order(eligible, seed), dtype=torch.long)
    queues = [order[bin_of[order] == number] for number in range(len(share))]
    # Row j of a bin with share p is placed at (j + 1/2) / p, so every prefix has the bins in proportion.
    due = [(torch.arange(len(queue)).double() + 0.5) / share[number] for number, queue in enumerate(queues)]
    return torch.cat(queues)[torch.sort(torch.cat(due), stable=True).indices].tolist()
