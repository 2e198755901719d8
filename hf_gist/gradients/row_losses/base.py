"""The loss that a row is scored by: token cross-entropy, or the loss of a trainer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hf_gist.data.batches import check_batch
from hf_gist.gradients.losses import labelled_tokens, prepared, sample_losses


TOKEN_CROSS_ENTROPY = "token cross-entropy"
"""Name of the loss of language models, in manifest, report and card."""


class RowLoss(Protocol):
    """The loss whose gradient is the gradient of a row."""

    @property
    def name(self) -> str:
        """For manifest, report and card."""

    @property
    def sequences(self) -> int:
        """Sequences of the model's batch for each row: 2 for preference pairs (all chosen, then all rejected ones)."""

    def rows(self, batch: dict[str, Any]) -> int:
        """Number of rows `B` in a collated batch."""

    def check(self, batch: dict[str, Any], rows: int, what: str) -> None:
        """Check that the gradients of a collated batch of `rows` rows can be separated by row; see [`check_batch`].

        Raises:
            ValueError: naming `what` and what to change.
        """

    def counts(self, batch: dict[str, Any]) -> Tensor:
        """Labelled tokens of each row of a collated batch `[B]` int64; the model is not run."""

    def prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The collated batch with all that the loss derives from it on the host.

        Raises:
            ValueError: for labels or padding that the loss does not support, see [`prepared`].
        """

    def scales(self, batch: dict[str, Any]) -> Tensor | None:
        """Factors `[B]` from a row's gradient in [`RowLoss.backward`] to that of its own loss; `None` if all are 1."""

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """One forward pass without gradients over a prepared batch on the model's device.

        Returns:
            `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`.

        Raises:
            ValueError: for a batch of several rows, if only the loss of the whole batch is known.
        """

    def backward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """One forward and one backward pass over a prepared batch on the model's device.

        Returns:
            `tuple[Tensor, Tensor]`: losses `[B]` (NaN if not known) and labelled tokens `[B]`.
        """


class TokenLoss:
    """Each row's own mean token loss, or its classification loss; see [`sample_losses`].

    Args:
        model (`nn.Module`): a peft or transformers model.
    """

    name = TOKEN_CROSS_ENTROPY
    sequences = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def rows(self, batch: dict[str, Any]) -> int:
        """See [`RowLoss`]."""
        return len(batch["labels"])

    def check(self, batch: dict[str, Any], rows: int, what: str) -> None:
        """See [`RowLoss`]."""
        check_batch(batch, rows, what)

    def counts(self, batch: dict[str, Any]) -> Tensor:
        """See [`RowLoss`]."""
        return labelled_tokens(self.model, batch)

    def prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See [`RowLoss`]."""
        return prepared(self.model, batch)

    def scales(self, batch: dict[str, Any]) -> Tensor | None:
        """See [`RowLoss`]: the sum over rows leaves each row's gradient unscaled."""
        return None

    @torch.no_grad()
    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See [`RowLoss`]."""
        return sample_losses(self.model, batch)

    def backward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See [`RowLoss`]."""
        losses, counts = sample_losses(self.model, batch)
        losses.sum().backward()
        return losses.detach(), counts


@dataclass(frozen=True)
class RowWeights:
    """What a [`WeightedLoss`] knows of a batch before its forward pass.

    Args:
        counts (`Tensor`): labelled tokens of each row `[B]` int64; not moved to the device.
        scales (`Tensor`): the inverse of each row's weight in the loss of the batch `[B]`.
    """

    counts: Tensor
    scales: Tensor

    def moved(self, move: Callable[[Tensor], Tensor]) -> "RowWeights":
        """With `move` applied to all tensors that the device needs."""
        return replace(self, scales=move(self.scales))
