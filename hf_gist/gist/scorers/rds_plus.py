"""RDS+ (Ivison et al., 2025, arXiv 2503.01807): position-weighted mean of the last hidden states; forward only."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.models import unwrapped
from hf_gist.gradients.vectors import Gradients


def position_weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states of the real tokens with weights `1, 2, ..., L`.

    Args:
        states (`Tensor`): `[B, T, d]`.
        mask (`Tensor`): `[B, T]`, non-zero at real tokens.

    Returns:
        `Tensor`: `[B, d]` float32.
    """
    mask = mask.long()
    weights = (mask.cumsum(1) * mask).float()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, states.float())


class HiddenStateVectors:
    """RDS+: the position-weighted mean of what enters the output head.

    Args:
        model (`nn.Module`): a causal or sequence-to-sequence language model.

    Raises:
        ValueError: for a model without an output head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.head = model, unwrapped(model).get_output_embeddings()
        if self.head is None:
            raise ValueError("`scorer='rds_plus'` needs a language model: this one has no output head.")
        self.sizes = {"hidden": self.head.in_features}

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        seen: list[Tensor] = []
        # registered before the loss's own hook, which cuts the input to the labelled positions
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                losses, counts = sample_losses(self.model, batch)
        finally:
            handle.remove()
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != seen[0].shape[:2]:
            decoded = batch["labels"] if batch["labels"].shape == seen[0].shape[:2] else None
            mask = torch.ones(seen[0].shape[:2]) if decoded is None or mask is None else decoded != IGNORE_INDEX
        gradients("hidden", position_weighted_mean(seen[0], mask.to(seen[0].device)))
        return losses, counts
