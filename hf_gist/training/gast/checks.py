"""Checks of `group_by="model"` before training: the memory for per-sample gradients, and the scale of the loss."""

from collections.abc import Sequence
from typing import Any

from hf_gist.config.gast import GASTConfig
from hf_gist.costs.ledger import in_units
from hf_gist.gast.groups import Group
from hf_gist.gist.forecast import SHARE_TO_USE, free_memory
from hf_gist.training.gast.support import OWN_PASS_ON
from hf_gist.training.losses.choice import own_loss_name


def kept_rows(trainer: Any, config: GASTConfig) -> int:
    """The largest number of rows whose gradients are kept at once: a batch, and the support rows appended to it."""
    appended = config.uses_support and config.support == "dataset" and trainer.args.device.type not in OWN_PASS_ON
    return trainer.args.per_device_train_batch_size + (config.support_batch_size if appended else 0)


def kept_bytes(trainer: Any, config: GASTConfig, groups: Sequence[Group]) -> int:
    """Bytes of the per-sample gradients of a batch, an upper bound: large matrices may be kept as smaller factors."""
    parameters = [parameter for group in groups for parameter in group.parameters().values()]
    # autocast computes the outputs of linear modules, and so their gradients, in 16 bits
    autocast = trainer.args.bf16 or trainer.args.fp16
    values = sum(parameter.numel() * (2 if autocast else parameter.element_size()) for parameter in parameters)
    return kept_rows(trainer, config) * values


def check_memory(trainer: Any, config: GASTConfig, groups: Sequence[Group]) -> None:
    """Check that the per-sample gradients of a batch fit into the free memory of the device.

    Raises:
        ValueError: naming both sizes and what to change.
    """
    device = trainer.args.device
    free = free_memory(device)[0]
    needed = kept_bytes(trainer, config, groups)
    if needed > SHARE_TO_USE * free:
        values = sum(parameter.numel() for group in groups for parameter in group.parameters().values())
        raise ValueError(
            f"`group_by='model'` keeps the per-sample gradients of a batch, {in_units(needed)} for "
            f"{kept_rows(trainer, config)} rows of {values:,} values, and only {in_units(free)} are free on the "
            f"{device.type}. Lower `per_device_train_batch_size` (and raise `gradient_accumulation_steps`) or the rank "
            "of the adapter, or set `group_by='block'`."
        )


def check_scale(trainer: Any, own_weights: bool) -> None:
    """Check that the scale of a trainer's gradients is known, which the redundancy of samples depends on.

    Args:
        trainer (`Trainer`): after its construction.
        own_weights (`bool`): whether its class overrides `sample_weights`.

    Raises:
        ValueError: naming what to change.
    """
    name = f"{type(trainer).__name__}.sample_weights" if own_weights else own_loss_name(trainer)
    if name is not None:
        raise ValueError(
            f"`redundancy=True` compares gradients with their squares, so it needs the scale of the loss, and that of {name} "
            "is not known. Use the model's own loss, or set `redundancy=False`."
        )
    if trainer.args.fp16:
        raise ValueError(
            "`redundancy=True` compares gradients with their squares, and the gradient scaler of `fp16=True` changes their "
            "scale. Set `bf16=True` instead, or `redundancy=False`."
        )


def check_online(trainer: Any, config: GASTConfig, groups: Sequence[Group], own_weights: bool) -> None:
    """Check what choosing whole samples needs.

    Raises:
        ValueError: see [`check_memory`] and [`check_scale`].
    """
    if config.group_by == "model":
        check_memory(trainer, config, groups)
    if config.redundancy:
        check_scale(trainer, own_weights)
