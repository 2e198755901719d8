"""Floating-point operations of a transformer with adapters, from its shapes (a multiply-add counts as two)."""

from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from hf_gist.gradients.models import unwrapped


@dataclass(frozen=True)
class ModelWork:
    """Model sizes that determine the number of operations per row.

    The weights are those of [`~transformers.PreTrainedModel.num_parameters`] without embeddings, as in Trainer's own
    `total_flos`; for a mixture of experts, all experts are counted, so the numbers are upper bounds.

    Args:
        body (`int`): weights applied to every token, including adapters.
        head (`int`): weights of the output head.
        trainable (`int`): weights of the adapters, `D`.
        layers (`int`): attention layers.
        width (`int`): hidden size.
    """

    body: int
    head: int
    trainable: int
    layers: int
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> "ModelWork":
        """Read the shapes of a transformers model, inside peft's wrapper or not."""
        base = cast(PreTrainedModel, unwrapped(model))
        embeddings = {id(m.weight) for m in base.modules() if isinstance(m, nn.Embedding)}
        output = base.get_output_embeddings()
        head = 0 if output is None else output.weight.numel()
        tied = output is None or id(output.weight) in embeddings
        body = base.num_parameters(exclude_embeddings=True) - (0 if tied else head)
        config = base.config.get_text_config()
        layers = getattr(config, "num_hidden_layers", 0) + (getattr(config, "num_decoder_layers", None) or 0)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(body, head, trainable, layers, getattr(config, "hidden_size", 0))

    def forward(self, lengths: np.ndarray, head_positions: float) -> float:
        """A forward pass over rows of `lengths` tokens `[N]`, with logits at `head_positions` positions in total."""
        return float(self.forward_by_row(lengths, 0).sum()) + 2 * self.head * head_positions

    def forward_by_row(self, lengths: np.ndarray, head_positions: np.ndarray | int) -> np.ndarray:
        """A forward pass over each row `[N]`, with logits at `head_positions` positions of it."""
        lengths = lengths.astype(np.float64)
        attention = 4 * self.layers * self.width * np.square(lengths)
        return 2 * self.body * lengths + 2 * self.head * head_positions + attention

    def share_of_blocks(self, last_blocks: int | None) -> float:
        """The share of the blocks that a backward pass through the last blocks reaches; 1 for all blocks."""
        return 1.0 if last_blocks is None else min(1.0, last_blocks / max(1, self.layers))

    def weight_gradients(self, tokens: float) -> float:
        """The gradients of the adapters, without those of the activations, which cost as much as the forward pass."""
        return 2 * self.trainable * tokens

    def projection(self, rows: int, rank: int) -> float:
        """The norm of every row's gradient and its coordinates in a basis of `rank` directions."""
        return 2 * self.trainable * rows * (rank + 1)

    def basis(self, targets: int) -> float:
        """The Gram matrix of the target gradients and the basis."""
        return 4 * self.trainable * targets**2
