"""What other selection methods take for a row, so that they run through the same measuring and choosing as GIST.

- RDS+ (Ivison et al., 2025, arXiv 2503.01807): position-weighted mean of the last hidden states; forward only.
- LESS (Xia et al., 2024, arXiv 2402.04333): the candidates' Adam updates and the targets' gradients, randomly projected
  and normalised, at several checkpoints of the warm-up weighted by their learning rates.

Random rows, rows of matched length, the plain cosine and the gradient norm need no vectors of their own: see
[`GISTConfig`] (`strategy`, `score`).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.backward import Gradients, GradientVectors, Vectors, model_device
from hf_gist.config import GISTConfig
from hf_gist.lora import adapter_parameters, assign, unwrapped, whole
from hf_gist.losses import labelled_tokens, sample_losses
from hf_gist.rows import IGNORE_INDEX
from hf_gist.sketch import CountSketch


LESS_SIZE = 8192
"""Values of a projected gradient (LESS, section 4)."""


# ---- RDS+ ----


def position_weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states of the real tokens with weights `1, 2, ..., L`.

    Args:
        states (`Tensor`): `[B, T, d]`.
        mask (`Tensor`): `[B, T]`, non-zero at real tokens.

    Returns:
        `Tensor`: `[B, d]` float32.
    """
    mask = mask.long()
    weights = (mask.cumsum(1) * mask).float()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, states.float())


class HiddenStateVectors:
    """RDS+: the position-weighted mean of what enters the output head.

    Args:
        model (`nn.Module`): a causal or sequence-to-sequence language model.

    Raises:
        ValueError: for a model without an output head.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.head = model, unwrapped(model).get_output_embeddings()
        if self.head is None:
            raise ValueError("`scorer='rds_plus'` needs a language model: this one has no output head.")
        self.sizes = {"hidden": self.head.in_features}

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.backward.Vectors`]."""
        seen: list[Tensor] = []
        # registered before the loss's own hook, which cuts the input to the labelled positions
        handle = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.no_grad():
                losses, counts = sample_losses(self.model, batch)
        finally:
            handle.remove()
        mask = batch.get("attention_mask")
        if mask is None or mask.shape != seen[0].shape[:2]:
            decoded = batch["labels"] if batch["labels"].shape == seen[0].shape[:2] else None
            mask = torch.ones(seen[0].shape[:2]) if decoded is None or mask is None else decoded != IGNORE_INDEX
        gradients("hidden", position_weighted_mean(seen[0], mask.to(seen[0].device)))
        return losses, counts


# ---- LESS ----


@dataclass(frozen=True)
class AdamCheckpoint:
    """A moment of the warm-up: adapter, Adam state and learning rate.

    Args:
        learning_rate (`float`): what the checkpoint counts in the sum over checkpoints.
        moments (`dict`): parameter name to Adam's first and second moment.
        steps (`int`): optimizer steps behind the moments.
        betas (`tuple[float, float]`): Adam's.
        eps (`float`): Adam's.
        weights (`dict[str, Tensor]`, *optional*): the adapter; by default what the model holds.
    """

    learning_rate: float
    moments: dict[str, tuple[Tensor, Tensor]]
    steps: int
    betas: tuple[float, float]
    eps: float
    weights: dict[str, Tensor] | None = None

    def update(self, name: str, gradients: Tensor) -> Tensor:
        """The step direction that Adam would take for each gradient alone (LESS, Eq. 4): `[B, n]` to `[B, n]`.

        It is torch's step. The code published with LESS leaves out the bias correction and adds epsilon under the root,
        which damps entries far below 1e-4.
        """
        (first, second), (b1, b2), step = self.moments[name], self.betas, self.steps + 1
        first, second = (m.to(gradients.device).flatten() for m in (first, second))
        mean = (b1 * first + (1 - b1) * gradients) / (1 - b1**step)
        variance = (b2 * second + (1 - b2) * gradients.square()) / (1 - b2**step)
        return mean / (variance.sqrt() + self.eps)


def check_optimizer(optimizer: Any) -> None:
    """Refuse optimizers that will have no Adam moments; known before the first step.

    Raises:
        ValueError: naming the optimizer.
    """
    # others have betas too, but keep moments of other kinds: 8-bit and paged Adam, Lion
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(
            f"`scorer='less'` needs the moments of torch's Adam or AdamW, got {type(inner).__name__}; set "
            "`optim='adamw_torch'`."
        )


def adam_checkpoint(
    model: nn.Module, optimizer: Any, learning_rate: float, copy_weights: bool = False
) -> AdamCheckpoint:
    """What LESS needs from a live training.

    Args:
        model (`nn.Module`): the model in training.
        optimizer: its optimizer, or accelerate's wrapper of it.
        learning_rate (`float`): mean learning rate since the checkpoint before.
        copy_weights (`bool`): keep a copy of the adapter and the moments, because training goes on.

    Raises:
        ValueError: if the optimizer keeps no Adam moments for a trainable parameter.
    """
    moments, steps = {}, 0
    for name, parameter in adapter_parameters(model).items():
        state = optimizer.state.get(parameter, {})
        if "exp_avg" not in state or "exp_avg_sq" not in state:
            raise ValueError(
                f"`scorer='less'` needs Adam's moments, and {type(optimizer).__name__} has none for {name}. Train with "
                "an Adam optimizer (`optim='adamw_torch'`)."
            )
        pair = (whole(state["exp_avg"]), whole(state["exp_avg_sq"]))
        moments[name] = tuple(m.cpu().clone() for m in pair) if copy_weights else pair
        steps = int(state["step"])
    group = optimizer.param_groups[0]
    weights = {n: whole(p).cpu().clone() for n, p in adapter_parameters(model).items()} if copy_weights else None
    return AdamCheckpoint(learning_rate, moments, steps, tuple(group["betas"]), group["eps"], weights)


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
        """See [`hf_gist.backward.Vectors`]."""
        sketches = torch.zeros(len(batch["labels"]), self.sketch.size, device=self.device)

        def one(name: str, values: Tensor) -> None:
            self.sketch.add(sketches, name, values if self.adam is None else self.adam.update(name, values))

        losses, counts = self.gradient(batch, one)
        if self.length is not None:
            sketches = nn.functional.normalize(sketches, dim=1) * self.length
        gradients("sketch", sketches)
        return losses, counts


# ---- What a scorer measures ----


class LabelCounts:
    """Nothing but the labelled tokens, for the strategies that look at no score.

    Args:
        model (`nn.Module`): decides how labels are counted; it is not run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sizes: dict[str, int] = {}

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`hf_gist.backward.Vectors`]."""
        counts = labelled_tokens(self.model, batch)
        return torch.zeros(len(counts), device=counts.device), counts


@dataclass(frozen=True)
class Stage:
    """The vectors of one checkpoint; a row's whole vector is the concatenation over the stages.

    Args:
        targets (`Vectors`): what stands for a target row.
        candidates (`Vectors`): what stands for a candidate.
        model (`nn.Module`): whose adapter is exchanged.
        weights (`dict[str, Tensor]`, *optional*): the adapter of this stage.
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


def stages_of(model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]) -> list[Stage]:
    """The stages that `config.scorer` measures.

    Args:
        model (`nn.Module`): a peft model.
        config (`GISTConfig`): `scorer`, `score_layers` and the seed of the projection.
        checkpoints (`Sequence[AdamCheckpoint]`): for `"less"`.

    Raises:
        ValueError: for `"less"` without checkpoints.
    """
    if config.scorer == "rds_plus":
        hidden = HiddenStateVectors(model)
        return [Stage(hidden, hidden, model)]
    if config.scorer == "gist":
        gradient = GradientVectors(model, config.score_layers)
        if config.sketch_dim is not None:
            sketch = CountSketch(config.sketch_dim, config.seed)
            gradient = SketchedVectors(model, sketch, last_blocks=config.score_layers)
        return [Stage(gradient, gradient, model)]
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
    stages = []
    for number, checkpoint in enumerate(checkpoints):
        sketch = CountSketch(LESS_SIZE, config.seed + number)
        # the root on both sides gives the checkpoint its weight in the inner product
        scale = math.sqrt(checkpoint.learning_rate / total)
        targets = SketchedVectors(model, sketch, scale, last_blocks=config.score_layers)
        candidates = SketchedVectors(model, sketch, scale, checkpoint, config.score_layers)
        stages.append(Stage(targets, candidates, model, checkpoint.weights))
    return stages
