"""How well the best rows of a selection align with its targets."""

import dataclasses
from typing import Any

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.functional.selection.alignment import best_alignment
from hf_gist.gist.selection import Selection


def _has_exact_gradients(config: GISTConfig) -> bool:
    """Whether the scores are those of the gradients of all adapters, for which the threshold was measured."""
    approximate = config.score_layers is not None or config.sketch_dim is not None
    by_targets = config.strategy not in UNSCORED and config.score != "grad_norm"
    return config.scorer == "gist" and by_targets and not approximate


def alignment_facts(selection: Selection) -> dict[str, Any] | None:
    """The manifest's entry on how well the best rows align with the targets, see [`Alignment`].

    Returns:
        `dict`, *optional*: `None` where the threshold was not measured, or there is nothing to compare with.
    """
    config = selection.config
    if not _has_exact_gradients(config):
        return None
    m = selection.measurements
    eligible = m.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    found = best_alignment(m, eligible, len(selection.indices))
    if found is None:
        return None
    return dataclasses.asdict(found) | {"ratio": found.ratio, "own_kind": found.own_kind}
