"""Per-sample gradients of linear maps, from one forward and one backward of the whole batch.

For a linear map `y = a Wᵀ + b` with input `a` `[B, T, i]` and output gradient `d` `[B, T, o]`, the gradient of sample
`b` with respect to `W` is `d_bᵀ a_b` `[o, i]`. The two autograd Functions here put themselves between a module and the
rest of the graph, hand `(a, d)` to a sink in the backward pass, and leave the parameters without a gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


Sink = Callable[[Tensor, Tensor], None]
"""Receives `(a, d)`: the input and the output gradient of one tracked map, both `[B, T, ...]` or `[B, ...]`."""


class TrackedLinear(torch.autograd.Function):
    """The output of a linear module, with a backward that reports `(a, d)` instead of summing a weight gradient.

    The module has already computed `y`; it is passed in detached and returned as it is, so nothing is computed twice.
    `weight` and `bias` are inputs only so that the graph stays connected when `a` itself needs no gradient.
    """

    @staticmethod
    def forward(ctx, a: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.sink = sink
        return y.view_as(y)

    @staticmethod
    def backward(ctx, d: Tensor):
        a, weight = ctx.saved_tensors
        ctx.sink(a, d)
        grad_a = None
        if ctx.needs_input_grad[0]:
            grad_a = (d @ weight.to(d.dtype)).to(a.dtype)
        return grad_a, None, None, None, None


class TrackedScale(torch.autograd.Function):
    """The output of a module that multiplies elementwise by a trainable vector, such as DoRA's magnitude.

    With `z = ∂y/∂m` `[B, T, o]`, the gradient of sample `b` with respect to the vector `m` `[o]` is `Σ_t d_b z_b`. The
    sink receives `(z, d)`. The gradient with respect to everything else flows through `y` unchanged.
    """

    @staticmethod
    def forward(ctx, y: Tensor, z: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(z)
        ctx.sink = sink
        return y.view_as(y)

    @staticmethod
    def backward(ctx, d: Tensor):
        (z,) = ctx.saved_tensors
        ctx.sink(z, d)
        return d, None, None


def as_batch_of_sequences(x: Tensor) -> Tensor:
    """`[B, ..., n]` as `[B, T, n]`; a `[B, n]` input (a pooled classification head) has `T = 1`."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


def weight_gradients(a: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients of a linear weight.

    Args:
        a (`Tensor`): inputs `[B, T, i]` or `[B, i]`.
        d (`Tensor`): output gradients `[B, T, o]` or `[B, o]`.

    Returns:
        `Tensor`: `[B, o, i]` in the dtype of `d`.
    """
    a, d = as_batch_of_sequences(a), as_batch_of_sequences(d)
    return torch.bmm(d.transpose(1, 2), a.to(d.dtype))


def bias_gradients(d: Tensor) -> Tensor:
    """Per-sample gradients of a bias: `Σ_t d` `[B, o]`."""
    return as_batch_of_sequences(d).sum(1)


def scale_gradients(z: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients of an elementwise scale: `Σ_t d z` `[B, o]`."""
    z, d = as_batch_of_sequences(z), as_batch_of_sequences(d)
    return (z.to(d.dtype) * d).sum(1)


CHUNK_VALUES = 2**26
"""Logits whose cross-entropy is computed at a time: 256 MiB in fp32."""


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every position, in fp32, without fp32 copies of all logits at a time.

    With a vocabulary of 128k the logits are the largest tensor of a step, and cross-entropy keeps two more of that size
    in fp32 and makes others in the backward pass. Chunk by chunk, computed again in the backward pass, there are the
    logits and their gradient in their own dtype, and one chunk in fp32.

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
        labels (`Tensor`): `[B]` class ids or regression targets, or `[B, C]` for several labels.
        problem_type (`str`, *optional*): `regression`, `single_label_classification` or
            `multi_label_classification`; inferred from `C` and the dtype of the labels when missing.

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
