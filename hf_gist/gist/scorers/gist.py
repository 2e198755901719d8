"""GIST (arXiv 2602.18584): each row's LoRA gradient, compared inside the subspace of the targets' gradients."""

from collections.abc import Sequence

from torch import nn

from hf_gist.config.gist import GISTConfig
from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.scorers.base import AdamCheckpoint, CheckpointVectors, ModelVectors, Scorer
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients.vectors import GradientVectors


def _vectors(model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]) -> list[CheckpointVectors]:
    gradient: ModelVectors
    if config.sketch_dim is None:
        gradient = GradientVectors(model, config.score_layers)
    else:
        sketch = CountSketch(config.sketch_dim, config.seed)
        gradient = SketchedVectors(model, sketch, last_blocks=config.score_layers)
    return [CheckpointVectors(gradient, gradient, model)]


GIST = Scorer(
    name="gist",
    title="GIST",
    sentence="its LoRA gradient",
    vectors=_vectors,
    in_subspace=True,
    large_basis=True,
)
