"""Per-sample gradients of one parameter in the form that takes the least memory, and what is asked of them."""

import torch
from torch import Tensor

from hf_gist.functional.per_sample import as_batch_of_sequences, bias_gradients, scale_gradients, weight_gradients


class DenseGradient:
    """Per-sample gradients of one parameter, whole: `[B, *shape]`."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def dot(self, support: Tensor) -> Tensor:
        """`<G_b, s>` `[B]` in fp32."""
        return self.values.flatten(1).float() @ support.flatten().float()

    def squares(self) -> Tensor:
        """`‖G_b‖²` `[B]` in fp32."""
        return torch.linalg.vector_norm(self.values.flatten(1), dim=1, dtype=torch.float32).square()

    def weighted_sum(self, scales: Tensor) -> Tensor:
        """`Σ_b scales_b G_b` in the parameter's shape."""
        flat = self.values.flatten(1)
        return (scales.to(flat.dtype) @ flat).view(self.values.shape[1:])


class FactoredGradient:
    """Per-sample gradients `d_bᵀ a_b` of a linear weight that is larger than its input and output together.

    Args:
        a (`Tensor`): inputs `[B, T, i]`.
        d (`Tensor`): output gradients `[B, T, o]`.
    """

    def __init__(self, a: Tensor, d: Tensor) -> None:
        self.a, self.d = as_batch_of_sequences(a).to(d.dtype), as_batch_of_sequences(d)

    def dot(self, support: Tensor) -> Tensor:
        """`Σ_t d_bt · (s a_bt)` `[B]` in fp32."""
        # fp16 ends at 65,504, and a scaled loss makes a scaled support gradient
        largest = support.abs().amax().float() if self.a.dtype == torch.float16 else support.new_ones(())
        largest = torch.where(largest > 0, largest, 1.0)
        mapped = self.a @ (support / largest).to(self.a.dtype).T
        return (self.d.float() * mapped.float()).sum((1, 2)) * largest

    def squares(self) -> Tensor:
        """`Σ_tu (a_bt · a_bu)(d_bt · d_bu)` `[B]` in fp32."""
        a, d = self.a.float(), self.d.float()
        return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(d, d.transpose(1, 2))).sum((1, 2)).clamp(min=0)

    def weighted_sum(self, scales: Tensor) -> Tensor:
        """`Σ_b scales_b d_bᵀ a_b` `[o, i]`."""
        d = self.d * scales.to(self.d.dtype)[:, None, None]
        return d.flatten(0, 1).T @ self.a.flatten(0, 1)


SampleGradient = DenseGradient | FactoredGradient


def sample_gradient(kind: str, attribute: str, a: Tensor, d: Tensor) -> SampleGradient:
    """The smaller form of a parameter's per-sample gradients.

    Args:
        kind (`str`): `"linear"` or `"scale"`.
        attribute (`str`): `"weight"` or `"bias"`.
        a (`Tensor`): `[B, T, i]`, see [`hf_gist.functional.per_sample`].
        d (`Tensor`): `[B, T, o]`.
    """
    if kind == "scale":
        return DenseGradient(scale_gradients(a, d))
    if attribute == "bias":
        return DenseGradient(bias_gradients(d))
    inputs, outputs, tokens = a.shape[-1], d.shape[-1], d[0].numel() // d.shape[-1]
    if inputs * outputs > tokens * (inputs + outputs):
        return FactoredGradient(a, d)
    return DenseGradient(weight_gradients(a, d))


def summed_gradient(kind: str, attribute: str, a: Tensor, d: Tensor, scales: Tensor) -> Tensor:
    """`Σ_b scales_b G_b` of one parameter, without the per-sample gradients; shapes as in [`sample_gradient`]."""
    d = as_batch_of_sequences(d) * scales.to(d.dtype)[:, None, None]
    a = as_batch_of_sequences(a)
    if kind == "scale":
        return (a.to(d.dtype) * d).sum((0, 1))
    if attribute == "bias":
        return d.sum((0, 1))
    return d.flatten(0, 1).T @ a.to(d.dtype).flatten(0, 1)
