"""Titles and sentences for `score`, `scorer` and `strategy`, shared by the report, the cards and the comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.gist.scorers.table import scorer_of


@dataclass(frozen=True)
class Words:
    """Title and sentence for one value of a setting.

    Args:
        title (`str`): a name.
        sentence (`str`): what the value means.
    """

    title: str
    sentence: str


SCORES = {
    "subspace_cosine": Words(
        "subspace cosine", "cosine with the target directions inside their subspace (the paper's score)"
    ),
    "cosine": Words("plain cosine", "plain cosine with the target directions"),
    "grad_norm": Words("gradient norm", "norm of the gradient, a baseline that does not use the targets"),
}
STRATEGIES = {
    "max": Words("best match", "the best match with any target group"),
    "mean": Words("mean", "the mean over the target groups"),
    "round_robin": Words("round robin", "each target group picks its best row in turn"),
    "random": Words("random draw", "a random draw (a baseline without scores)"),
    "length_matched_random": Words(
        "length-matched random draw",
        "a random draw with the answer lengths of the targets (a baseline without scores)",
    ),
}


def repeats_sentence(found: Any, left_out: bool) -> str:
    """How many rows of the pool repeat an earlier row.

    Args:
        found: the manifest's entry `pool_duplicates`, if there is one.
        left_out (`bool`): whether they were left out.
    """
    if not isinstance(found, dict):
        return "not looked for"
    exact = found.get("exact", 0)
    same_words = found.get("same_words", 0)
    if not exact + same_words:
        return "none"
    fate = "left out" if left_out else "not left out"
    return f"{exact + same_words:,} ({exact:,} with the same tokens, {same_words:,} with only the same words), {fate}"


def unusable_targets(found: Any, shown: Callable[[str], str] = str) -> str | None:
    """How many target rows could not be used, by group; `None` if all were used.

    Args:
        found: the manifest's entry `unusable_targets`, if there is one.
        shown (`Callable`): how the names of groups are shown.
    """
    if not isinstance(found, dict) or not found.get("rows"):
        return None
    groups = ", ".join(f"{shown(name)} {lost:,}" for name, lost in found.get("groups", {}).items())
    return f"{len(found['rows']):,}{f' ({groups})' if groups else ''}"


ROWS_NAMED = 20


def held_out_targets(found: Any) -> str | None:
    """Which target rows were held out from the selection; `None` if none were.

    Args:
        found: the manifest's entry `held_out_targets`, if there is one.
    """
    if not isinstance(found, dict) or not found.get("rows"):
        return None
    rows = found["rows"]
    more = f" and {len(rows) - ROWS_NAMED:,} more" if len(rows) > ROWS_NAMED else ""
    return f"{len(rows):,} of {found['of']:,}: rows {', '.join(map(str, rows[:ROWS_NAMED]))}{more}"


def alignment_sentence(found: Any) -> str | None:
    """How well the best rows align with the targets; `None` if that was not measured.

    Args:
        found: the manifest's entry `alignment`, if there is one.
    """
    if not isinstance(found, dict):
        return None
    rows = "rows" if found["own_kind"] else "no rows"
    return (
        f"mean cosine {found['best']:.3f} with the nearest target row, against {found['targets']:.3f} among the target rows: "
        f"the pool seems to have {rows} of the targets' own kind"
    )


def method_title(config: GISTConfig) -> str:
    """Name of the selection method of a configuration."""
    if config.strategy in UNSCORED:
        return STRATEGIES[config.strategy].title
    if config.score == "grad_norm":
        return SCORES[config.score].title
    return scorer_of(config).title


def score_sentence(config: GISTConfig) -> str:
    """How rows are compared with the targets. Scorers outside the subspace of the targets use the plain cosine."""
    return SCORES[config.score if scorer_of(config).in_subspace else "cosine"].sentence


def rule_sentence(config: GISTConfig) -> str:
    """How rows are selected: score, row representation and strategy."""
    strategy = STRATEGIES[config.strategy].sentence
    if config.strategy in UNSCORED:
        return strategy
    score = score_sentence(config)
    if config.score == "grad_norm":
        return score
    return f"{score}; row representation: {scorer_of(config).sentence}; {strategy}"
