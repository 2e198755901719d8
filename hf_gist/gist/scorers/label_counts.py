"""Counts of labelled tokens, for the strategies that do not use scores."""

from typing import Any

import torch
from torch import Tensor

from hf_gist.gradients.row_losses.base import RowLoss
from hf_gist.gradients.vectors import Gradients


class LabelCounts:
    """Counts labelled tokens only, for the strategies that do not use scores; the model is not run."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        counts = loss.counts(batch)
        return torch.zeros(len(counts), device=counts.device), counts
