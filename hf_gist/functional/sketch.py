"""Seeded random projection of per-sample gradients, one parameter at a time.

A count sketch adds every gradient entry, with a random sign, to one of `m` cells. Inner products are unbiased and have
the variance of a dense random projection to `m` values, at `O(D)` instead of `O(m D)` operations a sample. One sketch
for the whole gradient is more accurate than one for each matrix: its error does not grow if a few matrices have most
of the norm.
"""

import hashlib

import torch
from torch import Tensor


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that is identical on every device and process, and different for every name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class CountSketch:
    """A linear map from all parameters' gradients to `size` values, applied one parameter at a time.

    Args:
        size (`int`): `m`, values of a sketch.
        seed (`int`): determines, with the parameter's name, the map of each parameter.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._maps: dict[str, tuple[Tensor, Tensor]] = {}

    def _map_of(self, name: str, numel: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if name not in self._maps:
            generator = seeded_generator(self.seed, name)
            cells = torch.randint(self.size, (numel,), generator=generator, dtype=torch.int32).to(device)
            signs = torch.randint(2, (numel,), generator=generator, dtype=torch.int8).to(device) * 2 - 1
            self._maps[name] = cells, signs
        return self._maps[name]

    def add(self, sketch: Tensor, name: str, values: Tensor) -> None:
        """Add the sketch of one parameter's gradients, in place.

        Args:
            sketch (`Tensor`): `[B, m]`.
            name (`str`): the parameter.
            values (`Tensor`): its per-sample gradients `[B, n]`.
        """
        cells, signs = self._map_of(name, values.shape[1], values.device)
        sketch.index_add_(1, cells, values * signs)
