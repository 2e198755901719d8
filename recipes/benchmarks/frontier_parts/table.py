"""The results of `frontier.py` as Markdown."""

import statistics
from collections import Counter
from collections.abc import Sequence

from frontier_parts.arms import RANDOM, SHORTLIST_COST, Arm
from frontier_parts.cases import warmup_ratio
from frontier_parts.recommendation import Candidate, candidates, leave_one_out
from frontier_parts.results import Results, mean_and_spread, shares_of_gain
from frontier_parts.scores import WARMUP_RATIO


def _rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)]


def _with_spread(values: Sequence[float], form: str) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:{form}}" + (f" ± {spread:.4f}" if len(values) > 1 else "")


def _percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


# ---- Loss against cost ----


def _line(results: Results, name: str, arm: Arm, target: str) -> list[str]:
    runs = results.of(name, target)
    differences = results.differences(name, target)
    return [
        arm.title,
        str(runs[0].get("rows", "")),
        "" if runs[0]["seed"] is None else str(len(runs)),
        f"{results.passes(name, target):.3f}",
        _with_spread([run["loss"] for run in runs], ".4f"),
        "" if name == RANDOM or not differences else _with_spread(differences, "+.4f"),
    ]


def losses(results: Results, arms: dict[str, Arm]) -> list[str]:
    """A table for each target."""
    header = ["trained on", "rows", "seeds", "selecting, passes", "test loss", "difference from random rows"]
    lines = []
    for target in results.targets:
        found = [_line(results, name, arm, target) for name, arm in arms.items() if results.of(name, target)]
        lines += ["", f"**{target}**", "", *_rows(header, found)]
    return lines


def plans(results: Results, arms: dict[str, Arm]) -> list[str]:
    """What share of the exact selection's gain each cheaper one reaches."""
    found = []
    for name, arm in arms.items():
        if name == arm.rule or arm.rule not in arms:
            continue
        shares, summed, targets = shares_of_gain(results, name, arm.rule)
        if targets:
            mean = statistics.fmean(shares) if shares else None
            worst = min(shares) if shares else None
            with_gain = f"{len(shares)} of {targets}"
            found.append([arm.title, _cost(results, name), with_gain, _share(mean), _share(summed), _share(worst)])
    if not found:
        return []
    header = [
        "plan",
        "passes",
        "targets with a gain",
        "share of the gain, mean",
        "of the summed gains",
        "worst target",
    ]
    text = (
        "Share of the gain over random rows that the same rule reaches on all rows, over the targets where it has a gain "
        "there. A small gain makes the share of a target uncertain; the share of the summed gains weights by gain."
    )
    return ["", "## What the plans reach", "", text, "", *_rows(header, found)]


def _cost(results: Results, arm: str) -> str:
    """The mean cost of an arm over the targets that it was run for."""
    known = [target for target in results.targets if results.of(arm, target)]
    return f"{statistics.fmean(results.passes(arm, target) for target in known):.3f}"


# ---- Recommendation ----


def recommendation(
    results: Results, arms: dict[str, Arm], families: dict[str, str], limits: Sequence[float | None]
) -> list[str]:
    """How far every arm is from random rows on all targets, and the choices on other targets."""
    found = candidates(results, list(arms))
    if not found:
        return []
    text = (
        f"Changes of the test loss from random rows with the same seeds, as shares of the loss of these (negative is "
        f"better), over {len(results.targets)} targets; only arms that were run for all of them."
    )
    header = ["trained on", "largest cost, passes", "mean change", "worst change", "on"]
    lines = [_candidate_line(results, arms, candidate) for candidate in found]
    parts = ["", "## Which one holds on other targets", "", text, "", *_rows(header, lines)]
    for limit in limits:
        parts += _left_out(found, arms, families, limit)
    return parts


def _candidate_line(results: Results, arms: dict[str, Arm], candidate: Candidate) -> list[str]:
    worst = candidate.worst
    mean = candidate.mean(results.targets)
    cost = f"{candidate.passes:.3f}"
    return [arms[candidate.arm].title, cost, _percent(mean), _percent(candidate.changes[worst]), worst]


def _left_out(
    found: Sequence[Candidate], arms: dict[str, Arm], families: dict[str, str], limit: float | None
) -> list[str]:
    chosen = leave_one_out(found, families, limit)
    if not chosen:
        return []
    what = "at any cost" if limit is None else f"for at most {limit:g} passes"
    text = (
        f"Leaving one target out, {what}: the arm with the lowest mean change on the other targets (all variants of a "
        "target are left out together), and its change on the one left out."
    )
    header = ["left out", "chosen on the others", "mean change there", "change here", "best here", "its change"]
    lines = [
        [
            left.target,
            arms[left.chosen].title,
            _percent(left.others),
            _percent(left.change),
            arms[left.best].title,
            _percent(left.best_change),
        ]
        for left in chosen
    ]
    changes = [left.change for left in chosen]
    outcome = f"Mean {_percent(statistics.fmean(changes))}, worst {_percent(max(changes))}."
    return ["", text, "", *_rows(header, lines), "", outcome]


# ---- The whole text ----


def notes(arms: dict[str, Arm], settings: str) -> list[str]:
    """How to read the tables."""
    lines = [
        f"{settings} Test loss: mean over the seeds ± standard deviation; differences are those with the same seed. "
        "Costs are operations of selecting, warm-up included, in training passes over the pool that is selected from.",
        "",
        f"All scores of a seed were computed once, after a warm-up on {100 * WARMUP_RATIO:g} % of the whole pool (also of "
        "sources that are removed afterwards); an arm that scores some rows chooses from these scores as if only its rows "
        "had been scored.",
    ]
    shorter = sorted({a.cost for a in arms.values() if a.cost is not None and warmup_ratio(a.cost) < WARMUP_RATIO})
    for cost in shorter:
        lines += [
            "",
            f"The cost at `scoring_cost` {cost:g} is that with a warm-up on {100 * warmup_ratio(cost):g} % of the pool "
            f"(`warmup_ratio={warmup_ratio(cost):g}`), since the usual one would leave too little for scoring; its scores "
            "are still those after the usual warm-up.",
        ]
    return lines


def open_ends(results: Results, arms: dict[str, Arm], missing: Sequence[tuple[str, str, int | None]]) -> list[str]:
    """Runs that were refused, and runs that are missing."""
    lines = []
    if results.refused:
        lines += ["", "Not run, since the cost does not pay for the rows:", ""]
        for name in dict.fromkeys(run["arm"] for run in results.refused):
            own = [run for run in results.refused if run["arm"] == name]
            which = "; ".join(f"{run['target']}, seed {run['seed']}" for run in own)
            first = "" if len(own) == 1 else "the first: "
            lines.append(f"- {arms[name].title} ({which}): {first}{own[0]['refused']}")
    if missing:
        counts = Counter(arm for arm, _, _ in missing)
        by_arm = ", ".join(f"{arm} ({count})" for arm, count in counts.items())
        lines += ["", f"Missing runs: {len(missing)}, by arm {by_arm}."]
    return lines


def markdown(
    results: Results,
    arms: dict[str, Arm],
    families: dict[str, str],
    missing: Sequence[tuple[str, str, int | None]],
    settings: str,
) -> str:
    """All tables.

    Args:
        results (`Results`): finished runs.
        arms (`dict[str, Arm]`): the arms by name.
        families (`dict[str, str]`): name of a variant to its target.
        missing (`Sequence[tuple]`): arm, variant and seed of the runs that are not finished.
        settings (`str`): a sentence on the settings.
    """
    parts = ["# Loss after training against the cost of selecting", "", *notes(arms, settings)]
    parts += [*losses(results, arms), *plans(results, arms)]
    parts += recommendation(results, arms, families, (None, SHORTLIST_COST))
    return "\n".join([*parts, *open_ends(results, arms, missing)]) + "\n"
