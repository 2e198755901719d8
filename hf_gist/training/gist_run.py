"""The state of one `train()` call with GIST: warm-up, swap to the selected rows, passes, and swaps to later selections."""

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
from hf_gist.config.gist import GISTConfig
from hf_gist.costs.clock import RunClock
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import TRAINING, WARMUP
from hf_gist.data.leaks import excluded_rows
from hf_gist.data.rows import row_lengths
from hf_gist.errors import NoEffectWarning
from hf_gist.gist.artifacts import ARTIFACTS
from hf_gist.gist.history import HISTORY, SelectionRecord, load_history, save_history, with_history
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import PARTIAL, PartialScores
from hf_gist.report import report_at_end, report_training, summary_line, summary_table
from hf_gist.training.checkpoint import (
    InitialAdapter,
    checkpoint_folder,
    load_selection,
    restore_selected,
    save_selected,
    selection_folder,
)
from hf_gist.training.internals import resize_progress_bars
from hf_gist.training.parts import TrainerParts
from hf_gist.training.selecting.choosing import check_costs, choose_rows
from hf_gist.training.steps.learning_rate import Schedule
from hf_gist.training.steps.loader import read_order, set_sampler
from hf_gist.training.steps.plan import StepPlan
from hf_gist.training.steps.row_check import RowCheck
from hf_gist.training.steps.run_length import (
    check_chooses_again,
    expected_rows,
    step_plan,
    tell_length,
    tell_selections,
)
from hf_gist.training.steps.sampler import GISTSampler
from hf_gist.training.tracking import track_selection
from hf_gist.training.watch.target_watch import TargetWatch
from hf_gist.utils.terminal import wrapped


class GISTRun:
    """The state of one `train()` call.

    The constructor has no side effects on the trainer; [`GISTRun.begin`] changes its dataloader and schedule.

    Args:
        config (`GISTConfig`): the callback's configuration.
        parts (`TrainerParts`): the trainer's objects.
        inputs (`Inputs`): the checked inputs.
        state (`TrainerState`): the trainer's state, before the first step or at a checkpoint.

    Attributes:
        selection (`Selection`, *optional*): the latest selection.
        history (`list[SelectionRecord]`): every selection so far, in order.

    Raises:
        ValueError: if there would be no step on the selection, or rows would never be chosen again.
    """

    def __init__(self, config: GISTConfig, parts: TrainerParts, inputs: Inputs, state: TrainerState) -> None:
        self.config = config
        self.parts = parts
        self.inputs = inputs
        self.selection: Selection | None = None
        self.history: list[SelectionRecord] = []
        self.first_step = state.global_step
        self.clock = RunClock()
        size = len(inputs.pool)
        excluded = excluded_rows(inputs.leaks, size, config)
        left_out = 0 if excluded is None else int(excluded.sum())
        self.trainer_epochs = state.num_train_epochs
        self.plan = step_plan(config, parts, expected_rows(config, size, left_out), self.trainer_epochs)
        check_chooses_again(self.plan, config, parts, self.trainer_epochs)
        self.sampler = GISTSampler(self.plan, config.seed, excluded, read_order(parts.loader))
        self.schedule = Schedule(parts, state.max_steps)
        batches = parts.args.gradient_accumulation_steps
        self.row_check = RowCheck(parts.model, batches, inputs.pool, parts.collator)
        self.initial_adapter: InitialAdapter | None = None
        self.target_watch = TargetWatch(config, parts, inputs, self.clock)
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
        tell_length(self.plan, self.parts, self.trainer_epochs, state)
        if self.config.after_selection == "restart":
            self.initial_adapter = InitialAdapter.of(self.parts.model, self.parts.output_folder, state)
        if state.global_step > 0:
            # first, since resuming the selection may write the checkpoint again
            self.target_watch.resume(state, checkpoint_folder(self.parts.output_folder, state.global_step))
            self._resume(state)
        if self.selection is None:
            selections = len(self.plan.selection_steps(self.config.reselect_every))
            check_costs(self.parts, self.inputs, self.config, self._warmup(), selections)
        tell_selections(self.plan, self.config, state)
        if state.global_step == 0:
            self.target_watch.begin(state)

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

    def _resume(self, state: TrainerState) -> None:
        args = self.parts.args
        self.clock.restore(checkpoint_folder(self.parts.output_folder, state.global_step))
        if state.global_step >= self.plan.warmup_steps:
            self._resume_selection(state)
        if not args.ignore_data_skip:
            updates_in_epoch = math.ceil(len(self.parts.loader) / args.gradient_accumulation_steps)
            self._skipped_steps = state.global_step % updates_in_epoch

    def _resume_selection(self, state: TrainerState) -> None:
        """Continue with the selection of the checkpoint, and make it that of the output folder again."""
        output = self.parts.output_folder
        step = state.global_step
        selection = load_selection(output, step, self.config, self.inputs.pool)
        if self.config.reselect_every is None:
            self.history = [SelectionRecord.of(selection, self.plan.warmup_steps, 0, ())]
        else:
            folder = selection_folder(output, step, self.config)
            self.history = load_history(folder)
            if state.is_world_process_zero:
                restore_selected(folder, self.folder)
        self.selection = selection
        self._move_to_latest(state)
        if self.config.reselect_every is not None and state.is_world_process_zero:
            # the run may have been killed before these files were in the checkpoint
            self.save(step)

    def _move_to_latest(self, state: TrainerState) -> None:
        """Make the sampler yield the rows of the latest selection from the next epoch."""
        self.sampler.selections = [record.indices for record in self.history]
        first, *later = [(record.step, len(record.indices)) for record in self.history]
        self._apply(step_plan(self.config, self.parts, first[1], self.trainer_epochs, later), state)

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
        self.target_watch.after_step(state, control, self.plan.ends_pass(step))

    def finish_epoch(self, state: TrainerState, control: TrainerControl) -> None:
        """Skip what is due at the end of an epoch, if it ends in the middle of a pass or had no step."""
        if control.should_training_stop:
            self.target_watch.measure(state)
        no_step = state.global_step == self.first_step
        if no_step and self.first_step >= self.plan.total_steps:
            control.should_training_stop = True
        # a run that is stopped in the middle of a pass ends as any other
        if no_step or not (control.should_training_stop or self.plan.ends_pass(state.global_step)):
            control.should_evaluate = False
            control.should_log = False
            control.should_save = False

    def start_step(self) -> None:
        """Record the rows of the first step after each swap."""
        if self.selection is not None:
            self.row_check.watch()

    def finish_step(self, state: TrainerState) -> None:
        """Check the rows of the step, and select at the end of the warm-up and wherever rows are chosen again.

        Raises:
            RuntimeError: if rows that were not selected reached the model.
        """
        step = state.global_step
        self.row_check.verify(self.sampler.rows_of_step(step - 1))
        state.epoch = self.plan.epoch(step)
        if step == self.plan.warmup_steps or self._chooses_again(state):
            self.swap(state)

    def _chooses_again(self, state: TrainerState) -> bool:
        """Whether rows are chosen again after this step; not if training ends because the target loss rose."""
        if self.selection is None or state.global_step != self.plan.next_selection(self.config.reselect_every):
            return False
        self.target_watch.measure(state)
        return not self.target_watch.rose

    # ---- The swaps ----

    def swap(self, state: TrainerState) -> None:
        """Score the pool, select, write the artifacts and switch the dataloader to the selected rows."""
        first = self.selection is None
        if first:
            self.target_watch.before_selection(state)
        partial = PartialScores(self.folder / PARTIAL, self.config.save_every, start_over=True)
        selection = self._select(partial, state.global_step)
        self.selection = selection
        if PartialState().is_main_process:
            self._write(selection)
        partial.remove()
        self._move_to_latest(state)
        self.row_check.renew()
        if first and self.initial_adapter is not None:
            self.initial_adapter.restore(self.parts.model)
            self.parts.optimizer.state.clear()
        self.target_watch.after_selection(state)
        track_selection(self.parts, state, selection)
        self._tell_selection(selection, state)

    def _select(self, partial: PartialScores, step: int) -> Selection:
        """The next selection, with its record in the history and its costs behind those of the earlier ones."""
        earlier = self.selection
        self.clock.record(WARMUP if earlier is None else TRAINING)
        warmup = self._warmup() if earlier is None else None
        number = len(self.history) + 1
        selection = choose_rows(self.parts, self.inputs, self.config, partial, number, warmup)
        self.clock.record(None)
        if earlier is not None and selection.costs is not None:
            selection = dataclasses.replace(selection, costs=selection.costs.after(earlier.costs))
        passes = round(self.plan.epoch(step)) - 1
        self.history = [*self.history, SelectionRecord.of(selection, step, passes, self.history)]
        return selection if self.config.reselect_every is None else with_history(selection, self.history)

    def _write(self, selection: Selection) -> None:
        """Write the artifacts and the report."""
        parts = self.parts
        selection.save(self.folder)
        if self.config.reselect_every is not None:
            save_history(self.history, self.folder)
        else:
            # of an earlier run into this folder
            (self.folder / HISTORY).unlink(missing_ok=True)
        report_training(parts.args, selection, self.inputs.pool, self.inputs.target_set, parts.tokenizer)

    def _tell_selection(self, selection: Selection, state: TrainerState) -> None:
        """Print what was selected, and warn if rows will not be chosen again after all."""
        every = self.config.reselect_every
        if state.is_world_process_zero:
            line = summary_line(selection, self.plan.total_steps - state.global_step)
            if len(self.history) > 1:
                planned = len(self.plan.selection_steps(every))
                tqdm.write(wrapped(f"{line} ({self.history[-1].describe(planned)})"))
            else:
                tqdm.write(wrapped(line))
                tqdm.write(summary_table(selection))
        if every is not None and len(self.history) == 1 and self.plan.next_selection(every) is None:
            segment = self.plan.segments[0]
            warnings.warn(
                f"`reselect_every={every}` has no effect: {segment.passes(self.plan.total_steps):.3g} passes of "
                f"{segment.steps_per_pass} steps over the selected rows fit into `max_steps={self.plan.total_steps}`, and "
                "rows are chosen again only at the end of a pass that is not the last one.",
                NoEffectWarning,
                stacklevel=5,
            )

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
        self.target_watch.save(folder)
        if self.selection is not None:
            save_selected(folder, self.selection, self.folder, self.parts.args.push_to_hub)

    def end(self, state: TrainerState) -> None:
        """Complete the cost ledger, and warn if training ended before a step on selected rows."""
        self.row_check.close()
        self.selection = self.target_watch.finish(self.selection, state)
        if self.selection is not None:
            self._complete_ledger(self.selection, state)
        seen = self.row_check.done or len(self.history) > 1 or self.first_step >= state.global_step
        if self.selection is None or not seen:
            warnings.warn(
                f"Training ended at step {state.global_step}, before a step on selected rows: the warm-up alone "
                f"takes {self.plan.warmup_steps} steps.",
                NoEffectWarning,
                stacklevel=3,
            )
        elif len(self.history) > 1 and self.history[-1].step >= state.global_step > self.first_step:
            warnings.warn(
                f"Training ended at step {state.global_step}, where rows were chosen again, so no step was taken on the rows "
                f"of selection {len(self.history)}, which the report and the card name. Those of the earlier selections are "
                f"in {HISTORY}.",
                NoEffectWarning,
                stacklevel=3,
            )
        elif self._loaded_before_selection(state):
            warnings.warn(
                f"`load_best_model_at_end=True` loaded the checkpoint of step {state.best_global_step}, from before the first "
                "step on selected rows, so the selection has no effect on the final model. Choose another "
                "`metric_for_best_model`, or set `load_best_model_at_end=False`.",
                NoEffectWarning,
                stacklevel=3,
            )

    def _loaded_before_selection(self, state: TrainerState) -> bool:
        """Whether the Trainer has loaded a checkpoint of the warm-up at the end."""
        if not self.parts.args.load_best_model_at_end or state.best_model_checkpoint is None:
            return False
        return 0 < (state.best_global_step or 0) <= self.plan.warmup_steps

    def _complete_ledger(self, selection: Selection, state: TrainerState) -> None:
        self.clock.record(TRAINING)
        if selection.costs is None:
            return
        costs = selection.costs.with_phase(self._cost(TRAINING, range(self.plan.warmup_steps, state.global_step)))
        self.selection = dataclasses.replace(selection, costs=costs)
        if state.is_world_process_zero:
            costs.with_bytes(self.folder, ARTIFACTS).save(self.folder)
            report_at_end(self.parts.output_folder, self.selection)
            if not self.parts.args.disable_tqdm:
                tqdm.write(wrapped(costs.break_even()))
