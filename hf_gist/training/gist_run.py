"""The state of one `train()` call with GIST: warm-up, swap to the selected rows, and passes over the selection."""

import dataclasses
import math
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import DefaultFlowCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.config.files import FOLDER
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.clock import RunClock
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import TRAINING, WARMUP
from hf_gist.data.leaks import excluded_rows
from hf_gist.data.rows import row_lengths
from hf_gist.errors import MaxStepsWarning, NoEffectWarning
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.less import adam_checkpoint
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring import measure_and_choose
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import PARTIAL, PartialScores
from hf_gist.report import report_at_end, report_training, summary_line, summary_table
from hf_gist.training.checkpoint import InitialAdapter, checkpoint_folder, load_selection, save_selected
from hf_gist.training.internals import resize_progress_bars
from hf_gist.training.losses.choice import verified_loss
from hf_gist.training.parts import TrainerParts
from hf_gist.training.steps.learning_rate import Schedule
from hf_gist.training.steps.loader import read_order, set_sampler, total_batch_size
from hf_gist.training.steps.plan import StepPlan, plan_steps, warmup_steps_of
from hf_gist.training.steps.row_check import RowCheck
from hf_gist.training.steps.sampler import GISTSampler
from hf_gist.training.tracking import track_selection
from hf_gist.utils.terminal import wrapped


def expected_rows(config: GISTConfig, pool_size: int, excluded: int = 0) -> int:
    """Number of rows that will be selected; an estimate for a token budget, corrected at the swap.

    Args:
        config (`GISTConfig`): the budget.
        pool_size (`int`): rows of the pool.
        excluded (`int`): how many of them must not be trained on.
    """
    rows = rows_in_budget(config.budget, config.budget_unit, pool_size)
    if rows is not None:
        return max(1, min(rows, pool_size - excluded))
    if isinstance(config.budget, float):
        return max(1, int(config.budget * pool_size))
    return max(1, min(pool_size, config.budget // 64))


def step_plan(config: GISTConfig, parts: TrainerParts, selected_rows: int, epochs: int) -> StepPlan:
    """The step plan of a run with this number of selected rows.

    Args:
        config (`GISTConfig`): the warm-up.
        parts (`TrainerParts`): the trainer's objects.
        selected_rows (`int`): rows of the selection.
        epochs (`int`): epochs that the trainer will begin.

    Raises:
        ValueError: if the warm-up or the selection would have no steps.
    """
    args = parts.args
    loader = parts.loader
    pool_size = len(parts.pool)
    per_step = total_batch_size(loader) * args.gradient_accumulation_steps
    # only the full-size steps of Trainer
    in_epoch = max(1, len(loader) // args.gradient_accumulation_steps)
    warmup = warmup_steps_of(config.warmup_ratio, config.warmup_steps, pool_size, per_step, in_epoch)
    return plan_steps(
        pool_size, per_step, in_epoch, warmup, selected_rows, args.num_train_epochs, args.max_steps, epochs
    )


class GISTRun:
    """The state of one `train()` call.

    The constructor has no side effects on the trainer; [`GISTRun.begin`] changes its dataloader and schedule.

    Args:
        config (`GISTConfig`): the callback's configuration.
        parts (`TrainerParts`): the trainer's objects.
        inputs (`Inputs`): the checked inputs.
        state (`TrainerState`): the trainer's state, before the first step or at a checkpoint.

    Raises:
        ValueError: if there would be no step on the selection.
    """

    def __init__(self, config: GISTConfig, parts: TrainerParts, inputs: Inputs, state: TrainerState) -> None:
        self.config = config
        self.parts = parts
        self.inputs = inputs
        self.selection: Selection | None = None
        self.first_step = state.global_step
        self.clock = RunClock()
        size = len(inputs.pool)
        excluded = excluded_rows(inputs.leaks, size, config)
        left_out = 0 if excluded is None else int(excluded.sum())
        self.trainer_epochs = state.num_train_epochs
        self.plan = step_plan(config, parts, expected_rows(config, size, left_out), self.trainer_epochs)
        self.sampler = GISTSampler(self.plan, config.seed, excluded, read_order(parts.loader))
        self.schedule = Schedule(parts, state.max_steps)
        batches = parts.args.gradient_accumulation_steps
        self.row_check = RowCheck(parts.model, batches, inputs.pool, parts.collator)
        self.initial_adapter: InitialAdapter | None = None
        self._skipped_steps = 0

    @property
    def folder(self) -> Path:
        """Where the artifacts are."""
        return self.parts.output_folder / FOLDER

    # ---- The beginning ----

    def begin(self, state: TrainerState) -> None:
        """Set the order of the dataloader and the length of the run; continue if resuming from a checkpoint.

        Raises:
            ValueError: if the checkpoint belongs to another selection.
        """
        set_sampler(self.parts.loader, self.sampler)
        self._apply(self.plan, state)
        self._tell_length(state)
        if self.config.after_selection == "restart":
            self.initial_adapter = InitialAdapter.of(self.parts.model, self.parts.output_folder, state)
        if state.global_step > 0:
            self._resume(state)
        if self.selection is None:
            # raises before the warm-up if `scoring_cost` does not pay for enough rows
            plan_scoring(
                self.parts.dataset_pass(self.config, self.inputs.loss), self.inputs, self.config, self._warmup()
            )

    def _warmup(self) -> PhaseCost:
        """Cost of the warm-up, spent or to be spent."""
        return self._cost(WARMUP, range(self.plan.warmup_steps))

    def _apply(self, plan: StepPlan, state: TrainerState) -> None:
        """Apply a plan to the sampler, the trainer's state, the learning rate and the progress bars."""
        args = self.parts.args
        before = state.max_steps
        self.plan = plan
        self.sampler.plan = plan
        state.max_steps = plan.total_steps
        state.compute_steps(args, state.max_steps)
        state.num_train_epochs = math.ceil(plan.epoch(plan.total_steps) - 1e-9)
        self.schedule.set_length(plan, self.config.after_selection == "restart", state.global_step)
        resize_progress_bars(before, state.max_steps)

    def _tell_length(self, state: TrainerState) -> None:
        """Tell the user if a run with `max_steps` will have another number of steps."""
        args = self.parts.args
        total = self.plan.total_steps
        if args.max_steps <= 0 or total == args.max_steps:
            return
        constructor = (
            "Pass the callback to the constructor, `Trainer(..., callbacks=[callback])`, for exactly that many."
        )
        if not self.plan.whole_passes:
            warnings.warn(
                f"`max_steps={args.max_steps}` cannot be reached: the callback was added after the Trainer was made, "
                f"and the {self.trainer_epochs} epochs that Trainer derived from it end after {total} steps. "
                f"{constructor}",
                MaxStepsWarning,
                stacklevel=4,
            )
        elif state.is_world_process_zero:
            text = (
                f"GIST: `max_steps={args.max_steps}` is the length of `num_train_epochs={args.num_train_epochs:g}` "
                "passes over the train dataset, so the run has these epochs: the warm-up, and passes over the "
                f"selected rows (about {total} steps). {constructor}"
            )
            tqdm.write(wrapped(text))

    def _resume(self, state: TrainerState) -> None:
        args = self.parts.args
        self.clock.restore(checkpoint_folder(self.parts.output_folder, state.global_step))
        if state.global_step >= self.plan.warmup_steps:
            self.selection = load_selection(self.parts.output_folder, state.global_step, self.config, self.inputs.pool)
            self._move_to(self.selection, state)
        if not args.ignore_data_skip:
            updates_in_epoch = math.ceil(len(self.parts.loader) / args.gradient_accumulation_steps)
            self._skipped_steps = state.global_step % updates_in_epoch

    def _move_to(self, selection: Selection, state: TrainerState) -> None:
        """Make the sampler yield the selected rows from the next epoch."""
        self.sampler.selection = selection.indices
        self._apply(step_plan(self.config, self.parts, len(selection.indices), self.trainer_epochs), state)

    # ---- Epochs and steps ----

    def start_epoch(self, step: int) -> None:
        """Set the step at which the sampler starts an epoch."""
        self.sampler.start_epoch(step, self._skipped_steps)
        self._skipped_steps = 0

    def finish_pass(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Log, evaluate and save as at the end of an epoch, if a pass ends in the middle of one; and end epochs."""
        step = state.global_step
        if step == self.sampler.epoch_end:
            control.should_epoch_stop = True
        elif self.plan.ends_pass(step):
            DefaultFlowCallback().on_epoch_end(args, state, control)
        if step >= state.max_steps:
            control.should_training_stop = True

    def finish_epoch(self, state: TrainerState, control: TrainerControl) -> None:
        """Skip what is due at the end of an epoch, if it ends in the middle of a pass."""
        if not self.plan.ends_pass(state.global_step):
            control.should_evaluate = False
            control.should_log = False
            control.should_save = False

    def start_step(self) -> None:
        """Record the rows of the first step after the swap."""
        if self.selection is not None:
            self.row_check.watch()

    def finish_step(self, state: TrainerState) -> None:
        """Check the rows of the step, and select at the end of the warm-up.

        Raises:
            RuntimeError: if rows that were not selected reached the model.
        """
        step = state.global_step
        self.row_check.verify(self.sampler.rows_of_step(step - 1))
        state.epoch = self.plan.epoch(step)
        if step == self.plan.warmup_steps:
            self.swap(state)

    # ---- The swap ----

    def swap(self, state: TrainerState) -> None:
        """Score the pool, select, write the artifacts and switch the dataloader to the selected rows."""
        partial = PartialScores(self.folder / PARTIAL, self.config.save_every, start_over=True)
        selection = self._select(partial)
        self.selection = selection
        if PartialState().is_main_process:
            selection.save(self.folder)
            parts = self.parts
            report_training(parts.args, selection, self.inputs.pool, self.inputs.targets, parts.tokenizer)
        partial.remove()
        self._move_to(selection, state)
        if self.initial_adapter is not None:
            self.initial_adapter.restore(self.parts.model)
            self.parts.optimizer.state.clear()
        track_selection(self.parts, state, selection)
        if state.is_world_process_zero:
            tqdm.write(wrapped(summary_line(selection, self.plan.total_steps - self.plan.warmup_steps)))
            tqdm.write(summary_table(selection))

    def _select(self, partial: PartialScores) -> Selection:
        parts = self.parts
        inputs = self.inputs
        if scorer_of(self.config).needs_adam:
            checkpoint = adam_checkpoint(parts.model, parts.optimizer, 1.0)
            inputs = dataclasses.replace(inputs, checkpoints=[checkpoint])
        self.clock.record(WARMUP)
        warmup = self._warmup()
        dataset_pass = parts.dataset_pass(self.config, inputs.loss)
        if inputs.loss is not None and self.config.strategy not in UNSCORED:
            # before the first step, rows that a loss mixes may still have parallel gradients
            loss = verified_loss(inputs.loss, dataset_pass, parts, self.config.seed)
            dataset_pass = parts.dataset_pass(self.config, loss)
        selection = measure_and_choose(dataset_pass, inputs, self.config, partial, warmup)
        self.clock.record(None)
        if len(selection.indices) == len(inputs.pool):
            warnings.warn("GIST kept the whole pool: the selection has no effect.", NoEffectWarning, stacklevel=5)
        return selection

    def _cost(self, phase: str, steps: Iterable[int]) -> PhaseCost:
        # an array, not a list: a long training run has millions of rows
        rows = np.fromiter((row for step in steps for row in self.sampler.rows_of_step(step)), dtype=np.int64)
        return self.clock.cost(phase, self.parts.model, row_lengths(self.inputs.pool), rows)

    # ---- Checkpoints and the end ----

    def save(self, step: int) -> None:
        """Write the state for resuming into the checkpoint of a step; called on the main process only."""
        folder = checkpoint_folder(self.parts.output_folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        self.clock.record(WARMUP if self.selection is None else TRAINING)
        self.clock.save(folder)
        if self.selection is not None:
            save_selected(folder, self.selection)

    def end(self, state: TrainerState) -> None:
        """Complete the cost ledger, and warn if training ended before a step on selected rows."""
        self.row_check.close()
        if self.selection is not None:
            self._complete_ledger(self.selection, state)
        seen = self.row_check.done or self.first_step >= state.global_step
        if self.selection is None or not seen:
            warnings.warn(
                f"Training ended at step {state.global_step}, before a step on selected rows: the warm-up alone "
                f"takes {self.plan.warmup_steps} steps.",
                NoEffectWarning,
                stacklevel=3,
            )

    def _complete_ledger(self, selection: Selection, state: TrainerState) -> None:
        self.clock.record(TRAINING)
        if selection.costs is None:
            return
        costs = selection.costs.with_phase(self._cost(TRAINING, range(self.plan.warmup_steps, state.global_step)))
        self.selection = dataclasses.replace(selection, costs=costs)
        if state.is_world_process_zero:
            costs.save(self.folder)
            report_at_end(self.parts.output_folder, self.selection)
            if not self.parts.args.disable_tqdm:
                tqdm.write(wrapped(costs.break_even()))
