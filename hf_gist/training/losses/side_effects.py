"""Calls of a trainer's `compute_loss` outside of training, without effects on its metrics or other processes."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from transformers import Trainer


@contextmanager
def without_metrics(trainer: Trainer) -> Iterator[None]:
    """Exclude samples from the running metrics that `compute_loss` of TRL and ms-swift updates."""
    names = [name for name in ("_metrics", "_total_train_tokens", "custom_metrics") if hasattr(trainer, name)]
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)


def empty_metrics(trainer: Trainer) -> None:
    """Empty the running metrics of TRL and of ms-swift; call it within [`without_metrics`].

    They are a container for each mode (`train`, `eval`); anything else under these names is a trainer's own.
    """
    for name in ("_metrics", "custom_metrics"):
        by_mode = getattr(trainer, name, None)
        for running in by_mode.values() if isinstance(by_mode, dict) else ():
            if isinstance(running, dict | list):
                running.clear()


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an instance; on exit the instance is as before."""
    own = vars(owner)
    kept = own.get(name)
    had = name in own
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, kept)
        else:
            delattr(owner, name)


def _as_is(values: Any, *args: Any, **kwargs: Any) -> Any:
    return values


@contextmanager
def computing_one_loss(trainer: Trainer, model: nn.Module, training: bool) -> Iterator[None]:
    """While active, `compute_loss` of a trainer computes the loss of this process's batch alone.

    - With `training`, the outermost module is in training mode, because a loss of the trainer's own may differ between
      training and evaluation; the modules inside stay in eval mode, without dropout.
    - Metrics do not count the batch. Collective calls for metrics return their argument, and the loss is not scaled by
      the number of processes, because the processes may score different numbers of batches.
    - The model runs in the precision of scoring, without the autocast that accelerate wraps around its forward.
    """
    with ExitStack() as stack:
        stack.enter_context(without_metrics(trainer))
        stack.enter_context(_attribute(model, "training", training))
        for name in ("gather", "gather_for_metrics", "reduce"):
            stack.enter_context(_attribute(trainer.accelerator, name, _as_is))
        stack.enter_context(_attribute(trainer.args, "average_tokens_across_devices", False))
        original = getattr(model, "_original_forward", None)
        if original is not None:
            stack.enter_context(_attribute(model, "forward", original))
        yield
