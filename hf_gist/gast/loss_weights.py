"""The weight of each sample's own mean loss in the loss that a Trainer backpropagates.

With `l_t` the loss of a token and `n_b` the labelled tokens of sample `b`, its own loss is `ℓ_b = Σ_t l_t / n_b`, and
a Trainer's loss is `L = Σ_b w_b ℓ_b`, so the gradient that reaches a matrix for sample `b` is `w_b g_b`:

| loss | `w_b` | up to a common factor |
| --- | --- | --- |
| token sum over `num_items_in_batch` `N`, over `W` processes | `n_b W / N` | `n_b` |
| token mean of the batch, over `A` accumulation steps | `n_b / (A Σ_b n_b)` | `n_b` |
| either of them with label smoothing (`l_t` is then the smoothed loss) | the same | `n_b` |
| sequence classification, smoothed or not, any problem type | `1 / (A B)` | 1 |
| a loss of the Trainer's own | measured on two rows, see [`hf_gist.gradients.row_losses.weighted`] | |

(`A` is 1 for models that accept any keyword but ignore `num_items_in_batch`, for example T5: the Trainer then assumes
that the model has already divided.) Only the proportions matter: alignments are standardised over the batch before the
draw, so a common factor, including the scale of a gradient scaler, cancels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.batches import check_shape
from hf_gist.gradients.losses import count_labels, labelled_tokens
from hf_gist.gradients.row_losses.weighted import LABELLED_TOKENS, WEIGHTINGS


def report_counts(inputs: dict[str, Any], weights: Tensor) -> Tensor:
    """Labels other than -100 of each sample `[B]` float32, for grouping in the report; 1 for a model without labels.

    Args:
        inputs (`dict`): a collated batch.
        weights (`Tensor`): `[B]`, of the same batch.
    """
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        return torch.ones_like(weights)
    return count_labels(labels).float()


def loss_weights(inputs: dict[str, Any], model: nn.Module, weighting: str) -> Tensor:
    """`w_b` `[B]` up to a common factor; zero for a sample without a label.

    Args:
        inputs (`dict`): a collated batch.
        model (`nn.Module`): the model, without wrappers.
        weighting (`str`): key of `WEIGHTINGS`.

    Raises:
        ValueError: if the rows of the batch are not samples.
    """
    check_shape(inputs, len(inputs["labels"]) if isinstance(inputs.get("labels"), Tensor) else 0, "training set")
    counts = labelled_tokens(model, inputs).float()
    if weighting == LABELLED_TOKENS:
        return counts
    weights = WEIGHTINGS[weighting](inputs, counts).to(counts.device)
    return torch.where(counts > 0, weights, 0.0)
