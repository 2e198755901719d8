"""Target rows that are held out from a selection, to measure the loss of the targets on them."""

from collections.abc import Sequence

import torch


def draw_held_out(share: float, usable: Sequence[int], groups: Sequence[str] | None, seed: int) -> list[int]:
    """The numbers of the held-out rows: a random share of every group, which keeps at least one of its rows.

    The shares of the groups are rounded so that together they are the share of all rows, where the groups allow it.

    Args:
        share (`float`): above 0 and below 1.
        usable (`Sequence[int]`): numbers of the rows to draw from, those with a labelled token.
        groups (`Sequence[str]`, *optional*): name of the group of every target row; without it there is one group.
        seed (`int`): seed of the draw.

    Returns:
        `list[int]`: ascending.

    Raises:
        ValueError: if no row would be held out, or none left to select with.
    """
    wanted = int(share * len(usable) + 0.5)
    of_group: dict[str, list[int]] = {}
    for row in usable:
        of_group.setdefault("" if groups is None else groups[row], []).append(row)
    left = wanted < len(usable) if groups is None else len(usable) > len(of_group)
    if not wanted or not left:
        reason = "holds out no row" if not wanted else "leaves no row to select with"
        least = 1 if groups is None else len(of_group)
        change = "Raise it" if not wanted else "Lower it"
        # with a single row in each group, no share would do
        change = f"{change}, give" if len(usable) > least else "Give"
        grouped = "" if groups is None else f" in {len(of_group):,} groups"
        raise ValueError(
            f"`target_holdout={share}` {reason}: `target_dataset` has {len(usable):,} rows with a labelled "
            f"token{grouped}, and each group keeps at least one. {change} more target rows, or leave it out."
        )
    generator = torch.Generator().manual_seed(seed)
    names = list(of_group)
    order = [names[at] for at in torch.randperm(len(names), generator=generator).tolist()]
    counts = _counts({name: len(of_group[name]) for name in order}, share, wanted)
    held_out: list[int] = []
    for name in names:
        rows = of_group[name]
        drawn = torch.randperm(len(rows), generator=generator)[: counts[name]].tolist()
        held_out += [rows[at] for at in drawn]
    return sorted(held_out)


def _counts(sizes: dict[str, int], share: float, wanted: int) -> dict[str, int]:
    """How many rows of each group are held out: the share, rounded down, and one more where the remainder is largest."""
    counts = {name: min(int(share * size), size - 1) for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: counts[name] - share * sizes[name])
    for name in by_remainder:
        if sum(counts.values()) < wanted and counts[name] < sizes[name] - 1:
            counts[name] += 1
    return counts
