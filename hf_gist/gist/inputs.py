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
from hf_gist.gist.sources import check_quotas
from hf_gist.gradients.models import signature_columns
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.row_losses.base import RowLoss


@dataclass(frozen=True)
class HeldOut:
    """Target rows that are held out from the selection.

    Args:
        target_set: all target rows, tokenised.
        positions (`list[int]`): which of them are held out.
        numbers (`list[int]`): their numbers in the target set as it was given, from which a trainer may drop rows.
        groups (`list[str]`, *optional*): name of the group of each, with a `target_group_column`.
    """

    target_set: Any
    positions: list[int]
    numbers: list[int]
    groups: list[str] | None = None


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a measurement.

    Args:
        pool: tokenised candidates, `N` rows.
        targets: tokenised targets to select with, `M` rows.
        target_columns (`dict[str, list]`): columns of these rows to group by later.
        sources (`list[str]`, *optional*): the source of each candidate.
        leaks (`Leaks`, *optional*): rows of the pool that are also in the target or evaluation set.
        checkpoints (`Sequence[AdamCheckpoint]`): for `scorer="less"`.
        loss (`RowLoss`, *optional*): a trainer's own loss; by default token cross-entropy.
        target_positions (`list[int]`, *optional*): position of each row of `targets` in the target set `[M]`, if rows were
            held out.
        held_out (`HeldOut`, *optional*): these rows.
    """

    pool: Any
    targets: Any
    target_columns: dict[str, list[Any]]
    sources: list[str] | None = None
    leaks: Leaks | None = None
    checkpoints: Sequence[AdamCheckpoint] = ()
    loss: RowLoss | None = None
    target_positions: list[int] | None = None
    held_out: HeldOut | None = None

    @property
    def target_set(self) -> Any:
        """All target rows: those to select with, and those held out."""
        return self.targets if self.held_out is None else self.held_out.target_set

    @property
    def positions(self) -> list[int]:
        """The position of each row of `targets` in the target set `[M]`."""
        return list(range(len(self.targets))) if self.target_positions is None else self.target_positions


def read_columns(candidates: Any, targets: Any, config: GISTConfig) -> tuple[list[str] | None, dict[str, list[Any]]]:
    """The columns that a configuration names, and whether its settings fit them.

    Args:
        candidates: the pool, `N` rows.
        targets: `M` rows.
        config (`GISTConfig`): `source_column`, shares and limits of the sources, and `target_group_column`.

    Returns:
        The source of each candidate if there is a `source_column`, and the columns of the targets to group by.

    Raises:
        ValueError: naming the setting and the columns or sources that there are.
    """
    sources = None
    if config.source_column is not None:
        sources = [str(value) for value in read_column(candidates, config.source_column, "source_column")]
    check_quotas(config, sources)
    return sources, group_columns(targets, config)


def prepare(model: nn.Module, candidates: Any, targets: Any, config: GISTConfig, collator: Collator) -> Inputs:
    """Check the inputs of [`select`], and extract what scoring needs.

    Returns:
        `Inputs`: pool and targets with only the model's columns, the columns of the targets to group by, and the source
        of each candidate if there is a `source_column`.

    Raises:
        ValueError: see [`select`].
    """
    check_dataset(candidates, "candidates")
    check_dataset(targets, "targets")
    sources, columns = read_columns(candidates, targets, config)
    accepted = signature_columns(model)
    pool = keep_columns(candidates, accepted)
    targets = keep_columns(targets, accepted)
    dataset_pass = DatasetPass(model, collator, config.scoring_tokens_per_batch, config.scoring_dtype)
    check_inputs(dataset_pass, pool, targets, config, columns.get(config.target_group_column or ""))
    return Inputs(pool, targets, columns, sources)
