"""Finds the Trainer that called a callback."""

import inspect

from transformers import Trainer


def calling_trainer() -> Trainer | None:
    """The Trainer that called the current callback; `None` if there is none on the call stack.

    Trainer does not pass itself to its callbacks, but only the Trainer can log to all trackers or extend its model
    card.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None
