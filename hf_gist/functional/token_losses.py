"""Each sample's own loss from the logits of a batch."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


CHUNK_VALUES = 2**26
"""Number of logits in one chunk of the cross-entropy: 256 MiB in fp32."""


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


def mean_token_losses(logits: Tensor, targets: Tensor, sample: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Each sample's mean cross-entropy over its labelled tokens.

    Args:
        logits (`Tensor`): `[n, V]`, the logits of the `n` labelled positions of the whole batch.
        targets (`Tensor`): `[n]` token ids.
        sample (`Tensor`): `[n]`, the sample each position belongs to.
        batch_size (`int`): `B`.

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` in fp32 (0 for a sample without labelled tokens) and the number of
        labelled tokens `[B]`.
    """
    counts = torch.bincount(sample, minlength=batch_size)
    sums = torch.zeros(batch_size, device=logits.device).index_add(0, sample, token_losses(logits, targets))
    return sums / counts.clamp(min=1), counts


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
