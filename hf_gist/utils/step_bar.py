"""A quiet Trainer: one bar that goes away, and nothing printed."""

from typing import Any

from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class StepBar(TrainerCallback):
    """A bar of optimizer steps that goes away at the end; none where the output is no terminal.

    Args:
        title (`str`): what is being trained.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.bar = tqdm(total=state.max_steps, desc=self.title, unit="step", leave=False, disable=None)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step further; a selection may have changed the number of steps."""
        self.bar.total = state.max_steps
        self.bar.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.bar.close()


def with_step_bar(trainer: Trainer, title: str) -> Trainer:
    """The trainer with a [`StepBar`] in place of its own bar and printed log."""
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(StepBar(title))
    return trainer
