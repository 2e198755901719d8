"""The Trainer behind a callback's event."""

import inspect

from transformers import Trainer


def calling_trainer() -> Trainer | None:
    """The Trainer that is calling back right now; `None` if there is none on the stack.

    Trainer gives its callbacks everything but itself, and only the Trainer can log to all trackers or add to its card.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None
