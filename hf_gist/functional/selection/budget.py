"""Selects from a ranking the rows that fit a budget."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_gist.functional.selection.quotas import NO_QUOTAS, Quotas


def sampled_from_top(
    order: Sequence[int],
    budget: int | float,
    unit: str,
    label_tokens: Tensor,
    times: float,
    seed: int,
    quotas: Quotas = NO_QUOTAS,
) -> list[int]:
    """Rows drawn at random from the best `times` the budget; with `times` 1, the best rows.

    Args:
        order (`Sequence[int]`): scorable rows, best first.
        budget (`int` or `float`): see [`cut_to_budget`].
        unit (`str`): see [`cut_to_budget`].
        label_tokens (`Tensor`): labelled tokens of every pool row `[N]`.
        times (`float`): multiple of the budget, at least 1.
        seed (`int`): seed of the draw.
        quotas (`Quotas`): see [`cut_to_budget`]; the rows that are drawn from have `times` as many of each source.

    Returns:
        `list[int]`: the selected rows, best first.
    """
    best = cut_to_budget(order, budget, unit, label_tokens, quotas)
    if times == 1:
        return best
    sizes = row_sizes(unit, label_tokens)
    amount = budget_amount(budget, unit, label_tokens) if quotas.given else int(sizes[best].sum())
    top = quotas.pick(order, amount * times, sizes, times)
    generator = torch.Generator().manual_seed(seed)
    drawn = [top[i] for i in torch.randperm(len(top), generator=generator).tolist()]
    kept = set(cut_to_budget(drawn, budget, unit, label_tokens, quotas))
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


def budget_amount(budget: int | float, unit: str, label_tokens: Tensor) -> int:
    """The budget in rows or in labelled tokens, by its unit; see [`cut_to_budget`]."""
    rows = rows_in_budget(budget, unit, len(label_tokens))
    if rows is not None:
        return rows
    return int(budget * int(label_tokens.sum())) if isinstance(budget, float) else budget


def row_sizes(unit: str, label_tokens: Tensor) -> Tensor:
    """What each row takes of the budget `[N]` int64."""
    return label_tokens if unit == "tokens" else torch.ones_like(label_tokens)


def cut_to_budget(
    order: Sequence[int], budget: int | float, unit: str, label_tokens: Tensor, quotas: Quotas = NO_QUOTAS
) -> list[int]:
    """The longest prefix of a ranking within the budget; with quotas, see [`Quotas.pick`].

    Args:
        order (`Sequence[int]`): scorable rows, best first.
        budget (`int` or `float`): a fraction of the pool or a count.
        unit (`str`): `"rows"` or `"tokens"`.
        label_tokens (`Tensor`): labelled tokens of every pool row `[N]`.
        quotas (`Quotas`): what each source gets.

    Returns:
        `list[int]`: the selected rows, best first.

    Raises:
        ValueError: if the budget selects nothing.
    """
    amount = budget_amount(budget, unit, label_tokens)
    selected = quotas.pick(order, amount, row_sizes(unit, label_tokens))
    if not selected:
        raise ValueError(f"`budget={budget}` {unit} selects no rows; raise it.")
    return selected
