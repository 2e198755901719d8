"""A Trainer with one progress bar, which is removed at the end, and without printed logs."""

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
    """A progress bar of optimizer steps that is removed at the end; not shown if the output is not a terminal.

    Args:
        title (`str`): label of the bar.
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
        """Advance the bar; the callback of GIST may have changed the number of steps."""
        if self.bar is not None:
            self.bar.total = state.max_steps
            self.bar.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def with_step_bar(trainer: Trainer, title: str) -> Trainer:
    """Replace the trainer's progress bar and printed logs by a [`StepBar`]; returns the same trainer."""
    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(StepBar(title))
    return trainer
