"""RDS+ (Ivison et al., 2025, arXiv 2503.01807): position-weighted mean of the last hidden states; forward only."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_gist.config.gist import GISTConfig
from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.gist.scorers.base import AdamCheckpoint, CheckpointVectors, Scorer
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.models import unwrapped
from hf_gist.gradients.row_losses.base import RowLoss
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
    """RDS+: the position-weighted mean of the inputs of the output head.

    Args:
        model (`nn.Module`): a causal or sequence-to-sequence language model.

    Raises:
        ValueError: for a model without an output head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.head = _output_head(model)
        self.sizes = {"hidden": self.head.in_features}

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        seen: list[Tensor] = []
        # registered before the hook of the loss, which reduces the input to the labelled positions
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                losses, counts = sample_losses(self.model, batch)
        finally:
            handle.remove()
        states = seen[0]
        # the mean and its projection are computed in fp32, also where the model computes in 16 bits
        with torch.autocast(states.device.type, enabled=False):
            gradients("hidden", position_weighted_mean(states, _real_tokens(batch, states)))
        return losses, counts


def _output_head(model: nn.Module) -> nn.Linear:
    head = cast(PreTrainedModel, unwrapped(model)).get_output_embeddings()
    if head is None:
        raise ValueError("`scorer='rds_plus'` needs a language model: this model has no output head.")
    return cast(nn.Linear, head)


def _real_tokens(batch: dict[str, Any], states: Tensor) -> Tensor:
    """The mask `[B, T]` of the tokens that `states` `[B, T, d]` belong to, without padding."""
    shape = states.shape[:2]
    mask = batch.get("attention_mask")
    if mask is None:
        mask = torch.ones(shape, device=states.device)
    elif mask.shape != shape:
        # an encoder-decoder model: the states belong to the decoder's tokens, the attention mask to the encoder's
        labels = batch["labels"]
        mask = labels != IGNORE_INDEX if labels.shape == shape else torch.ones(shape, device=states.device)
    return mask.to(states.device)


def _vectors(model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]) -> list[CheckpointVectors]:
    hidden = HiddenStateVectors(model)
    return [CheckpointVectors(hidden, hidden, model)]


RDS_PLUS = Scorer(
    name="rds_plus",
    title="RDS+",
    sentence="the position-weighted mean of its last hidden states (a baseline)",
    vectors=_vectors,
    forward_only=True,
)
