"""Determines from gradients how a user's loss function weights the samples of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LossFunctionProbe:
    """Determines from gradients how a user's `compute_loss_func` weights the samples.

    The gradient of the batch loss with respect to the logits of sample `b` is compared with the gradient of the same
    function for this sample alone: they are parallel if and only if the loss is a weighted sum over samples, and their
    ratio is the weight.

    Args:
        function (`Callable`): `compute_loss_func(outputs, labels, num_items_in_batch=...)`.
    """

    TOLERANCE = 1e-2

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.weighting: str | None = None

    def _logit_gradient(self, outputs: Any, rows: slice, batch_size: int, labels: Tensor, items: Tensor) -> Tensor:
        """Gradient with respect to the logits of some rows, `[b, ...]` fp32."""
        cut = {
            name: value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == batch_size else value
            for name, value in outputs.items()
        }
        logits = cut["logits"].detach().float().requires_grad_(True)
        with torch.enable_grad():
            loss = self.function(type(outputs)(**{**cut, "logits": logits}), labels[rows], num_items_in_batch=items)
        return torch.autograd.grad(loss, logits)[0]

    def observe(
        self, outputs: Any, labels: Tensor, counts: Tensor, total: Callable[[Tensor], Tensor] = lambda votes: votes
    ) -> str:
        """Determine the weighting from one batch.

        Args:
            outputs (`ModelOutput`): of the model, with `logits` `[B, ...]`.
            labels (`Tensor`): `[B, ...]`.
            counts (`Tensor`): `n_b` `[B]`.
            total (`Callable`): sums over processes, so that all determine the same weighting.

        Returns:
            `str`: `"tokens"` or `"samples"`; not final (`self.weighting` stays `None`) while all counts are equal,
            because both weightings then give the same loss.

        Raises:
            ValueError: if the loss is not a weighted sum over samples, or uses another weighting.
        """
        ratios = self._ratios(outputs, labels, counts)
        misfits = total(self._misfits(ratios, counts[counts > 0]))
        if bool((misfits > 0).all()):
            raise ValueError(
                "`compute_loss_func` weights the samples neither equally nor by their labelled tokens. Return a mean "
                "over tokens or over samples, or override `sample_weights` of the trainer to return the weights."
            )
        weighting = "samples" if misfits[0] > 0 else "tokens"
        if bool((misfits > 0).any()):
            self.weighting = weighting
        return weighting

    def _ratios(self, outputs: Any, labels: Tensor, counts: Tensor) -> list[Tensor]:
        """The weight of each labelled sample in the batch loss, up to a common factor.

        Raises:
            ValueError: if the gradient of a sample depends on the others.
        """
        size = len(labels)
        together = self._logit_gradient(outputs, slice(None), size, labels, counts.sum())
        ratios = []
        for row in counts.nonzero()[:, 0].tolist():
            alone = self._logit_gradient(outputs, slice(row, row + 1), size, labels, counts[row])[0].flatten()
            both = together[row].flatten()
            ratio = (both @ alone) / (alone @ alone).clamp(min=torch.finfo(alone.dtype).tiny)
            if (both - ratio * alone).norm() > self.TOLERANCE * both.norm() or ratio <= 0:
                raise ValueError(
                    "`compute_loss_func` mixes the samples of a batch (its gradient for one sample depends on the "
                    "others), so it cannot be masked by sample. Use a loss that is a mean over tokens or over samples, "
                    "or set `mode='all'`."
                )
            ratios.append(ratio)
        return ratios

    def _misfits(self, ratios: list[Tensor], counts: Tensor) -> Tensor:
        """`[2]`: 1 if the weights contradict `"tokens"`, 1 if they contradict `"samples"`."""
        if len(ratios) < 2:
            return torch.zeros(2, device=counts.device)
        weights = torch.stack(ratios).to(counts.device)
        contradicts = [
            not torch.allclose(weights / weights.sum(), expected / expected.sum(), rtol=self.TOLERANCE)
            for expected in (counts, torch.ones_like(counts))
        ]
        return torch.tensor(contradicts, dtype=torch.float32, device=counts.device)
