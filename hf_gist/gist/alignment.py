"""Warns if the pool has little for the targets."""

import dataclasses
import warnings
from typing import Any

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.errors import WeakAlignmentWarning
from hf_gist.functional.selection.alignment import WEAK, best_alignment
from hf_gist.gist.selection import Selection


def _has_exact_gradients(config: GISTConfig) -> bool:
    """Whether the scores are those of the gradients of all adapters, for which the threshold was measured."""
    approximate = config.score_layers is not None or config.sketch_dim is not None
    by_targets = config.strategy not in UNSCORED and config.score != "grad_norm"
    return config.scorer == "gist" and by_targets and not approximate


def checked_alignment(selection: Selection) -> dict[str, Any] | None:
    """The manifest's entry on how well the best rows align with the targets, see [`Alignment`].

    Returns:
        `dict`, *optional*: `None` where the threshold was not measured, or there is nothing to compare with.

    Warns:
        WeakAlignmentWarning: if they hardly do.
    """
    config = selection.config
    if not _has_exact_gradients(config):
        return None
    m = selection.measurements
    eligible = m.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    found = best_alignment(m, eligible, len(selection.indices))
    if found is None:
        return None
    if found.weak:
        warnings.warn(
            f"The pool has little for these targets: the best {found.rows:,} rows have a mean cosine of {found.best:.3f} with "
            f"the nearest target row, target rows one of {found.targets:.3f} with each other ({found.ratio:.2f} times as "
            f"much, and below {WEAK} selected rows were hardly better than random ones). Add rows of the targets' kind to the "
            "pool, or compare with random rows (`hf-gist compare`).",
            WeakAlignmentWarning,
            stacklevel=3,
        )
    return dataclasses.asdict(found) | {"ratio": found.ratio, "weak": found.weak}
