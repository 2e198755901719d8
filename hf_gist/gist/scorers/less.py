"""LESS (Xia et al., 2024, arXiv 2402.04333): projected gradients of the targets and Adam updates of the candidates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.gradients.models import adapter_parameters, whole


LESS_SIZE = 8192
"""Values of a projected gradient (LESS, section 4)."""


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
