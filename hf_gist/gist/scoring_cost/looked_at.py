"""What cannot be selected again from the scores of some rows: checks for `scoring_cost` and `reselect_share`."""

import dataclasses
from collections import Counter
from typing import Any

from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import budget_amount, row_sizes
from hf_gist.gist.scoring_cost.share import has_share
from hf_gist.gist.sources import quotas_of


def why_not_looked_at(config: GISTConfig, number: int) -> str:
    """The settings with which some rows are not scored.

    Args:
        config (`GISTConfig`): of a selection from some of the rows.
        number (`int`): of that selection, from 1.
    """
    settings = {"scoring_cost": config.scoring_cost is not None, "reselect_share": has_share(config, number)}
    return " or ".join(f"`{name}`" for name, used in settings.items() if used)


def check_all_rows_known(m: Measurements, changes: dict[str, Any]) -> None:
    """Check that a rule which draws from the whole pool is not applied to some of its rows.

    Args:
        m (`Measurements`): of the selection.
        changes (`dict`): the settings of the new selection.

    Raises:
        ValueError: naming the setting.
    """
    if m.scored is None:
        return
    wrong = [name for name in ("strategy", "score") if changes.get(name) in (*UNSCORED, "grad_norm")]
    for name in wrong:
        raise ValueError(
            f"`{name}={changes[name]!r}` chooses from the whole pool, but {int((~m.scored).sum()):,} of {len(m.scored):,} "
            "rows were not looked at, because of `scoring_cost` or `reselect_share`. Select with it from the start, without "
            "them."
        )


def check_looked_at(m: Measurements, before: GISTConfig, config: GISTConfig, number: int = 1) -> None:
    """Check that the scored rows fill a budget as far as all rows would.

    Args:
        m (`Measurements`): of the selection.
        before (`GISTConfig`): with which the rows were scored.
        config (`GISTConfig`): of the new selection.
        number (`int`): of the selection, from 1.

    Raises:
        ValueError: naming the settings that need rows which were not looked at.
    """
    if m.scored is None:
        return
    for name in ("drop_target_duplicates", "drop_pool_duplicates"):
        if getattr(before, name) and not getattr(config, name):
            raise ValueError(
                f"`{name}=False` lets rows be selected that were not looked at, because of "
                f"{why_not_looked_at(before, number)}. Score again with it."
            )
    every = dataclasses.replace(m, scored=None)
    flags = (config.drop_target_duplicates, config.drop_pool_duplicates)
    reached = _reached(m, config, m.eligible(*flags))
    possible = _reached(m, config, every.eligible(*flags))
    # the last row of a token budget may not fit
    slack = int(row_sizes(config.budget_unit, m.label_tokens).max()) - 1
    short = {name: amount for name, amount in possible.items() if reached[name] < amount - slack}
    if short:
        name, amount = next(iter(short.items()))
        raise ValueError(
            f"`budget={config.budget}`{_more(config)} needs {amount:,} {config.budget_unit}{name} to choose from, but those "
            f"that were scored have {reached[name]:,}, and {int((~m.scored).sum()):,} rows were not looked at. Lower it, or "
            f"score again with a higher {why_not_looked_at(before, number)}."
        )


def _more(config: GISTConfig) -> str:
    names = ("source_shares", "source_max")
    used = [f"`{name}`" for name in names if getattr(config, name)]
    if config.sample_from_top != 1:
        used.append(f"`sample_from_top={config.sample_from_top:g}`")
    return f" with {' and '.join(used)}" if used else ""


def _reached(m: Measurements, config: GISTConfig, rows: Tensor) -> Counter[str]:
    """What some rows fill of the budget times `sample_from_top`: in all (key empty), and of each source with a share."""
    quotas = quotas_of(config, m.sources)
    sizes = row_sizes(config.budget_unit, m.label_tokens)
    amount = budget_amount(config.budget, config.budget_unit, m.label_tokens) * config.sample_from_top
    picked = quotas.pick(rows.nonzero().flatten().tolist(), amount, sizes, config.sample_from_top)
    found = Counter({"": int(sizes[picked].sum())})
    for name in quotas.shares:
        own = [row for row in picked if quotas.sources[row] == name]
        found[f" of {name}"] = min(int(sizes[own].sum()), int(quotas.shares[name] * amount))
    return found
