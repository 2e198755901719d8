"""The arms of `frontier.py`: which rows each trains on, and what choosing them costs."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from frontier_parts.cases import Case, Refused
from frontier_parts.data import labelled
from hf_gist import GISTConfig, Selection
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.ranking import length_matched_order, uniform_order


UNTRAINED, RANDOM = "untrained", "random"
SHORTLIST_COST = 0.25
"""Cost at which the ways to shorten the pool are compared."""

SAME_ANSWER = 0.05
"""Largest share of the budget for rows with the same labelled tokens, where it is limited."""


@dataclass(frozen=True)
class Choice:
    """The rows of an arm.

    Args:
        rows (`list[int]`): of the variant's pool.
        passes (`float`): cost of choosing them, warm-up included, in training passes over the pool.
    """

    rows: list[int]
    passes: float


@dataclass(frozen=True)
class Arm:
    """One way to choose rows.

    Args:
        title (`str`): its name in tables.
        choose (`Callable`): from a [`Case`] to a [`Choice`]; `None` trains nothing.
        rule (`str`): the rule for scored rows that it follows; empty for baselines.
        cost (`float`, *optional*): its `scoring_cost`, of arms that score the rows nearest to a target.
        usual (`bool`): whether it runs if no arms are named.
    """

    title: str
    choose: Callable[[Case], Choice] | None
    rule: str = ""
    cost: float | None = None
    usual: bool = True


# ---- Orders without scores ----


def random_rows(case: Case) -> list[int]:
    """All rows in a random order."""
    return uniform_order(case.every, case.seed)


def matched_rows(case: Case) -> list[int]:
    """All rows in a random order whose answers are as long as those of the targets."""
    wanted = labelled(case.variant.targets)
    return length_matched_order(case.variant.label_tokens, wanted, case.every, case.seed)


ORDERS: dict[str, tuple[str, Callable[[Case], list[int]]]] = {
    RANDOM: ("random rows", random_rows),
    "length_matched": ("random rows, lengths of the targets", matched_rows),
    "bm25": ("BM25, round robin", lambda case: case.variant.best_matches),
    "nearest": ("mean embeddings, round robin", lambda case: case.nearest),
}


def first_rows(case: Case, order: Callable[[Case], list[int]]) -> Choice:
    """The first rows of an order that runs no model."""
    return Choice(order(case)[: case.size], 0.0)


def rds_plus(case: Case) -> Choice:
    """RDS+ with its own rule."""
    config = GISTConfig(budget=case.size, scorer="rds_plus", strategy="round_robin", seed=case.seed)
    return Choice(Selection.choose(case.measured("rds_plus"), config).indices, case.plan(None, "rds_plus").total)


# ---- Rules for scored rows ----


def choose(case: Case, measured: Measurements, count: int, **fields: Any) -> list[int]:
    """Rows that the library selects with some settings.

    Raises:
        Refused: if too few rows were scored.
    """
    config = GISTConfig(budget=count, seed=case.seed, **fields)
    needed = math.ceil(count * config.sample_from_top - 1e-9)
    scored = int(measured.scorable.sum())
    if needed > scored:
        raise Refused(f"`budget` times `sample_from_top` needs {needed:,} rows, but {scored:,} can be scored.")
    return Selection.choose(measured, config).indices


PAPER = {"strategy": "max"}
COSINE = {"score": "cosine", "strategy": "round_robin"}
RECOMMENDED = COSINE | {"sample_from_top": 3.0}


def by_settings(case: Case, measured: Measurements, settings: dict[str, Any]) -> list[int]:
    """The selection with some settings."""
    return choose(case, measured, case.size, **settings)


def half_filled(case: Case, measured: Measurements, order: Callable[[Case], list[int]]) -> list[int]:
    """Half of the rows by the plain cosine with round robin, the other half the next rows of an order."""
    best = choose(case, measured, max(1, case.size // 2), **COSINE)
    taken = set(best)
    others = [row for row in order(case) if row not in taken]
    return best + others[: case.size - len(best)]


def few_same_answers(case: Case, measured: Measurements) -> list[int]:
    """The paper's rule, with a limited share of rows with the same labelled tokens.

    Raises:
        Refused: if the answers of the scored rows are not varied enough.
    """
    limit = max(1, int(SAME_ANSWER * case.size))
    counts: Counter[tuple[int, ...]] = Counter()
    rows = []
    for row in choose(case, measured, int(measured.scorable.sum()), **PAPER):
        answer = case.variant.labels[row]
        if counts[answer] < limit and len(rows) < case.size:
            counts[answer] += 1
            rows.append(row)
    if len(rows) < case.size:
        raise Refused(f"The scored rows have only {len(rows):,} with at most {limit} of the same answer.")
    return rows


@dataclass(frozen=True)
class Rule:
    """How rows are chosen from scored rows.

    Args:
        title (`str`): its name in tables.
        pick (`Callable`): from a [`Case`] and measurements to rows.
        priced (`bool`): whether it also runs with every `scoring_cost` if no arms are named.
    """

    title: str
    pick: Callable[[Case, Measurements], list[int]]
    priced: bool = False


RULES = {
    "paper": Rule("the paper's rule", partial(by_settings, settings=PAPER), priced=True),
    "cosine": Rule("plain cosine, round robin", partial(by_settings, settings=COSINE), priced=True),
    "recommended": Rule(
        "plain cosine, round robin, a third of the top", partial(by_settings, settings=RECOMMENDED), priced=True
    ),
    "cosine_random": Rule("half plain cosine, half random rows", partial(half_filled, order=random_rows)),
    "cosine_matched": Rule("half plain cosine, half matched lengths", partial(half_filled, order=matched_rows)),
    "paper_capped": Rule("the paper's rule, few same answers", few_same_answers),
}


def from_plan(case: Case, rule: Rule, cost: float | None) -> Choice:
    """A rule on the rows that the library would score for a cost; with `None` on all rows."""
    plan = case.plan(cost)
    measured = case.measured() if plan.rows is None else case.only(plan.rows)
    return Choice(rule.pick(case, measured), plan.total)


def from_shortlist(case: Case, name: str, cost: float) -> Choice:
    """Plain cosine with round robin on a shortlist whose exact scores cost as much as those of the plan for `cost`."""
    plan = case.plan(cost)
    spent = plan.warmup + plan.targets
    extra = 0.0
    if name == "rds_plus":
        config = GISTConfig(budget=len(case.every), scorer="rds_plus", strategy="round_robin")
        order = Selection.choose(case.measured("rds_plus"), config).indices
        forward = case.plan(None, "rds_plus")
        extra = forward.targets + forward.scoring
    else:
        order = ORDERS[name][1](case)
    rows = case.affordable(order, cost - spent)
    passes = spent + float(case.price_by_row[rows].sum()) + extra
    return Choice(by_settings(case, case.only(rows), COSINE), passes)


SHORTLISTS = {"bm25": "BM25", "rds_plus": "RDS+ on all rows", "random": "a random share"}


# ---- The table of arms ----


def arms(costs: Sequence[float]) -> dict[str, Arm]:
    """Every arm by its name, in the order in which they run.

    Args:
        costs (`Sequence[float]`): values of `scoring_cost`.
    """
    found = {UNTRAINED: Arm("untrained", None)}
    found |= {name: Arm(title, partial(first_rows, order=order)) for name, (title, order) in ORDERS.items()}
    found["rds_plus"] = Arm("RDS+, round robin", rds_plus)
    for name, rule in RULES.items():
        found[name] = Arm(rule.title, partial(from_plan, rule=rule, cost=None), name)
        for cost in costs:
            title = f"{rule.title}, scoring_cost {cost:g}"
            pick = partial(from_plan, rule=rule, cost=cost)
            found[f"{name}@{cost:g}"] = Arm(title, pick, name, cost, rule.priced)
    for name, what in SHORTLISTS.items():
        title = f"plain cosine, round robin, shortlist by {what}"
        found[f"cosine-{name}@{SHORTLIST_COST:g}"] = Arm(
            title, partial(from_shortlist, name=name, cost=SHORTLIST_COST), "cosine"
        )
    return found
