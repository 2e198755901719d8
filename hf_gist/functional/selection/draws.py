"""The random draws of the selections of a run that selects several times."""

import hashlib
import math

import torch
from torch import Tensor

from hf_gist.functional.selection.ranking import uniform_order


def seed_of_selection(seed: int, number: int) -> int:
    """Seed of the random draws of a selection; that of the first is the seed of the configuration.

    Runs with neighbouring seeds have no draw in common, which they would have with `seed + number`.

    Args:
        seed (`int`): of the configuration.
        number (`int`): of the selection, from 1.
    """
    if number == 1:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=6).digest(), "big")


def random_share(eligible: Tensor, share: float, seed: int) -> Tensor:
    """A random share of some rows, rounded up.

    Args:
        eligible (`Tensor`): `[N]` bool, the rows to draw from.
        share (`float`): in (0, 1].
        seed (`int`): of the draw.

    Returns:
        `Tensor`: `[N]` bool.
    """
    order = uniform_order(eligible, seed)
    drawn = torch.zeros(len(eligible), dtype=torch.bool)
    drawn[order[: math.ceil(share * len(order) - 1e-9)]] = True
    return drawn
