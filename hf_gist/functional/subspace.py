"""The spectral filter of GIST: the subspace spanned by the target set's gradients.

Notation: `G` `[M, D]` target gradients, `C = G Gᵀ` `[M, M]`, `C = U S² Uᵀ`, basis `V = Gᵀ U S⁻¹` `[D, q]`. Everything
of size `D` is handled one parameter at a time.
"""

import torch
from torch import Tensor


RELATIVE_TOLERANCE = 1e-5
"""Singular values below this fraction of the largest are fp32 rounding noise and are dropped."""


def spectrum(gram: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> tuple[Tensor, Tensor]:
    """Singular values and left singular vectors of `G` from its Gram matrix.

    Args:
        gram (`Tensor`): `G Gᵀ` `[M, M]`.
        tolerance (`float`): singular values below `tolerance * largest` are dropped, to avoid dividing by them.

    Returns:
        `tuple[Tensor, Tensor]`: `S` `[q]` in descending order and `U` `[M, q]`, float64. The sign of each column of
        `U` makes its largest entry positive, so that the same input gives the same basis.

    Raises:
        ValueError: if the Gram matrix is not finite or every gradient is zero.
    """
    gram = gram.double()
    if not torch.isfinite(gram).all():
        raise ValueError("The Gram matrix of the target gradients is not finite; check the targets for NaN or Inf.")
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    singular = values.flip(0).clamp(min=0).sqrt()
    if singular[0] == 0:
        raise ValueError(
            "Every target gradient is zero. This happens if LoRA's A and B are both zero, or if the model already "
            "fits the target set exactly."
        )
    keep = singular > tolerance * singular[0]
    u = vectors.flip(1)[:, keep]
    flip = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return singular[keep], u * flip


def choose_rank(singular_values: Tensor, explained_variance: float, rank: int | None = None) -> int:
    """The smallest `k` with `Σ_{i<=k} S_i² / Σ S_i² >= explained_variance` (paper GIST, section 3), or the fixed rank.

    Args:
        singular_values (`Tensor`): `S` `[q]`, descending.
        explained_variance (`float`): in (0, 1].
        rank (`int`, *optional*): a fixed rank; capped at `q`.

    Returns:
        `int`: `k`, between 1 and `q`; 0 if nothing was scored (`q` is 0).
    """
    if len(singular_values) == 0:
        return 0
    if rank is not None:
        return min(rank, len(singular_values))
    shares = captured_variance(singular_values)
    # 1e-12: a share of 1.0 must be reachable although the cumulative sum is rounded
    return int((shares < explained_variance - 1e-12).sum().item()) + 1


def captured_variance(singular_values: Tensor) -> Tensor:
    """Share of the squared spectrum in the first `k` directions, for every `k`: `[q]`."""
    squares = singular_values.double().square()
    return squares.cumsum(0) / squares.sum()


def basis_slice(gradients: Tensor, singular_values: Tensor, u: Tensor) -> Tensor:
    """One parameter's rows of the orthonormal basis `V = Gᵀ U S⁻¹`.

    Args:
        gradients (`Tensor`): the targets' gradients of this parameter `[M, n]`.
        singular_values (`Tensor`): `[q]`.
        u (`Tensor`): `[M, q]`.

    Returns:
        `Tensor`: `[q, n]`, float32; computed in float64. The memory layout is that of `[n, q]`: on a
        CPU, this makes the projection `[B, n] @ [n, q]` of a few rows two to three times faster.
    """
    weights = (u / singular_values).to(gradients.device)
    return (gradients.double().T @ weights).float().T


def target_coordinates(singular_values: Tensor, u: Tensor) -> Tensor:
    """Coordinates of the target gradients in the basis: `U S` `[M, q]`, float32."""
    return (u * singular_values).float()


PARTS_AT_A_TIME = 16
"""Parts whose norms and coordinates are kept until they are added up."""


class BatchTotals:
    """Norms and coordinates of the vectors of a batch, added up over the parts of the vectors.

    Every part costs one kernel for its norms and one for its coordinates; the results are kept, and every few parts
    they are added up in float64.

    Args:
        rows (`int`): `B`.
        rank (`int`): `q`; 0 without a basis.
        device (`torch.device`): of the vectors.
    """

    def __init__(self, rows: int, rank: int, device: torch.device) -> None:
        self._squares = torch.zeros(rows, dtype=torch.float64, device=device)
        self._coordinates = torch.zeros(rows, rank, dtype=torch.float64, device=device)
        self._norms_of_parts = torch.empty(PARTS_AT_A_TIME, rows, device=device)
        self._coordinates_of_parts = torch.empty(PARTS_AT_A_TIME, rows, rank, device=device)
        self._slots = list(zip(self._norms_of_parts, self._coordinates_of_parts, strict=True))
        self._used = 0

    def add(self, values: Tensor, basis: Tensor | None = None) -> None:
        """Add a part.

        Args:
            values (`Tensor`): `[B, n]` fp32.
            basis (`Tensor`, *optional*): its rows of the basis `[n, q]` fp32.
        """
        if self._used == PARTS_AT_A_TIME:
            self._add_up()
        norms, coordinates = self._slots[self._used]
        # an inner product is slower and, for long vectors, less accurate
        torch.linalg.vector_norm(values, dim=1, out=norms)
        if basis is not None:
            torch.mm(values, basis, out=coordinates)
        self._used += 1

    def _add_up(self) -> None:
        self._squares += self._norms_of_parts[: self._used].double().square_().sum(0)
        if self._coordinates.shape[1]:
            self._coordinates += self._coordinates_of_parts[: self._used].sum(0, dtype=torch.float64)
        self._used = 0

    def with_losses(self, losses: Tensor) -> Tensor:
        """All results of the batch in one tensor.

        Args:
            losses (`Tensor`): `[B]`.

        Returns:
            `Tensor`: `[B, 2 + q]` fp32: loss, norm, coordinates.
        """
        self._add_up()
        scalars = torch.stack([losses.detach().to(self._squares), self._squares.sqrt()], 1)
        return torch.cat([scalars, self._coordinates], 1).float()
