"""`GISTDataSelectorCallback`: GIST in the user's `trainer.train()`, through public APIs of Trainer and accelerate."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.config.gist import GISTConfig
from hf_gist.gist.selection import Selection
from hf_gist.training.caller import calling_trainer
from hf_gist.training.cards import complete_cards
from hf_gist.training.gist_run import GISTRun
from hf_gist.training.inputs import read_inputs
from hf_gist.training.parts import TrainerParts
from hf_gist.training.steps.epochs import give_epochs_for_passes


class GISTDataSelectorCallback(TrainerCallback):
    """Selects the training data at the end of a short warm-up and trains on the selected rows from then on.

    The first epoch is the warm-up on a random `warmup_ratio` of the train dataset. At its end, the LoRA gradients of
    the target set span a subspace, every row of the train dataset is scored by its alignment in this subspace, and
    each further epoch is one pass over the best `budget` of the rows: `num_train_epochs = 1 + passes`. Learning-rate
    schedule, progress bar and `state.epoch` are updated to match; with `max_steps`, there are as many passes as fit in
    that number of steps. Rows are scored by the trainer's own loss if it has one. Pass it to the constructor of
    `Trainer`, TRL's `SFTTrainer`, `DPOTrainer` or `RewardTrainer`; after `add_callback`, `max_steps` is reached only as
    far as the epochs allow that Trainer derived from it. Artifacts are written to `output_dir/gist`. Paper: GIST, arXiv
    2602.18584.

    Args:
        config (`GISTConfig`, *optional*): what to select and how.
        target_dataset: `M` examples of the task that the model should improve on, tokenised like the train dataset;
            with TRL's trainers also raw rows (preference pairs where they train on them), which the trainer prepares
            like its train dataset. They must not be evaluation rows.
        train_dataset (*optional*): the train dataset before `Trainer` drops its unused columns; needed only for
            `config.source_column`.
        eval_dataset (*optional*): evaluation rows, tokenised or with TRL's trainers raw; those that are also in the
            train dataset are not selected.

    Attributes:
        selection (`Selection`, *optional*): the result; `None` before the end of the warm-up. Its row numbers refer
            to `trainer.train_dataset`, from which `SFTTrainer` may have dropped rows without a label. With
            `config.reselect_every` it is the latest one, and `callback.run.history` has the rows and costs of each.

    Raises:
        ValueError: from `trainer.train()`, before any step, for invalid inputs.
        RuntimeError: after the swap, if rows that were not selected reach the model.

    Example:

    ```python
    callback = GISTDataSelectorCallback(GISTConfig(budget=0.05), target_dataset=targets)
    trainer = Trainer(model=peft_model, args=args, train_dataset=pool, data_collator=collator, callbacks=[callback])
    trainer.train()
    callback.selection.indices
    ```
    """

    def __init__(
        self,
        config: GISTConfig | None = None,
        target_dataset: Any = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
    ) -> None:
        if config is not None and not isinstance(config, GISTConfig):
            raise ValueError(f"`config` must be a GISTConfig, got {type(config).__name__}.")
        if target_dataset is None:
            raise ValueError("`target_dataset` is missing: GIST selects the rows that align with a small target set.")
        self.config = config or GISTConfig()
        self.target_dataset = target_dataset
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self._run: GISTRun | None = None

    @property
    def selection(self) -> Selection | None:
        """The result of the last `train()` call; `None` before the end of its warm-up."""
        return None if self._run is None else self._run.selection

    @property
    def run(self) -> GISTRun:
        """The state of the last `train()` call.

        Raises:
            RuntimeError: before the first call.
        """
        if self._run is None:
            raise RuntimeError("`on_train_begin` of GISTDataSelectorCallback was not called: no training has started.")
        return self._run

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the Trainer enough epochs for `max_steps`; only called with a callback passed to the constructor."""
        give_epochs_for_passes(calling_trainer(), self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check all inputs, then set the order of the train dataloader and the length of the run."""
        if self._run is not None:
            # the previous `train()` call may have raised an error
            self._run.row_check.close()
            self._run = None
        parts = TrainerParts.of_event(args, kwargs)
        complete_cards(parts.trainer, parts.output_folder)
        inputs = read_inputs(parts, self.config, self.target_dataset, self.train_dataset, self.eval_dataset)
        self._run = GISTRun(self.config, parts, inputs, state)
        self._run.begin(state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the step at which the sampler starts this epoch."""
        self.run.start_epoch(state.global_step)
        self.run.target_watch.log_start(state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip evaluation and saving if an epoch ends in the middle of a pass."""
        self.run.finish_epoch(state, control)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the rows of the first step after each swap."""
        self.run.start_step()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Select where it is due, end the epoch at the end of each pass, and check the trained rows."""
        self.run.finish_step(state)
        self.run.finish_pass(args, state, control)
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state that a resumed run needs into the checkpoint."""
        if state.is_world_process_zero:
            self.run.save(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the cost ledger, and warn if training ended before the first step on selected rows."""
        self.run.end(state)
