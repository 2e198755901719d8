"""How well the best rows of a pool align with the target rows, beside how well these do with each other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.ranking import CHUNK_ROWS, cosines


BEST_SHARE = 0.05
"""The best rows are those of the budget, but at most this share of the pool."""

FEWEST_TARGETS = 16
"""With fewer target rows, how well they align with each other is not known well enough."""

OWN_KIND = 0.8
"""Ratio from which the pool has rows of the targets' own kind, see [`Alignment`]."""


@dataclass(frozen=True)
class Alignment:
    """How well the best rows of a pool align with the target rows, and these with each other.

    A row of the pool aligns with the targets by its largest cosine with the gradient of a target row, a target row
    with the other targets likewise. `ratio` is `best / targets`: at 1 the pool has rows that are to the targets what
    these are to each other. The ratio tells whether the pool has rows of the targets' own kind, and does not predict the gain
    of a selection (`recipes/README.md`, "Rows like the targets"), so a low ratio is stated and is no warning.

    Args:
        best (`float`): mean over the best rows of their largest cosine with a target row.
        targets (`float`): median over the target rows of their largest cosine with another target row.
        rows (`int`): number of the best rows.
    """

    best: float
    targets: float
    rows: int

    @property
    def ratio(self) -> float:
        """`best / targets`."""
        return self.best / self.targets

    @property
    def own_kind(self) -> bool:
        """Whether the pool has rows of the targets' own kind."""
        return self.ratio >= OWN_KIND


def best_alignment(m: Measurements, eligible: Tensor, selected: int) -> Alignment | None:
    """The alignment of the best rows, by plain cosines of the whole gradients.

    Args:
        m (`Measurements`): of candidates and targets, with exact gradients.
        eligible (`Tensor`): candidates that may be selected `[N]` bool.
        selected (`int`): number of rows that are selected.

    Returns:
        `Alignment`, *optional*: `None` with fewer than `FEWEST_TARGETS` target rows, or if these do not align with each
            other, so that there is nothing to compare with.
    """
    targets = torch.nn.functional.normalize(m.target_coordinates.double(), dim=1)
    if len(targets) < FEWEST_TARGETS or not m.target_coordinates.shape[1]:
        return None
    among = targets @ targets.T
    among.fill_diagonal_(-1.0)
    other = float(among.max(1).values.median())
    if other <= 0:
        return None
    rows = eligible.nonzero().flatten()
    best = torch.cat(
        [cosines(m.coordinates[part], targets, m.norms[part]).max(1).values for part in rows.split(CHUNK_ROWS)]
    )
    count = min(len(rows), selected, max(1, int(BEST_SHARE * len(m.norms))))
    return Alignment(float(best.sort(descending=True).values[:count].mean()), other, count)
