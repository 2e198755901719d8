"""Selects from a ranking the rows that fit a budget."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sampled_from_top(
    order: Sequence[int], budget: int | float, unit: str, label_tokens: Tensor, times: float, seed: int
) -> list[int]:
    """Rows drawn at random from the best `times` the budget; with `times` 1, the best rows.

    Args:
        order (`Sequence[int]`): scorable rows, best first.
        budget (`int` or `float`): see [`cut_to_budget`].
        unit (`str`): see [`cut_to_budget`].
        label_tokens (`Tensor`): labelled tokens of every pool row `[N]`.
        times (`float`): multiple of the budget, at least 1.
        seed (`int`): seed of the draw.

    Returns:
        `list[int]`: the selected rows, best first.
    """
    best = cut_to_budget(order, budget, unit, label_tokens)
    if times == 1:
        return best
    if unit == "rows":
        top = list(order[: int(len(best) * times)])
    else:
        used = label_tokens[torch.as_tensor(order, dtype=torch.long)].cumsum(0)
        top = list(order[: int((used <= int(label_tokens[best].sum()) * times).sum())])
    generator = torch.Generator().manual_seed(seed)
    drawn = [top[i] for i in torch.randperm(len(top), generator=generator).tolist()]
    kept = set(cut_to_budget(drawn, budget, unit, label_tokens))
    return [row for row in top if row in kept]


def rows_in_budget(budget: int | float, unit: str, pool_size: int) -> int | None:
    """The number of rows of a row budget; `None` for a token budget.

    Raises:
        ValueError: if the budget selects nothing or more than the pool.
    """
    if unit == "tokens":
        return None
    rows = int(budget * pool_size + 1e-9) if isinstance(budget, float) else budget
    if rows < 1:
        raise ValueError(
            f"`budget={budget}` of {pool_size} rows selects nothing; raise it to at least {1 / pool_size:.2g}."
        )
    if rows > pool_size:
        raise ValueError(f"`budget={budget}` rows is more than the {pool_size} rows of the pool; lower it.")
    return rows


def cut_to_budget(order: Sequence[int], budget: int | float, unit: str, label_tokens: Tensor) -> list[int]:
    """The longest prefix of a ranking within the budget.

    Args:
        order (`Sequence[int]`): scorable rows, best first.
        budget (`int` or `float`): a fraction of the pool or a count.
        unit (`str`): `"rows"` or `"tokens"`.
        label_tokens (`Tensor`): labelled tokens of every pool row `[N]`.

    Returns:
        `list[int]`: the selected rows, best first.

    Raises:
        ValueError: if the budget selects nothing.
    """
    rows = rows_in_budget(budget, unit, len(label_tokens))
    if rows is None:
        total = int(label_tokens.sum())
        allowed = int(budget * total) if isinstance(budget, float) else budget
        used = label_tokens[torch.as_tensor(order, dtype=torch.long)].cumsum(0)
        rows = int((used <= allowed).sum())
    selected = list(order[:rows])
    if not selected:
        raise ValueError(f"`budget={budget}` {unit} selects no rows; raise it.")
    return selected
