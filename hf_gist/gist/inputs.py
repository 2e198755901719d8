"""The checked inputs of a selection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_gist.config.gist import GISTConfig
from hf_gist.data.leaks import Leaks
from hf_gist.data.rows import Collator, keep_columns, read_column
from hf_gist.gist.checks import check_dataset, check_inputs, group_columns
from hf_gist.gist.scorers.base import AdamCheckpoint
from hf_gist.gradients.models import signature_columns


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a measurement.

    Args:
        pool: tokenised candidates, `N` rows.
        targets: tokenised targets, `M` rows.
        target_columns (`dict[str, list]`): columns of the targets to group by later.
        sources (`list[str]`, *optional*): the source of each candidate.
        leaks (`Leaks`, *optional*): rows of the pool that are also in the target or evaluation set.
        checkpoints (`Sequence[AdamCheckpoint]`): for `scorer="less"`.
    """

    pool: Any
    targets: Any
    target_columns: dict[str, list[Any]]
    sources: list[str] | None = None
    leaks: Leaks | None = None
    checkpoints: Sequence[AdamCheckpoint] = ()


def prepare(model: nn.Module, candidates: Any, targets: Any, config: GISTConfig, collator: Collator) -> Inputs:
    """Check the inputs of [`select`], and extract what scoring needs.

    Returns:
        `Inputs`: pool and targets with only the model's columns, the columns of the targets to group by, and the
            source of
        each candidate if there is a `source_column`.

    Raises:
        ValueError: see [`select`].
    """
    check_dataset(candidates, "candidates")
    check_dataset(targets, "targets")
    sources = None
    if config.source_column is not None:
        sources = [str(value) for value in read_column(candidates, config.source_column, "source_column")]
    columns = group_columns(targets, config)
    accepted = signature_columns(model)
    pool = keep_columns(candidates, accepted)
    targets = keep_columns(targets, accepted)
    check_inputs(model, pool, targets, columns, config, collator)
    return Inputs(pool, targets, columns, sources)
