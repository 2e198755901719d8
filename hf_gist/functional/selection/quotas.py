"""Rows from a ranking within a budget of which some sources get a share and some a limited number of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Quotas:
    """What each source gets of a selection.

    Args:
        sources (`np.ndarray`): source of every candidate `[N]`; empty without quotas.
        shares (`Mapping[str, float]`): source to the share of the budget that is reserved for it.
        most (`Mapping[str, int]`): source to its largest number of rows.
    """

    sources: np.ndarray = field(default_factory=lambda: np.empty(0, object))
    shares: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)

    @property
    def given(self) -> bool:
        """Whether any source has a share or a limit."""
        return bool(self.shares or self.most)

    def pick(self, order: Sequence[int], amount: float, sizes: Tensor, times: float = 1.0) -> list[int]:
        """The best rows within a budget; the rows of each share first, then the best of all remaining rows.

        Args:
            order (`Sequence[int]`): rows that may be selected, best first.
            amount (`float`): the budget, in units of `sizes`.
            sizes (`Tensor`): what each candidate takes of the budget `[N]` int64: 1, or its labelled tokens.
            times (`float`): multiple of the largest numbers of rows, for a larger set to draw from.

        Returns:
            `list[int]`: the rows, best first.
        """
        rows = np.asarray(order, dtype=np.int64)
        size = sizes.numpy()[rows]
        taken = np.zeros(len(rows), dtype=bool)
        closed = np.zeros(len(rows), dtype=bool)
        of_row = self.sources[rows] if self.given else None
        for name, share in self.shares.items():
            own = np.flatnonzero(of_row == name)
            if name in self.most:
                own = own[: int(self.most[name] * times)]
            taken[own[size[own].cumsum() <= share * amount + 1e-9]] = True
        for name in self.most:
            own = np.flatnonzero(of_row == name)
            left = int(self.most[name] * times) - int(taken[own].sum())
            closed[own[~taken[own]][left:]] = True
        rest = np.flatnonzero(~taken & ~closed)
        taken[rest[size[rest].cumsum() <= amount - int(size[taken].sum())]] = True
        return rows[taken].tolist()

    def wanted(self, amount: int) -> dict[str, int]:
        """The part of a budget that is reserved for each source with a share."""
        return {name: int(share * amount + 1e-9) for name, share in self.shares.items()}


NO_QUOTAS = Quotas()
