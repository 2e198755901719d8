"""The order of the rows inside the warm-up and inside each pass over the selection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices


@dataclass(frozen=True)
class RowOrder:
    """The order that the Trainer's own sampler has, applied to a part of the pool.

    Args:
        kind (`str`): `"random"`, `"sequential"` (the order of the pool) or `"group_by_length"`.
        lengths (`Sequence[int]`): for `"group_by_length"`, tokens of each of the `N` rows of the pool.
    """

    kind: Literal["random", "sequential", "group_by_length"] = "random"
    lengths: Sequence[int] = ()

    def arrange(self, rows: Sequence[int], seed: int, samples_per_step: int) -> list[int]:
        """The rows in this order; the same for the same seed.

        Args:
            rows (`Sequence[int]`): row numbers of the pool.
            seed (`int`): seed of this pass.
            samples_per_step (`int`): rows of one optimizer step, which get similar lengths with `"group_by_length"`.
        """
        if self.kind == "sequential":
            return sorted(rows)
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "random":
            order = torch.randperm(len(rows), generator=generator).tolist()
        else:
            lengths = [self.lengths[row] for row in rows]
            order = get_length_grouped_indices(lengths, samples_per_step, generator=generator)
        return [rows[at] for at in order]
