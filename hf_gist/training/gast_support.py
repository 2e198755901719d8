"""Computes the support gradient of a GAST trainer with the trainer's loss."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_gist.functional.masking import mean_loss_scales
from hf_gist.gast.hooks import summing
from hf_gist.gast.loss_probe import LossFunctionProbe
from hf_gist.gast.loss_weights import loss_weights
from hf_gist.gast.run import GASTRun
from hf_gist.gast.support import SupportSet, average_over_ranks, support_mode


def probe_loss(trainer: Trainer, probe: LossFunctionProbe, inputs: dict[str, Any], counts: Tensor) -> str:
    """Determine how the trainer's `compute_loss_func` weights the samples, from a forward pass over one batch.

    Args:
        trainer (`Trainer`): the trainer with the loss.
        probe (`LossFunctionProbe`): stores the result.
        inputs (`dict`): a collated batch on the device.
        counts (`Tensor`): labelled tokens `[B]`.

    Returns:
        `str`: `"tokens"` or `"samples"`.

    Raises:
        ValueError: if the loss is not a weighted sum over samples.
    """
    if probe.weighting is not None:
        return probe.weighting
    features = {name: value for name, value in inputs.items() if name != "labels"}
    model = trainer.model_wrapped
    with support_mode(model, []), torch.no_grad(), trainer.compute_loss_context_manager():
        outputs = model(**features)
    return probe.observe(outputs, inputs["labels"], counts, lambda votes: sum_over_ranks(trainer, votes))


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
        weights = sample_weights(batch)
        items = loss_weights(batch, inner, "tokens").sum() if trainer.compute_loss_func else None
        with summing(run.groups, mean_loss_scales(weights)) as gradients:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
            accelerator.backward(loss)
    if accelerator.num_processes == 1:
        return gradients
    return average_over_ranks(gradients, lambda flat: accelerator.reduce(flat, "mean"))


@contextmanager
def without_metrics(trainer: Trainer) -> Iterator[None]:
    """Exclude the support samples from the running metrics that TRL's `compute_loss` updates."""
    names = [name for name in ("_metrics", "_total_train_tokens") if hasattr(trainer, name)]
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)


def sum_over_ranks(trainer: Trainer, values: Tensor) -> Tensor:
    """A tensor summed over the processes of a trainer."""
    accelerator = trainer.accelerator
    return accelerator.reduce(values, "sum") if accelerator.num_processes > 1 else values
