"""How much each sample's own mean loss weighs in the loss that a Trainer backpropagates.

With `l_t` the loss of a token and `n_b` the labelled tokens of sample `b`, its own loss is `ℓ_b = Σ_t l_t / n_b`, and
a Trainer's loss is `L = Σ_b w_b ℓ_b`, so the gradient that reaches a matrix for sample `b` is `w_b g_b`:

| loss | `w_b` | up to a factor that all samples share |
| --- | --- | --- |
| token sum over `num_items_in_batch` `N`, over `W` processes | `n_b W / N` | `n_b` |
| token mean of the batch, over `A` accumulation steps | `n_b / (A Σ_b n_b)` | `n_b` |
| either of them with label smoothing (`l_t` is then the smoothed loss) | the same | `n_b` |
| sequence classification, smoothed or not, any problem type | `1 / (A B)` | 1 |
| `compute_loss_func` | found out on the first batches, see [`LossFunctionProbe`] | `n_b` or 1 |

(`A` is 1 for the models that take any keyword but ignore `num_items_in_batch`, such as T5's: the Trainer then believes
that the model has divided already.) Only the proportions matter: alignments are standardised over the batch before anything is drawn, so a factor that all
samples share, the scale of a gradient scaler included, drops out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.losses import loss_kind
from hf_gist.rows import IGNORE_INDEX, check_batch


def label_counts(inputs: dict[str, Any], kind: str) -> Tensor:
    """Labelled tokens `n_b` `[B]` of each sample, as the loss counts them; 1 for classification.

    Args:
        inputs (`dict`): a collated batch.
        kind (`str`): from [`hf_gist.losses.loss_kind`].
    """
    labels = inputs["labels"]
    if kind == "classification":
        return torch.ones(len(labels), device=labels.device)
    if "shift_labels" in inputs:
        labels = inputs["shift_labels"]
    elif kind == "causal":
        labels = labels[:, 1:]
    return (labels != IGNORE_INDEX).sum(1).float()


def report_counts(inputs: dict[str, Any], weights: Tensor) -> Tensor:
    """What the report groups samples by: labels other than -100 of each sample `[B]`, or 1 for a model without labels.

    Args:
        inputs (`dict`): a collated batch.
        weights (`Tensor`): `[B]`, of the same batch.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        return torch.ones_like(weights)
    return (labels != IGNORE_INDEX).view(len(labels), -1).sum(1).float()


def loss_weights(inputs: dict[str, Any], model: nn.Module, weighting: str) -> Tensor:
    """`w_b` `[B]` up to a common factor; zero for a sample without a label.

    Args:
        inputs (`dict`): a collated batch.
        model (`nn.Module`): the model, without wrappers.
        weighting (`str`): `"tokens"` (`w_b = n_b`) or `"samples"` (`w_b = 1`).

    Raises:
        ValueError: if the rows of the batch are not samples.
    """
    check_batch(inputs, len(inputs["labels"]) if isinstance(inputs.get("labels"), Tensor) else 0, "training set")
    counts = label_counts(inputs, loss_kind(model))
    return counts if weighting == "tokens" else (counts > 0).float()


class LossFunctionProbe:
    """Finds out how a user's `compute_loss_func` weighs the samples, from its own gradients.

    The gradient of the batch loss with respect to the logits of sample `b` is compared with the gradient of the same
    function on that sample alone: they are parallel exactly if the loss is a weighted sum over samples, and their
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
        """Decide from one batch.

        Args:
            outputs (`ModelOutput`): of the model, with `logits` `[B, ...]`.
            labels (`Tensor`): `[B, ...]`.
            counts (`Tensor`): `n_b` `[B]`.
            total (`Callable`): adds up over processes, which must come to the same decision.

        Returns:
            `str`: `"tokens"` or `"samples"`; not final (`self.weighting` stays `None`) while all counts are equal,
            when both say the same.

        Raises:
            ValueError: if the loss is not a sum over samples, or weighs them in neither way.
        """
        size = len(labels)
        labelled = counts.nonzero()[:, 0].tolist()
        together = self._logit_gradient(outputs, slice(None), size, labels, counts.sum())
        ratios = []
        for row in labelled:
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
        misfits = self._misfits(ratios, counts[labelled])
        misfits = total(misfits)
        if bool((misfits > 0).all()):
            raise ValueError(
                "`compute_loss_func` weighs the samples neither equally nor by their labelled tokens. Return a mean "
                "over tokens or over samples, or override `sample_weights` of the trainer to return the weights."
            )
        weighting = "samples" if misfits[0] > 0 else "tokens"
        if bool((misfits > 0).any()):
            self.weighting = weighting
        return weighting

    def _misfits(self, ratios: list[Tensor], counts: Tensor) -> Tensor:
        """`[2]`: 1 where the weights contradict `"tokens"`, 1 where they contradict `"samples"`."""
        if len(ratios) < 2:
            return torch.zeros(2, device=counts.device)
        weights = torch.stack(ratios).to(counts.device)
        contradicts = [
            not torch.allclose(weights / weights.sum(), expected / expected.sum(), rtol=self.TOLERANCE)
            for expected in (counts, torch.ones_like(counts))
        ]
        return torch.tensor(contradicts, dtype=torch.float32, device=counts.device)
