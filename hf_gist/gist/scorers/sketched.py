"""Row representation by randomly projected gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.scorers.base import AdamCheckpoint
from hf_gist.gradients.models import model_device
from hf_gist.gradients.row_losses.base import RowLoss
from hf_gist.gradients.vectors import Gradients, GradientVectors


class SketchedVectors:
    """Projected gradients; for LESS, projected gradients or Adam updates of equal norm.

    Args:
        model (`nn.Module`): a peft model.
        sketch (`CountSketch`): the projection.
        length (`float`, *optional*): norm that every vector is scaled to; by default the norms are kept.
        adam (`AdamCheckpoint`, *optional*): use Adam updates instead of gradients, as LESS does for candidates.
        last_blocks (`int`, *optional*): see [`GradientVectors`].
    """

    def __init__(
        self,
        model: nn.Module,
        sketch: CountSketch,
        length: float | None = None,
        adam: AdamCheckpoint | None = None,
        last_blocks: int | None = None,
    ) -> None:
        self.model = model
        self.gradient = GradientVectors(model, last_blocks)
        self.sketch = sketch
        self.length = length
        self.adam = adam
        self.sizes = {"sketch": sketch.size}
        self.device = model_device(model)

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        sketches = torch.zeros(loss.rows(batch), self.sketch.size, device=self.device)

        def add(name: str, values: Tensor) -> None:
            self.sketch.add(sketches, name, values if self.adam is None else self.adam.update(name, values))

        losses, counts = self.gradient(batch, add, loss)
        if self.length is not None:
            sketches = nn.functional.normalize(sketches, dim=1) * self.length
        gradients("sketch", sketches)
        return losses, counts
