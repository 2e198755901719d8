"""Per-sample gradients of linear maps, from one forward and one backward pass of the whole batch.

For a linear map `y = a Wᵀ + b` with input `a` `[B, T, i]` and output gradient `d` `[B, T, o]`, the gradient of sample
`b` with respect to `W` is `d_bᵀ a_b` `[o, i]`. The two autograd Functions here replace the output of a module, pass
`(a, d)` to a sink in the backward pass, and compute no gradient for the parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


Sink = Callable[[Tensor, Tensor], None]
"""Receives `(a, d)`: the input and the output gradient of one tracked map, both `[B, T, ...]` or `[B, ...]`."""


class TrackedLinear(torch.autograd.Function):
    """The output of a linear module, whose backward pass reports `(a, d)` instead of computing a weight gradient.

    The module has already computed `y`; it is passed in detached and returned unchanged, so nothing is computed twice.
    `weight` and `bias` are inputs only so that the graph stays connected when `a` itself needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.sink = sink
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, None, None, None, None]:
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
    def forward(ctx: Any, y: Tensor, z: Tensor, sink: Sink) -> Tensor:
        ctx.save_for_backward(z)
        ctx.sink = sink
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        ctx.sink(z, d)
        return d, None, None


def as_batch_of_sequences(x: Tensor) -> Tensor:
    """`[B, ..., n]` as `[B, T, n]`; a `[B, n]` input (a pooled classification head) has `T = 1`."""
    return x if x.dim() == 3 else x.reshape(x.shape[0], -1, x.shape[-1])


def joined_sequences(x: Tensor, sequences: int) -> Tensor:
    """One row `[B, sequences * T, n]` for the sequences of each sample, from all first ones, then all second ones.

    Per-sample gradients are sums over tokens, so the gradient of a sample of several sequences is that of this row.

    Args:
        x (`Tensor`): `[sequences * B, ..., n]`.
        sequences (`int`): sequences of each sample.
    """
    return x if sequences == 1 else torch.cat(as_batch_of_sequences(x).chunk(sequences), dim=1)


def weight_gradients(a: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients of a linear weight.

    Args:
        a (`Tensor`): inputs `[B, T, i]` or `[B, i]`.
        d (`Tensor`): output gradients `[B, T, o]` or `[B, o]`.

    Returns:
        `Tensor`: `[B, o, i]` in the dtype of `d`.
    """
    a = as_batch_of_sequences(a)
    d = as_batch_of_sequences(d)
    return torch.bmm(d.transpose(1, 2), a.to(d.dtype))


def bias_gradients(d: Tensor) -> Tensor:
    """Per-sample gradients of a bias: `Σ_t d` `[B, o]`."""
    return as_batch_of_sequences(d).sum(1)


def scale_gradients(z: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients of an elementwise scale: `Σ_t d z` `[B, o]`."""
    z = as_batch_of_sequences(z)
    d = as_batch_of_sequences(d)
    return (z.to(d.dtype) * d).sum(1)


HAS_WIDE_PRODUCTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether `torch.bmm` has `out_dtype`, with which a product of 16-bit factors is not rounded to 16 bits."""


def _wide_weight_gradients(a: Tensor, d: Tensor) -> Tensor:
    """As [`weight_gradients`], in fp32; on a GPU, 16-bit factors are multiplied without rounding the product to 16 bits."""
    if d.dtype not in (torch.float16, torch.bfloat16) or d.device.type != "cuda" or torch.version.hip is not None:
        return weight_gradients(a, d).float()
    a = as_batch_of_sequences(a)
    d = as_batch_of_sequences(d)
    if not HAS_WIDE_PRODUCTS:
        with torch.autocast(d.device.type, enabled=False):
            return torch.bmm(d.float().transpose(1, 2), a.float())
    return torch.bmm(d.transpose(1, 2), a.to(d.dtype), out_dtype=torch.float32)


def flat_gradients(kind: str, attribute: str, a: Tensor, d: Tensor) -> Tensor:
    """Per-sample gradients of a parameter as one vector per sample.

    Args:
        kind (`str`): of the module, `"linear"` or `"scale"`.
        attribute (`str`): the parameter's name in the module, `"weight"` or `"bias"`.
        a (`Tensor`): what the sink received, `[B, T, i]` or `[B, i]`.
        d (`Tensor`): what the sink received, `[B, T, o]` or `[B, o]`.

    Returns:
        `Tensor`: `[B, numel]` fp32.
    """
    if kind == "scale":
        return scale_gradients(a, d).float()
    if attribute == "bias":
        return bias_gradients(d).float()
    return _wide_weight_gradients(a, d).flatten(1)
