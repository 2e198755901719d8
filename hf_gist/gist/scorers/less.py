"""LESS (Xia et al., 2024, arXiv 2402.04333): projected gradients of the targets and Adam updates of the candidates."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_gist.config.gist import GISTConfig
from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.scorers.base import AdamCheckpoint, CheckpointVectors, Scorer
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients.models import adapter_parameters, whole


LESS_SIZE = 8192
"""Dimension of the projected gradients (LESS, section 4)."""


def check_optimizer(optimizer: Any) -> None:
    """Check before the first step that an optimizer will have Adam moments.

    Raises:
        ValueError: naming the optimizer, if it is not torch's Adam or AdamW.
    """
    # 8-bit and paged Adam and Lion also have betas, but other moments
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(
            f"`scorer='less'` needs the moments of torch's Adam or AdamW, got {type(inner).__name__}; set "
            "`optim='adamw_torch'`."
        )


def adam_checkpoint(
    model: nn.Module, optimizer: Any, learning_rate: float, copy_weights: bool = False
) -> AdamCheckpoint:
    """Adapter and Adam state during training, for LESS.

    Args:
        model (`nn.Module`): the model in training.
        optimizer: its optimizer, or accelerate's wrapper of it.
        learning_rate (`float`): mean learning rate since the previous checkpoint.
        copy_weights (`bool`): copy the adapter and the moments, because training continues.

    Raises:
        ValueError: if the optimizer has no Adam moments for a trainable parameter.
    """
    moments = {}
    steps = 0
    weights = {}
    for name, parameter in adapter_parameters(model).items():
        state = _adam_state(optimizer, name, parameter)
        first = whole(state["exp_avg"])
        second = whole(state["exp_avg_sq"])
        moments[name] = (first.cpu().clone(), second.cpu().clone()) if copy_weights else (first, second)
        steps = int(state["step"])
        if copy_weights:
            weights[name] = whole(parameter).cpu().clone()
    group = optimizer.param_groups[0]
    return AdamCheckpoint(learning_rate, moments, steps, tuple(group["betas"]), group["eps"], weights or None)


def _adam_state(optimizer: Any, name: str, parameter: nn.Parameter) -> dict[str, Any]:
    state = optimizer.state.get(parameter, {})
    if "exp_avg" not in state or "exp_avg_sq" not in state:
        raise ValueError(
            f"`scorer='less'` needs Adam's moments, and {type(optimizer).__name__} has none for {name}. Train with "
            "an Adam optimizer (`optim='adamw_torch'`)."
        )
    return state


def _vectors(model: nn.Module, config: GISTConfig, checkpoints: Sequence[AdamCheckpoint]) -> list[CheckpointVectors]:
    if not checkpoints:
        raise ValueError(
            "`scorer='less'` needs the optimizer state of the warm-up: use the callback, let `hf-gist select` run the "
            "warm-up (no `--adapter_name_or_path`), or pass `checkpoints=[adam_checkpoint(...)]` to `select`."
        )
    total = sum(checkpoint.learning_rate for checkpoint in checkpoints)
    if total <= 0:
        raise ValueError(
            "The learning rate was 0 before every checkpoint of `scorer='less'`: train for more steps first."
        )
    per_checkpoint = []
    for number, checkpoint in enumerate(checkpoints):
        sketch = CountSketch(LESS_SIZE, config.seed + number)
        # the product of the square roots on both sides is the checkpoint's weight in the inner product
        length = math.sqrt(checkpoint.learning_rate / total)
        targets = SketchedVectors(model, sketch, length, last_blocks=config.score_layers)
        candidates = SketchedVectors(model, sketch, length, checkpoint, config.score_layers)
        per_checkpoint.append(CheckpointVectors(targets, candidates, model, checkpoint))
    return per_checkpoint


LESS = Scorer(
    name="less",
    title="LESS",
    sentence="its Adam-preconditioned gradient, randomly projected (a baseline)",
    vectors=_vectors,
    # LESS averages the cosines with the targets of a group: the mean of unit vectors is not normalised again
    unit_directions=False,
    needs_adam=True,
)
