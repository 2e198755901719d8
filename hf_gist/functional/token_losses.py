"""Each sample's own loss from the logits of a batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


CHUNK_VALUES = 2**26
"""Number of logits in one chunk of the cross-entropy: 256 MiB in fp32."""


@dataclass(frozen=True)
class Labelled:
    """The `n` labelled positions of a batch, in the order of its rows.

    Computed where the labels are: on a GPU this waits for the result, on the host it does not.

    Args:
        shape (`tuple[int, int]`): `(B, T)` of the labels.
        index (`Tensor`): positions in the flattened labels `[n]`.
        sample (`Tensor`): the sample each position belongs to `[n]`.
        targets (`Tensor`): token ids `[n]`.
        divisors (`Tensor`): labelled tokens of each sample, at least 1 `[B]`.
        counts (`Tensor`): labelled tokens of each sample `[B]`; these are not moved to the device.
    """

    shape: tuple[int, int]
    index: Tensor
    sample: Tensor
    targets: Tensor
    divisors: Tensor
    counts: Tensor

    @classmethod
    def of(cls, labels: Tensor, ignored: int) -> "Labelled":
        """From labels `[B, T]` that are aligned with the logits, and the label of a position without a loss."""
        batch_size, tokens = labels.shape
        labelled = labels != ignored
        index = labelled.flatten().nonzero().squeeze(1)
        counts = labelled.sum(1)
        targets = labels.flatten().index_select(0, index)
        return cls((batch_size, tokens), index, index // tokens, targets, counts.clamp(min=1), counts)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Labelled":
        """With `move` applied to all tensors that the loss is computed from."""
        return replace(
            self,
            index=move(self.index),
            sample=move(self.sample),
            targets=move(self.targets),
            divisors=move(self.divisors),
        )

    def select(self, values: Tensor) -> Tensor:
        """The values `[n, d]` at the labelled positions of `[B, T, d]`."""
        return values.flatten(0, 1).index_select(0, self.index)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every position, in fp32, without an fp32 copy of all logits.

    With a vocabulary of 128k, the logits are the largest tensor of a step. Cross-entropy keeps two more tensors of
    that size in fp32 and allocates others in the backward pass. Computed in chunks that are recomputed in the backward
    pass, it needs only the logits and their gradient in their own dtype, and one chunk in fp32.

    Args:
        logits (`Tensor`): `[n, V]`.
        targets (`Tensor`): `[n]` token ids.

    Returns:
        `Tensor`: `[n]` in fp32.
    """
    positions = max(1, CHUNK_VALUES // logits.shape[1])
    if len(logits) <= positions:
        return _cross_entropy(logits, targets)
    chunks = zip(logits.split(positions), targets.split(positions), strict=True)
    return torch.cat(
        [checkpoint(_cross_entropy, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )


def mean_token_losses(logits: Tensor, labelled: Labelled) -> Tensor:
    """Each sample's mean cross-entropy over its labelled tokens.

    Args:
        logits (`Tensor`): `[n, V]`, the logits of the `n` labelled positions of the whole batch.
        labelled (`Labelled`): these positions.

    Returns:
        `Tensor`: losses `[B]` in fp32; 0 for a sample without labelled tokens.
    """
    sums = torch.zeros(labelled.shape[0], device=logits.device)
    return sums.index_add(0, labelled.sample, token_losses(logits, labelled.targets)) / labelled.divisors


def classification_losses(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Each sample's sequence-classification loss, as `transformers` defines it for a batch of one.

    Args:
        logits (`Tensor`): `[B, C]`.
        labels (`Tensor`): `[B]` class ids or regression targets, or `[B, C]` for multiple labels.
        problem_type (`str`, *optional*): `regression`, `single_label_classification` or
            `multi_label_classification`; inferred from `C` and the dtype of the labels if `None`.

    Returns:
        `Tensor`: losses `[B]` in fp32.
    """
    logits = logits.float()
    if problem_type is None:
        if logits.shape[-1] == 1:
            problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    if problem_type == "single_label_classification":
        return torch.nn.functional.cross_entropy(logits, labels.view(-1), reduction="none")
    labels = labels.view(len(logits), -1).float()
    if problem_type == "regression":
        return (logits.view(len(logits), -1) - labels).square().mean(1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
