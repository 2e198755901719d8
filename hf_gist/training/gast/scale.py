"""The factor between the gradient of a sample's own mean loss and its gradient in the backpropagated loss."""

from typing import Any

import torch
from torch import Tensor

from hf_gist.gast.gate import Redundancy
from hf_gist.gast.run import GASTRun
from hf_gist.gradients.modes import scoring_mode
from hf_gist.training.gast.setup import labelled_row
from hf_gist.training.losses.choice import TrainerBatchLoss


def learning_rate(trainer: Any) -> float:
    """The learning rate of the current step.

    Raises:
        ValueError: if parameters are trained with different ones.
    """
    rates = sorted({float(group["lr"]) for group in trainer.optimizer.param_groups})
    if len(rates) > 1:
        raise ValueError(
            f"`redundancy=True` is defined for one learning rate, and the optimizer has {', '.join(map(str, rates))}. "
            "Train all parameters with the same one, or set `redundancy=False`."
        )
    return rates[0]


def divides_by_items(trainer: Any, seed: int) -> bool:
    """Whether the loss of a trainer is divided by the number of items of the accumulated batch.

    Models that ignore this number take the mean over their own batch. Found on a training row: the loss is halved if
    the number is doubled.
    """
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    loss = TrainerBatchLoss(trainer, model)
    with scoring_mode(model), torch.no_grad():
        batch, count = labelled_row(trainer, seed)
        return float(loss(batch, 2 * count)) < 0.75 * float(loss(batch, count))


def redundancy_of(
    trainer: Any, run: GASTRun, weights: Tensor, num_items_in_batch: Tensor | int | None
) -> Redundancy | None:
    """What the greedy choice needs to know of a step; `None` if samples are not chosen greedily.

    Args:
        trainer (`Trainer`): with the model's own loss, see [`hf_gist.training.gast.checks.check_scale`].
        run (`GASTRun`): stores whether the loss is divided by the number of items.
        weights (`Tensor`): loss weights of the samples `[B]`: their labelled tokens.
        num_items_in_batch (`Tensor` or `int`, *optional*): of the accumulated batch, over all processes.
    """
    if not run.config.redundancy:
        return None
    if run.divides_by_items is None:
        run.divides_by_items = divides_by_items(trainer, run.config.seed)
    counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    items = weights.sum() if num_items_in_batch is None or not run.divides_by_items else num_items_in_batch
    scale = 1 / items
    if counted and trainer.args.average_tokens_across_devices:
        scale = scale * trainer.accelerator.num_processes
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if not (counted if scaled is None else scaled):
        scale = scale / trainer.current_gradient_accumulation_steps
    return Redundancy(learning_rate(trainer), torch.as_tensor(scale, dtype=weights.dtype, device=weights.device))
