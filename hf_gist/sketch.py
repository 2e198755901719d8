"""Seeded random projections of per-sample gradients, applied one parameter at a time.

[`SideSketch`] shortens the long sides of each matrix, for GIST on models whose basis does not fit into memory.
[`CountSketch`] maps a whole gradient to a few thousand values, for the LESS baseline: sends every gradient entry to one of `m` cells with a random sign. Inner products are unbiased and have
the variance of a dense random projection to `m` values, at `O(D)` instead of `O(m D)` operations a sample.
"""

import hashlib
import math

import torch
from torch import Tensor


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU, the same on every device and process, that differs from name to name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class SideSketch:
    """Projects the sides of gradient matrices that are longer than `dim` to `dim` values.

    A LoRA matrix has one long side: projecting 4096 to 64 makes its gradient, and so the basis, 64 times smaller. The
    projections have orthogonal columns and keep lengths and inner products in expectation.

    Args:
        dim (`int`): longest side that is left.
        seed (`int`): with the parameter's name, it fixes the projections.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self.seed = dim, seed
        self._maps: dict[tuple[str, int], Tensor] = {}

    def size(self, shape: torch.Size) -> int:
        """Values that are left of a parameter's gradient; vectors (biases, magnitudes) are left as they are."""
        return math.prod(min(side, self.dim) for side in shape) if len(shape) == 2 else math.prod(shape)

    def __call__(self, name: str, gradients: Tensor) -> Tensor:
        """`[B, o, i]` to `[B, min(o, dim), min(i, dim)]`; `[B, n]` as it is."""
        if gradients.dim() == 3:
            if gradients.shape[2] > self.dim:
                gradients = gradients @ self._map_of(name, 2, gradients)
            if gradients.shape[1] > self.dim:
                gradients = self._map_of(name, 1, gradients).T @ gradients
        return gradients

    def _map_of(self, name: str, side: int, like: Tensor) -> Tensor:
        key = (name, side)
        if key not in self._maps:
            generator = seeded_generator(self.seed, f"{name}:{side}")
            q, _ = torch.linalg.qr(torch.randn(like.shape[side], self.dim, generator=generator))
            self._maps[key] = (q * math.sqrt(like.shape[side] / self.dim)).to(like.device)
        return self._maps[key]


class CountSketch:
    """A linear map from all parameters' gradients to `size` values, applied one parameter at a time.

    Args:
        size (`int`): `m`, values of a sketch (LESS: 8192).
        seed (`int`): with the parameter's name, it fixes the map of each parameter.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._maps: dict[str, tuple[Tensor, Tensor]] = {}

    def _map_of(self, name: str, numel: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if name not in self._maps:
            generator = seeded_generator(self.seed, name)
            cells = torch.randint(self.size, (numel,), generator=generator).to(device)
            signs = torch.randint(2, (numel,), generator=generator, dtype=torch.int8).to(device) * 2 - 1
            self._maps[name] = cells, signs
        return self._maps[name]

    def add(self, sketch: Tensor, name: str, values: Tensor) -> None:
        """Add one parameter's share to a sketch, in place.

        Args:
            sketch (`Tensor`): `[B, m]`.
            name (`str`): the parameter.
            values (`Tensor`): its per-sample gradients `[B, n]`.
        """
        cells, signs = self._map_of(name, values.shape[1], values.device)
        sketch.index_add_(1, cells, values * signs)
