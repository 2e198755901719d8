"""Row representations that are randomly projected gradients."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gradients.models import model_device
from hf_gist.gradients.vectors import Gradients, GradientVectors


class SketchedVectors:
    """Projected gradients; for LESS, unit vectors of projected gradients or Adam updates.

    Args:
        model (`nn.Module`): a peft model.
        sketch (`CountSketch`): the projection.
        length (`float`, *optional*): make all vectors this long; by default they keep their lengths.
        adam (`AdamCheckpoint`, *optional*): take Adam updates instead of gradients, as LESS does for candidates.
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
        self.gradient, self.sketch, self.length, self.adam = GradientVectors(model, last_blocks), sketch, length, adam
        self.model, self.sizes = model, {"sketch": sketch.size}
        self.device = model_device(model)

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.gradients.vectors.Vectors`]."""
        sketches = torch.zeros(len(batch["labels"]), self.sketch.size, device=self.device)

        def one(name: str, values: Tensor) -> None:
            self.sketch.add(sketches, name, values if self.adam is None else self.adam.update(name, values))

        losses, counts = self.gradient(batch, one)
        if self.length is not None:
            sketches = nn.functional.normalize(sketches, dim=1) * self.length
        gradients("sketch", sketches)
        return losses, counts
