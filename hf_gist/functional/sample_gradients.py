"""Per-sample gradients of one parameter, dense or factored, with dot products, norms and weighted sums."""

import torch
from torch import Tensor

from hf_gist.functional.per_sample import as_batch_of_sequences, bias_gradients, scale_gradients, weight_gradients


class DenseGradient:
    """Per-sample gradients of one parameter, as dense tensors.

    Args:
        values (`Tensor`): `[B, *shape]`.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def dense(self) -> "DenseGradient":
        """Returns itself."""
        return self

    def smaller(self) -> "DenseGradient":
        """Returns itself."""
        return self

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
    """Per-sample gradients `d_bᵀ a_b` of a linear weight, stored as factors; computed in the dtype of `d`.

    Args:
        a (`Tensor`): inputs `[B, T, i]`, see [`hf_gist.functional.per_sample`].
        d (`Tensor`): output gradients `[B, T, o]`.
    """

    def __init__(self, a: Tensor, d: Tensor) -> None:
        self.a = as_batch_of_sequences(a)
        self.d = as_batch_of_sequences(d)

    def dense(self) -> DenseGradient:
        """The products `[B, o, i]`."""
        return DenseGradient(weight_gradients(self.a, self.d))

    def smaller(self) -> "DenseGradient | FactoredGradient":
        """The smaller form: the factors if `o i > T (o + i)`, otherwise the dense gradients."""
        tokens = self.d.shape[1]
        inputs = self.a.shape[2]
        outputs = self.d.shape[2]
        return self if inputs * outputs > tokens * (inputs + outputs) else self.dense()

    def dot(self, support: Tensor) -> Tensor:
        """`Σ_t d_bt · (s a_bt)` `[B]` in fp32."""
        dtype = self.d.dtype
        # fp16 overflows above 65,504, and loss scaling also scales the support gradient
        largest = support.abs().amax().float() if dtype == torch.float16 else support.new_ones(())
        largest = torch.where(largest > 0, largest, 1.0)
        mapped = self.a.to(dtype) @ (support / largest).to(dtype).T
        return (self.d.float() * mapped.float()).sum((1, 2)) * largest

    def squares(self) -> Tensor:
        """`Σ_tu (a_bt · a_bu)(d_bt · d_bu)` `[B]` in fp32."""
        a = self.a.to(self.d.dtype).float()
        d = self.d.float()
        return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(d, d.transpose(1, 2))).sum((1, 2)).clamp(min=0)

    def weighted_sum(self, scales: Tensor) -> Tensor:
        """`Σ_b scales_b d_bᵀ a_b` `[o, i]`; the per-sample gradients are not computed."""
        d = self.d * scales.to(self.d.dtype)[:, None, None]
        return d.flatten(0, 1).T @ self.a.to(d.dtype).flatten(0, 1)


SampleGradient = DenseGradient | FactoredGradient


def sample_gradient(kind: str, attribute: str, a: Tensor, d: Tensor) -> SampleGradient:
    """The per-sample gradients of a parameter, in the form that needs no matrix product.

    Args:
        kind (`str`): of the module, `"linear"` or `"scale"`.
        attribute (`str`): the parameter's name in the module, `"weight"` or `"bias"`.
        a (`Tensor`): `[B, T, i]`, see [`hf_gist.functional.per_sample`].
        d (`Tensor`): `[B, T, o]`.
    """
    if kind == "scale":
        return DenseGradient(scale_gradients(a, d))
    if attribute == "bias":
        return DenseGradient(bias_gradients(d))
    return FactoredGradient(a, d)
