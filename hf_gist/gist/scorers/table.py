"""The scorers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from hf_gist.config.gist import GISTConfig
from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.scorers.less import LESS_SIZE, AdamCheckpoint
from hf_gist.gist.scorers.rds_plus import HiddenStateVectors
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.gradients.vectors import GradientVectors, Vectors


@dataclass(frozen=True)
class CheckpointVectors:
    """The vectors of one checkpoint; a row's whole vector is the concatenation over the checkpoints.

    Args:
        targets (`Vectors`): what stands for a target row.
        candidates (`Vectors`): what stands for a candidate.
        model (`nn.Module`): whose adapter is exchanged.
        weights (`dict[str, Tensor]`, *optional*): the adapter of this checkpoint.
    """

    targets: Vectors
    candidates: Vectors
    model: nn.Module
    weights: dict[str, Tensor] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The model with this stage's adapter; on exit it has its own again."""
        own = adapter_parameters(self.model) if self.weights is not None else {}
        before = {name: whole(p).clone() for name, p in own.items()}
        try:
            for name, parameter in own.items():
                assign(parameter, self.weights[name])
            yield
        finally:
            for name, parameter in own.items():
                assign(parameter, before[name])


def vectors_per_checkpoint(
    model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]
) -> list[CheckpointVectors]:
    """The vectors of each checkpoint that `config.scorer` measures.

    Args:
        model (`nn.Module`): a peft model.
        config (`GISTConfig`): `scorer`, `score_layers` and the seed of the projection.
        checkpoints (`Sequence[AdamCheckpoint]`): for `"less"`.

    Raises:
        ValueError: for `"less"` without checkpoints.
    """
    if config.scorer == "rds_plus":
        hidden = HiddenStateVectors(model)
        return [CheckpointVectors(hidden, hidden, model)]
    if config.scorer == "gist":
        gradient = GradientVectors(model, config.score_layers)
        if config.sketch_dim is not None:
            sketch = CountSketch(config.sketch_dim, config.seed)
            gradient = SketchedVectors(model, sketch, last_blocks=config.score_layers)
        return [CheckpointVectors(gradient, gradient, model)]
    if not checkpoints:
        raise ValueError(
            "`scorer='less'` needs the optimizer state of the warm-up: use the callback, let `hf-gist select` do the "
            "warm-up (no `--adapter_name_or_path`), or pass `checkpoints=[adam_checkpoint(...)]` to `select`."
        )
    total = sum(c.learning_rate for c in checkpoints)
    if total <= 0:
        raise ValueError(
            "The learning rate was 0 up to every checkpoint of `scorer='less'`: train for more steps first."
        )
    per_checkpoint = []
    for number, checkpoint in enumerate(checkpoints):
        sketch = CountSketch(LESS_SIZE, config.seed + number)
        # the root on both sides gives the checkpoint its weight in the inner product
        scale = math.sqrt(checkpoint.learning_rate / total)
        targets = SketchedVectors(model, sketch, scale, last_blocks=config.score_layers)
        candidates = SketchedVectors(model, sketch, scale, checkpoint, config.score_layers)
        per_checkpoint.append(CheckpointVectors(targets, candidates, model, checkpoint.weights))
    return per_checkpoint
