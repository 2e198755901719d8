"""Importance-aware sparse tuning, in the style of IST (Yao et al., 2024, arXiv 2410.11772), as a `TrainerCallback`.

The layer-wise baseline of the GAST paper: in every step only a few layers are updated, drawn by an importance that is
learned from the change of the loss when the other layers' adapters are scaled down. GAST masks samples by layer, IST masks
layers: the others are frozen for the step, so that clipping uses the norm of the applied gradient only. For one process:
DDP expects every parameter to have a gradient.

    from ist import ISTCallback
    trainer = Trainer(..., callbacks=[ISTCallback(probe_rows, collator, layers=8)])
"""

import math
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.gradients.collect import mean_loss
from hf_gist.gradients.lora import OUTSIDE_BLOCKS, find_tracked


class ISTCallback(TrainerCallback):
    """Updates a few layers in each step, drawn by learned importance.

    Args:
        probe_rows: a few tokenised rows; importance is measured by the loss on them.
        collator (`Callable`): rows to a padded batch.
        layers (`int`): blocks updated in a step.
        probe_every (`int`): optimizer steps between two updates of the importance.
        candidates (`int`): random sets of layers tried in an update.
        dampening (`float`): factor on the adapters of the layers outside of a candidate set.
        learning_rate (`float`): step size of the importance.
        seed (`int`): seed of the draws.

    Attributes:
        importance (`dict[str, float]`): block to importance, zero at first.
        drawn (`list[str]`): blocks updated in this step.
    """

    def __init__(
        self,
        probe_rows: Any,
        collator: Any,
        layers: int,
        probe_every: int = 10,
        candidates: int = 3,
        dampening: float = 0.25,
        learning_rate: float = 10.0,
        seed: int = 0,
    ) -> None:
        self.probe_rows = probe_rows
        self.collator = collator
        self.layers = layers
        self.probe_every = probe_every
        self.candidates = candidates
        self.dampening = dampening
        self.learning_rate = learning_rate
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, list[torch.nn.Parameter]] = {}
        self.importance: dict[str, float] = {}
        self.drawn: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the blocks and their parameters."""
        model = kwargs["model"]
        # an earlier training that failed left layers frozen
        self._train_only(list(self.parameters))
        self.parameters = {}
        for tracked in find_tracked(model):
            if tracked.block != OUTSIDE_BLOCKS:
                own = [getattr(tracked.module, name) for name in tracked.parameters]
                self.parameters.setdefault(tracked.block, []).extend(own)
        if not 1 <= self.layers < len(self.parameters):
            raise ValueError(f"`layers={self.layers}` must be at least 1 and below the {len(self.parameters)} blocks.")
        self.adapters = {
            block: [
                m for name, m in model.named_modules() if name.startswith(f"{block}.") and isinstance(m, LoraLayer)
            ]
            for block in self.parameters
        }
        self.importance = dict.fromkeys(self.parameters, 0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update the importance every `probe_every` steps, and draw the step's layers."""
        if state.global_step and state.global_step % self.probe_every == 0:
            self._learn(kwargs["model"])
        self.drawn = self._draw(self.importance)
        self._train_only(self.drawn)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unfreeze all layers."""
        self._train_only(list(self.parameters))

    def _train_only(self, blocks: list[str]) -> None:
        for block, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(block in blocks)

    def _draw(self, importance: dict[str, float]) -> list[str]:
        """Blocks drawn without replacement from the softmax of their importance."""
        names = list(importance)
        noise = -torch.log(-torch.log(torch.rand(len(names), generator=self.generator).clamp(1e-9, 1 - 1e-7)))
        order = (torch.tensor([importance[name] for name in names]) + noise).topk(self.layers).indices
        return [names[i] for i in order.tolist()]

    def _learn(self, model: torch.nn.Module) -> None:
        """Try random sets of layers with the others scaled down; the reward is `exp(-loss)`."""
        tried = []
        for _ in range(self.candidates):
            kept = self._draw(dict.fromkeys(self.parameters, 0.0))
            others = [layer for block, layers in self.adapters.items() if block not in kept for layer in layers]
            before = [dict(layer.scaling) for layer in others]
            try:
                for layer in others:
                    layer.scale_layer(self.dampening)
                tried.append((kept, math.exp(-mean_loss(model, self.probe_rows, self.collator))))
            finally:
                for layer, scaling in zip(others, before, strict=True):
                    layer.scaling.update(scaling)
        average = sum(reward for _, reward in tried) / len(tried)
        for kept, reward in tried:
            for block in kept:
                self.importance[block] += self.learning_rate * (reward - average)
