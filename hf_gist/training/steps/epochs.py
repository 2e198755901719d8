"""Gives a Trainer with `max_steps` as many epochs as the passes over a small selection may need."""

import functools
from typing import Any

from transformers import Trainer, TrainerCallback


HAS_EPOCHS_FOR_PASSES = "has_epochs_for_gist_passes"
"""Attribute of a trainer that is already patched."""


def give_epochs_for_passes(trainer: Trainer | None, callback: TrainerCallback) -> None:
    """Patch a trainer so that a run with `max_steps` has at least as many epochs as optimizer steps; idempotent.

    `Trainer` derives the number of epochs from `max_steps` and the size of the whole pool, and each epoch of the run
    is one pass over the smaller selection, so there would be too few. The `TrainingArguments` are not changed: the
    patched method reads them when `train()` begins, whatever the user has set by then. The run ends at `max_steps`.

    Args:
        trainer (`Trainer`, *optional*): the trainer that is being made; nothing is done without one.
        callback (`TrainerCallback`): the callback; without it among the callbacks, the trainer is as before.
    """
    if trainer is None or getattr(trainer, HAS_EPOCHS_FOR_PASSES, False):
        return
    setattr(trainer, HAS_EPOCHS_FOR_PASSES, True)
    original = trainer.set_initial_training_values

    @functools.wraps(original)
    def set_initial_training_values(*args: Any, **kwargs: Any) -> Any:
        num_train_epochs, *others = original(*args, **kwargs)
        if trainer.args.max_steps > 0 and callback in trainer.callback_handler.callbacks:
            num_train_epochs = max(num_train_epochs, trainer.args.max_steps)
        return (num_train_epochs, *others)

    # `setattr`, because type checkers reject assigning to a method
    setattr(trainer, "set_initial_training_values", set_initial_training_values)  # noqa: B010
