"""The table of all scorers: to add one, write a file with its [`Scorer`] and add an entry here."""

from collections.abc import Sequence

from torch import nn

from hf_gist.config.gist import GISTConfig
from hf_gist.gist.scorers.base import AdamCheckpoint, CheckpointVectors, Scorer
from hf_gist.gist.scorers.gist import GIST
from hf_gist.gist.scorers.less import LESS
from hf_gist.gist.scorers.rds_plus import RDS_PLUS


SCORERS: dict[str, Scorer] = {scorer.name: scorer for scorer in (GIST, RDS_PLUS, LESS)}
"""Scorers by name; the names are also the values that [`GISTConfig`] accepts."""


def scorer_of(config: GISTConfig) -> Scorer:
    """The scorer of a configuration."""
    return SCORERS[config.scorer]


def vectors_per_checkpoint(
    model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]
) -> list[CheckpointVectors]:
    """The row representations of `config.scorer` at each checkpoint.

    Args:
        model (`nn.Module`): a peft model.
        config (`GISTConfig`): `scorer` and its settings (`score_layers`, `sketch_dim`, `seed`).
        checkpoints (`Sequence[AdamCheckpoint]`): of the warm-up, for scorers that need Adam's state.

    Raises:
        ValueError: if the scorer does not support the model, or needs checkpoints and has none.
    """
    return scorer_of(config).vectors(model, config, checkpoints)
