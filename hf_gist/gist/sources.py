"""Shares of the budget and largest numbers of rows for the sources of the pool: checks, numbers and warnings."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_gist.config.gist import GISTConfig
from hf_gist.errors import SourceBudgetWarning
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import budget_amount, row_sizes, rows_in_budget
from hf_gist.functional.selection.quotas import NO_QUOTAS, Quotas


SOURCES_NAMED = 20


def quotas_of(config: GISTConfig, sources: Sequence[str] | None) -> Quotas:
    """The shares and limits of a configuration.

    Args:
        config (`GISTConfig`): `source_shares` and `source_max`.
        sources (`Sequence[str]`, *optional*): the source of each row of the pool `[N]`.

    Raises:
        ValueError: if the sources are not known, or a name is not one of them.
    """
    if not (config.source_shares or config.source_max):
        return NO_QUOTAS
    shares = config.source_shares or {}
    most = config.source_max or {}
    given = {"source_shares": list(shares), "source_max": list(most)}
    if sources is None:
        names = " and ".join(f"`{setting}`" for setting, listed in given.items() if listed)
        raise ValueError(
            f"{names}: the sources of the rows are not known. Set `source_column` to a column of the pool."
        )
    known = set(sources)
    for setting, listed in given.items():
        if unknown := [name for name in listed if name not in known]:
            shown = ", ".join(sorted(known)[:SOURCES_NAMED]) + (", …" if len(known) > SOURCES_NAMED else "")
            raise ValueError(f"`{setting}`: the pool has no row of {', '.join(unknown)}. Its sources: {shown}.")
    return Quotas(np.array(sources, dtype=object), shares, most)


def check_quotas(config: GISTConfig, sources: Sequence[str] | None) -> None:
    """Check before scoring that the pool has enough rows of each source.

    Raises:
        ValueError: for unknown sources, a share above the largest number of rows, or a budget that cannot be reached.

    Warns:
        SourceBudgetWarning: if a source has fewer rows than its share.
    """
    quotas = quotas_of(config, sources)
    amount = rows_in_budget(config.budget, config.budget_unit, len(sources or ()) or 1) if quotas.given else None
    if amount is None:
        return
    pool = Counter(quotas.sources.tolist())
    for name, wanted in quotas.wanted(amount).items():
        if wanted > quotas.most.get(name, wanted):
            raise ValueError(
                f"`source_shares` reserves {wanted:,} rows of the budget for {name}, but `source_max` allows only "
                f"{quotas.most[name]:,}; change one of them."
            )
    reachable = sum(min(rows, quotas.most.get(name, rows)) for name, rows in pool.items())
    if reachable < amount:
        raise ValueError(
            f"`source_max` leaves {reachable:,} of {pool.total():,} rows to choose from, but the budget is {amount:,} "
            "rows; raise `source_max` or lower `budget`."
        )
    _warn_short({name: (pool[name], wanted) for name, wanted in quotas.wanted(amount).items()}, "rows")


def _warn_short(found: dict[str, tuple[int, int]], unit: str) -> None:
    short = [f"{name} has {got:,} of {wanted:,} {unit}" for name, (got, wanted) in found.items() if got < wanted]
    if short:
        warnings.warn(
            f"Sources with less than their share of the budget: {'; '.join(short)}. Rows of other sources fill the rest.",
            SourceBudgetWarning,
            stacklevel=4,
        )


@dataclass(frozen=True)
class SourceUse:
    """One source of the pool and what it got of a selection.

    Args:
        name (`str`): the source.
        pool (`int`): its rows in the pool.
        got (`int`): its selected rows.
        got_units (`int`): the same in units of the budget.
        wanted (`int`, *optional*): units of the budget that are reserved for it.
        most (`int`, *optional*): its largest number of rows.
        left (`int`): its rows that could have been selected and were not.
    """

    name: str
    pool: int
    got: int
    got_units: int
    wanted: int | None
    most: int | None
    left: int

    @property
    def closed(self) -> bool:
        """Whether no further row of this source can be selected."""
        return self.left == 0 or (self.most is not None and self.got >= self.most)


def source_uses(m: Measurements, config: GISTConfig, indices: Sequence[int]) -> list[SourceUse]:
    """What each source got, in the order of their names; empty without shares and limits.

    Args:
        m (`Measurements`): of the pool.
        config (`GISTConfig`): of the selection.
        indices (`Sequence[int]`): the selected rows.
    """
    quotas = quotas_of(config, m.sources)
    if not quotas.given:
        return []
    wanted = quotas.wanted(budget_amount(config.budget, config.budget_unit, m.label_tokens))
    sizes = row_sizes(config.budget_unit, m.label_tokens)
    eligible = m.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    usable = Counter(quotas.sources[eligible.numpy()].tolist())
    pool = Counter(quotas.sources.tolist())
    got = Counter(quotas.sources[list(indices)].tolist())
    units: Counter[str] = Counter()
    for row in indices:
        units[quotas.sources[row]] += int(sizes[row])
    return [
        SourceUse(n, pool[n], got[n], units[n], wanted.get(n), quotas.most.get(n), usable[n] - got[n])
        for n in sorted(pool)
    ]


def warn_quotas(m: Measurements, config: GISTConfig, indices: Sequence[int]) -> None:
    """Warn if a source got less than its share, or if the limits leave the budget unfilled.

    Warns:
        SourceBudgetWarning: with the numbers.
    """
    uses = source_uses(m, config, indices)
    short = {u.name: (u.got_units, u.wanted) for u in uses if u.wanted is not None and u.left == 0}
    _warn_short(short, config.budget_unit)
    amount = budget_amount(config.budget, config.budget_unit, m.label_tokens)
    used = sum(u.got_units for u in uses)
    if uses and used < amount and all(u.closed for u in uses):
        warnings.warn(
            f"The selection has {used:,} of {amount:,} {config.budget_unit}: no other row may be selected within "
            "`source_max`. Rows that cannot be scored, and those of the target set, do not count.",
            SourceBudgetWarning,
            stacklevel=3,
        )
