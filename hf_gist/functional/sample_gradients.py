"""Per-sample gradients of one parameter, dense or factored, with dot products, norms and weighted sums."""

import torch
from torch import Tensor

from hf_gist.functional.per_sample import as_batch_of_sequences, bias_gradients, scale_gradients, weight_gradients


class DenseGradient:
    """Per-sample gradients of one parameter, as dense tensors.

    Args:
        values (`Tensor`): `[B, *shape]`.
    """

    prefers_factors = False

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @property
    def like(self) -> Tensor:
        """A tensor with the number of samples, the dtype and the device of the gradients."""
        return self.values

    def dense(self) -> "DenseGradient":
        """Returns itself."""
        return self

    def write(self, out: Tensor) -> None:
        """Copy the gradients to `out` `[B, *shape]`, a view of a larger tensor."""
        out.copy_(self.values)

    def rows(self, rows: slice) -> "DenseGradient":
        """Those of some samples, as a view."""
        return DenseGradient(self.values[rows])

    def dot(self, support: Tensor) -> Tensor:
        """`<G_b, s>` `[B]` in fp32."""
        return self.values.flatten(1).float() @ support.flatten().float()

    def squares(self) -> Tensor:
        """`‖G_b‖²` `[B]` in fp32."""
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        return torch.linalg.vector_norm(self.values.flatten(1), dim=1, dtype=dtype).float().square()

    def overlaps(self) -> Tensor:
        """`<G_b, G_c>` `[B, B]` in fp32."""
        flat = self.values.flatten(1).float()
        return flat @ flat.T

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

    @property
    def like(self) -> Tensor:
        """A tensor with the number of samples, the dtype and the device of the gradients."""
        return self.d

    @property
    def prefers_factors(self) -> bool:
        """Whether the factors are smaller than the dense gradients: `o i > T (o + i)`."""
        tokens = self.d.shape[1]
        inputs = self.a.shape[2]
        outputs = self.d.shape[2]
        return inputs * outputs > tokens * (inputs + outputs)

    def write(self, out: Tensor) -> None:
        """Compute the products into `out` `[B, o, i]`, a view of a larger tensor."""
        torch.bmm(self.d.transpose(1, 2), self.a.to(self.d.dtype), out=out)

    def rows(self, rows: slice) -> "FactoredGradient":
        """Those of some samples, as views."""
        return FactoredGradient(self.a[rows], self.d[rows])

    def dot(self, support: Tensor) -> Tensor:
        """`Σ_t d_bt · (s a_bt)` `[B]` in fp32."""
        dtype = self.d.dtype
        if dtype != torch.float16:
            return self._dot(support.to(dtype))
        # fp16 overflows above 65,504, and loss scaling also scales the support gradient
        largest = support.abs().amax().float()
        largest = torch.where(largest > 0, largest, 1.0)
        return self._dot((support / largest).to(dtype)) * largest

    def _dot(self, support: Tensor) -> Tensor:
        mapped = self.a.to(support.dtype) @ support.T
        return (self.d.float() * mapped.float()).sum((1, 2))

    def squares(self) -> Tensor:
        """`Σ_tu (a_bt · a_bu)(d_bt · d_bu)` `[B]` in fp32."""
        a = self.a.to(self.d.dtype).float()
        d = self.d.float()
        return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(d, d.transpose(1, 2))).sum((1, 2)).clamp(min=0)

    def overlaps(self) -> Tensor:
        """`Σ_tu (a_bt · a_cu)(d_bt · d_cu)` `[B, B]` in fp32, from `[T, B T]` values at a time."""
        a = self.a.to(self.d.dtype).float()
        d = self.d.float()
        flat_a = a.flatten(0, 1).T
        flat_d = d.flatten(0, 1).T
        rows = [((one_a @ flat_a) * (one_d @ flat_d)).sum(0) for one_a, one_d in zip(a, d, strict=True)]
        return torch.stack(rows).unflatten(1, (len(d), -1)).sum(-1)

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
