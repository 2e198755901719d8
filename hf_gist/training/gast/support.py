"""The support gradient of a GAST trainer: from rows appended to the training batch, or from a pass of their own."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType, release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import Trainer
from transformers.utils import logging

from hf_gist.functional.masking import mean_loss_scales
from hf_gist.gast.gate import BatchMasks, Redundancy
from hf_gist.gast.groups import Group
from hf_gist.gast.hooks import masking, summing
from hf_gist.gast.joint_pass import AppendedRows, appended_rows, appending
from hf_gist.gast.joint_pass_checks import fits, forward_obstacle, model_obstacle
from hf_gist.gast.run import GASTRun
from hf_gist.gast.support import SupportSet, average_over_ranks, first_moments, support_mode
from hf_gist.gradients.losses import labelled_tokens
from hf_gist.training.losses.choice import own_loss_name
from hf_gist.training.losses.side_effects import without_metrics


logger = logging.get_logger(__name__)

OWN_PASS_ON = ("cpu",)
"""Devices where a pass over the support rows alone is faster than more rows in the batch: it has no launches to wait for."""


# ---- In the training batch ----


def _trainer_obstacle(trainer: Any) -> str | None:
    """What about a trainer keeps the support rows from being appended: a loss other than the model's mean over tokens."""
    accelerator = trainer.accelerator
    args = trainer.args
    if accelerator.device.type in OWN_PASS_ON:
        return f"a pass of their own is faster on a {accelerator.device.type}"
    if accelerator.num_processes > 1 or accelerator.distributed_type != DistributedType.NO:
        # in the backward pass, a collective call would be needed for every group instead of one
        return "the support gradient is averaged over processes"
    if (name := own_loss_name(trainer)) is not None:
        return f"{name} is a loss of the trainer's own"
    if type(trainer).sample_weights.__module__ != "hf_gist.trainer":
        return f"{type(trainer).__name__} overrides `sample_weights`"
    if args.neftune_noise_alpha or args.use_liger_kernel:
        return "NEFTune or Liger changes the forward pass"
    return None


def rows_to_append(trainer: Any, run: GASTRun, inputs: dict[str, Any]) -> AppendedRows | None:
    """The next support rows, to append to a training batch; `None` if they cannot, and are to get a separate pass.

    Args:
        trainer (`GASTTrainer`): with a support set.
        run (`GASTRun`): stores why the rows of this run cannot be appended.
        inputs (`dict`): the training batch on the device.
    """
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if run.separate_because is None:
        _decide(run, _trainer_obstacle(trainer) or model_obstacle(model, run.groups, run.unmasked))
    if run.separate_because:
        return None
    batch = trainer._gast_support_set.batch(run.supports, 0, 1)
    if "attention_mask" in inputs and "attention_mask" not in batch:
        # a collator may leave out a mask that hides nothing
        batch = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    if not fits(inputs, batch):
        return None
    if run.separate_because is None:
        _decide(run, forward_obstacle(model, trainer.model_wrapped, inputs) or "")
    return None if run.separate_because else appended_rows(batch, inputs["input_ids"])


def _decide(run: GASTRun, obstacle: str | None) -> None:
    """Store why the rows cannot be appended (empty if they can), and log it; `None` if it is not known yet."""
    run.separate_because = obstacle
    if obstacle is not None:
        logger.info(
            f"GAST: support rows {f'get their own pass: {obstacle}' if obstacle else 'are appended to the batch'}."
        )


def masked_step(
    trainer: Any,
    run: GASTRun,
    inputs: dict[str, Any],
    weights: Tensor,
    redundancy: Redundancy | None,
    stock_step: Callable[[], Tensor],
) -> tuple[Tensor, BatchMasks]:
    """A training step with masks; if the batch with the support rows does not fit into memory, they get a pass.

    Args:
        trainer (`GASTTrainer`): the trainer.
        run (`GASTRun`): its state.
        inputs (`dict`): the training batch on the device.
        weights (`Tensor`): weights of its samples in the loss `[B]`.
        redundancy (`Redundancy`, *optional*): what the greedy choice of samples needs.
        stock_step (`Callable`): the trainer's forward and backward pass over the batch; returns the loss.

    Returns:
        `tuple[Tensor, BatchMasks]`: the loss, and the masks that were drawn.
    """
    appended = _prepare_support(trainer, run, inputs)
    batch = run.open(weights, 0 if appended is None else len(appended), redundancy)
    try:
        with masking(run.groups, batch), _carrying(trainer, appended):
            return stock_step(), batch
    except RuntimeError as error:
        # once a mask is drawn, gradients of this batch may already be added to those of the step
        if appended is None or batch.masks or not should_reduce_batch_size(error):
            raise
        run.separate_because = "the training batch with the support rows does not fit into memory"
        logger.warning(f"GAST: {run.separate_because}; they get their own pass from now on.")
        # the traceback references the activations of the batch that did not fit
        error.__traceback__ = None
    release_memory()
    return masked_step(trainer, run, inputs, weights, redundancy, stock_step)


def _prepare_support(trainer: Any, run: GASTRun, inputs: dict[str, Any]) -> AppendedRows | None:
    """Set the support gradient if a new one is due, or return the rows that give it; see [`masked_step`]."""
    step = trainer.state.global_step
    support = trainer._gast_support_set
    if not run.needs_support(step):
        return None
    if support is None:
        optimizer = trainer.optimizer
        stepped = run.has_stepped(step, trainer.accelerator.scaler is not None, not optimizer.state)
        run.set_support(first_moments(optimizer, run.groups, stepped), step)
        return None
    appended = rows_to_append(trainer, run, inputs)
    if appended is None:
        gradient = support_gradient(trainer, trainer.model_wrapped, run, support, trainer.sample_weights)
        run.set_support(gradient, step)
    return appended


def _carrying(trainer: Any, appended: AppendedRows | None) -> AbstractContextManager[None]:
    """While active, the rows are appended to the batches of the trainer's model."""
    scaler = trainer.accelerator.scaler
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    return appending(model, appended, (lambda loss: loss) if scaler is None else scaler.scale)


# ---- In a separate pass ----


def support_gradient(
    trainer: Trainer, model: nn.Module, run: GASTRun, support: SupportSet, sample_weights: Any
) -> dict[str, Tensor]:
    """The mean over support samples, and over processes, of the gradients of their own mean losses (paper GAST).

    Args:
        trainer (`Trainer`): computes the loss.
        model (`nn.Module`): with the trainer's wrappers; its `p.grad` are not changed.
        run (`GASTRun`): groups, and the number of previous support batches.
        support (`SupportSet`): provides the batch.
        sample_weights (`Callable`): batch to the weight of each sample in its loss `[B]`.

    Returns:
        `dict[str, Tensor]`: parameter name to gradient, in the parameter's shape.
    """
    accelerator = trainer.accelerator
    inner = accelerator.unwrap_model(model)
    untracked = [parameter for name, parameter in inner.named_parameters() if name in run.unmasked]
    # under FSDP2 there are no gradients to reduce, and its `no_sync` would end that of the gradient accumulation
    sync = nullcontext() if accelerator.is_fsdp2 else accelerator.no_sync(model)
    with support_mode(model, untracked), without_metrics(trainer), sync:
        batch = support.batch(run.supports, accelerator.process_index, accelerator.num_processes)
        batch = trainer._prepare_inputs(batch)
        gradients, _ = mean_gradient(trainer, model, run.groups, batch, sample_weights)
    if accelerator.num_processes == 1:
        return gradients
    return average_over_ranks(gradients, lambda flat: accelerator.reduce(flat, "mean"))


def mean_gradient(
    trainer: Trainer, model: nn.Module, groups: Sequence[Group], batch: dict[str, Any], sample_weights: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """The mean over the samples of a batch of the gradients of their own mean losses, times the scale of a scaler.

    Args:
        trainer (`Trainer`): computes the loss.
        model (`nn.Module`): with the trainer's wrappers, in [`support_mode`].
        groups (`Sequence[Group]`): with the parameters.
        batch (`dict`): a collated batch on the device.
        sample_weights (`Callable`): batch to the weight of each sample in its loss `[B]`.

    Returns:
        `tuple[dict[str, Tensor], Tensor]`: parameter name to gradient, and the number of samples with a loss.
    """
    weights = sample_weights(batch)
    inner = trainer.accelerator.unwrap_model(model)
    items = labelled_tokens(inner, batch).sum() if trainer.compute_loss_func else None
    with summing(groups, mean_loss_scales(weights)) as gradients:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
        trainer.accelerator.backward(loss)
    return gradients, (weights > 0).sum()


def sum_over_ranks(trainer: Trainer, values: Tensor) -> Tensor:
    """A tensor summed over the processes of a trainer."""
    accelerator = trainer.accelerator
    return accelerator.reduce(values, "sum") if accelerator.num_processes > 1 else values
