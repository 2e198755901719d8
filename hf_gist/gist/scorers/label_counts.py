"""Counts of labelled tokens, for the strategies that do not use scores."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.gradients.losses import labelled_tokens
from hf_gist.gradients.vectors import Gradients


class LabelCounts:
    """Counts labelled tokens only, for the strategies that do not use scores.

    Args:
        model (`nn.Module`): determines how labels are counted; it is not run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sizes: dict[str, int] = {}

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        counts = labelled_tokens(self.model, batch)
        return torch.zeros(len(counts), device=counts.device), counts
