"""`GISTDataSelectorCallback`: GIST inside the user's own `trainer.train()`, by public API of Trainer and accelerate."""

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import BatchSampler
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.config.files import FOLDER
from hf_gist.config.gist import GISTConfig
from hf_gist.costs.clock import RunClock
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import TRAINING, WARMUP
from hf_gist.data.leaks import excluded_rows, find_leaks
from hf_gist.data.rows import fetch_rows, row_lengths
from hf_gist.errors import NoEffectWarning, SelectionNotVerifiedWarning
from hf_gist.functional.budget import rows_in_budget
from hf_gist.gist.checks import check_dataset, check_distribution, check_inputs, group_columns
from hf_gist.gist.forecast import forecast_memory
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.less import adam_checkpoint, check_optimizer
from hf_gist.gist.scoring import measure_and_choose
from hf_gist.gist.selection import Selection
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.gradients.partial import PARTIAL, PartialScores
from hf_gist.gradients.passes import DatasetPass
from hf_gist.report import report_at_end, report_training, summary_line, summary_table
from hf_gist.training.cards import attach_to_caller
from hf_gist.training.row_check import RowCheck, is_one_of, rows_as_collated
from hf_gist.training.sampler import GISTSampler
from hf_gist.training.schedule import is_trainers_own, plan_run, retime, warmup_steps_of
from hf_gist.training.targets import prepare_evaluation, prepare_targets, read_sources
from hf_gist.training.tracking import track_selection
from hf_gist.utils.disk import read, read_json, write, write_json


SELECTED, INITIAL_ADAPTER = "selected.json", "initial_adapter.safetensors"


class GISTDataSelectorCallback(TrainerCallback):
    """Selects the training data at the end of a short warm-up and trains on the selected rows from then on.

    The first epoch is the warm-up on a random `warmup_ratio` of the train dataset. At its end the LoRA gradients of
    the target set give a subspace, every row of the train dataset is scored by its alignment in it, and each further
    epoch is one pass over the best `budget` of them: `num_train_epochs = 1 + passes`. Learning-rate schedule,
    `max_steps`, progress bar and `state.epoch` follow. Works as a constructor argument of `Trainer` and TRL's
    `SFTTrainer` and with `add_callback`. Artifacts are written to `output_dir/gist`. Paper: GIST, arXiv 2602.18584.

    Args:
        config (`GISTConfig`, *optional*): what to select and how.
        target_dataset: `M` rows that stand for what the model should become good at, tokenised like the train
            dataset; with `SFTTrainer` also raw rows of `messages`, `prompt` and `completion`, or text. They must not
            be evaluation rows.
        eval_dataset (*optional*): tokenised evaluation rows; those that are in the train dataset too are not selected.
        train_dataset (*optional*): the train dataset before `Trainer` drops its unused columns; needed only for
            `config.source_column`.

    Attributes:
        selection (`Selection`): the outcome, from the end of the warm-up on. Its row numbers are those of
            `trainer.train_dataset`, from which `SFTTrainer` may have dropped rows without a label.

    Raises:
        ValueError: from `trainer.train()`, before any step, for inputs that cannot be selected from.
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
        self.target_dataset, self.train_dataset, self.eval_dataset = target_dataset, train_dataset, eval_dataset
        self.selection: Selection | None = None
        self._row_check: RowCheck | None = None
        self._verified = False

    # ---- Before the first step ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check everything, lay out the run and take over the order of the train dataloader."""
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        attach_to_caller(args.output_dir)
        self._close_row_check()
        self.selection, self._verified = None, False
        self._check_trainer(args, loader)
        check_distribution(AcceleratorState().distributed_type, self.config)
        pool, collator = loader.dataset, loader.collate_fn
        self._targets = prepare_targets(self.target_dataset, args, kwargs.get("processing_class"), pool, model)
        self._target_columns = group_columns(self.target_dataset, self.config)
        if args.push_to_hub:
            # the other columns may be text of the data, and they are written into the folder that is uploaded
            group = self.config.target_group_column
            self._target_columns = {name: v for name, v in self._target_columns.items() if name == group}
        self._sources = read_sources(self.train_dataset, self.config.source_column, args, pool)
        check_inputs(model, pool, self._targets, self.config, collator)
        if self.config.scorer == "less":
            check_optimizer(kwargs["optimizer"])
        self._pool, self._collator = pool, collator
        forecast_memory(self._pass(args, model), len(pool), len(self._targets), self.config)
        self._tokenizer = getattr(collator, "tokenizer", None) or kwargs.get("processing_class")
        evaluation = prepare_evaluation(self.eval_dataset, args, kwargs.get("processing_class"))
        self._leaks = find_leaks(pool, self._targets, evaluation, self._tokenizer)
        self._lay_out(args, loader, self._expected_rows())
        excluded = excluded_rows(self._leaks, len(pool), self.config)
        self._sampler = GISTSampler(self._plan, self.config.seed, excluded)
        loader.set_sampler(self._sampler)
        self._scheduler = self._own_scheduler(args, state, kwargs["lr_scheduler"])
        self._apply_plan(args, state)
        self._initial_adapter = None
        if self.config.after_selection == "restart":
            self._keep_initial_adapter(args, state, model)
        self._skip_next, self._first_step, self._clock = 0, state.global_step, RunClock()
        if state.global_step > 0:
            self._resume(args, state, loader)

    def _check_trainer(self, args: TrainingArguments, loader: Any) -> None:
        check_dataset(loader.dataset, "train_dataset")
        if getattr(args, "packing", False) or getattr(args, "padding_free", False):
            raise ValueError(
                "`packing` or `padding_free` is on: several examples share one row, and their gradients cannot be told "
                "apart. Set both to False."
            )
        if not isinstance(getattr(loader, "batch_sampler", None), BatchSampler) or (
            args.train_sampling_strategy == "batch_rebalance"
        ):
            raise ValueError(
                f"`train_sampling_strategy={args.train_sampling_strategy!r}` uses a batch sampler whose order cannot be "
                "replaced; set it to 'random'."
            )

    def _expected_rows(self) -> int:
        """Rows the selection will have; an estimate for a token budget, put right at the swap."""
        budget, size = self.config.budget, len(self._pool)
        rows = rows_in_budget(budget, self.config.budget_unit, size)
        if rows is not None:
            return rows
        return max(1, int(budget * size)) if isinstance(budget, float) else max(1, min(size, budget // 64))

    def _lay_out(self, args: TrainingArguments, loader: Any, rows: int) -> None:
        per_step = loader.total_batch_size * args.gradient_accumulation_steps
        # those that Trainer does not cut short
        steps_in_epoch = max(1, len(loader) // args.gradient_accumulation_steps)
        self._updates_in_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
        warmup = warmup_steps_of(
            self.config.warmup_ratio, self.config.warmup_steps, len(loader.dataset), per_step, steps_in_epoch
        )
        self._plan = plan_run(
            len(loader.dataset), per_step, steps_in_epoch, warmup, rows, args.num_train_epochs, args.max_steps
        )

    def _own_scheduler(self, args: TrainingArguments, state: TrainerState, scheduler: Any) -> LambdaLR | None:
        if is_trainers_own(args, scheduler, state.max_steps):
            return scheduler
        if type(scheduler).__name__ not in ("ReduceLROnPlateau", "GreedyLR"):
            warnings.warn(
                f"The learning-rate scheduler ({type(scheduler).__name__}) was not made by Trainer from its arguments, so "
                "its length was left alone. Build it for the steps that the log names.",
                stacklevel=2,
            )
        return None

    def _apply_plan(self, args: TrainingArguments, state: TrainerState) -> None:
        before = state.max_steps
        state.max_steps = self._plan.total_steps
        state.compute_steps(args, state.max_steps)
        if self._scheduler is not None:
            retime(args, self._scheduler, self._plan, self.config.after_selection == "restart")
        # A callback added with `add_callback` runs after the progress bar was made for the old length.
        for bar in list(getattr(tqdm, "_instances", ())):
            if bar.total == before and before != state.max_steps:
                bar.total = state.max_steps
                bar.refresh()

    def _keep_initial_adapter(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> None:
        """Remember the adapter as it was before the first step, on disk too: a resumed run does not see it."""
        path = Path(args.output_dir) / FOLDER / INITIAL_ADAPTER
        if state.global_step > 0:
            self._initial_adapter = read(path, load_file)
            return
        self._initial_adapter = {n: whole(p).cpu().clone() for n, p in adapter_parameters(model).items()}
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, lambda name: save_file(self._initial_adapter, name))

    # ---- Epochs and steps ----

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the sampler where this epoch starts."""
        self._sampler.start_epoch(state.global_step, self._skip_next)
        self._skip_next = 0

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Neither evaluate nor save where an epoch of a resumed run ends in the middle of a pass."""
        if self._plan.whole_passes and state.global_step != self._plan.epoch_end(state.global_step - 1):
            control.should_evaluate = control.should_save = False
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch the rows of the first step after the swap."""
        if self.selection is not None and not self._verified and self._row_check is None:
            self._row_check = RowCheck(kwargs["model"], args.gradient_accumulation_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Select at the end of the warm-up, end the epoch at the end of each pass, and check what was trained on."""
        step = state.global_step
        if self._row_check is not None:
            self._verify(step)
        state.epoch = self._plan.epoch(step)
        if step == self._plan.warmup_steps:
            self._select_and_swap(args, state, kwargs["model"], kwargs["optimizer"], kwargs["train_dataloader"])
        if step == self._sampler.epoch_end:
            control.should_epoch_stop = True
        if step >= state.max_steps:
            control.should_training_stop = True
        return control

    def _pass(self, args: TrainingArguments, model: torch.nn.Module) -> DatasetPass:
        dtype = "bfloat16" if self.config.scoring_dtype == "auto" and args.bf16 else self.config.scoring_dtype
        return DatasetPass(model, self._collator, self.config.scoring_tokens_per_batch, dtype, not args.disable_tqdm)

    def _select_and_swap(self, args, state: TrainerState, model, optimizer, loader) -> None:
        checkpoints = [adam_checkpoint(model, optimizer, 1.0)] if self.config.scorer == "less" else []
        inputs = Inputs(self._pool, self._targets, self._target_columns, self._sources, self._leaks, checkpoints)
        folder = Path(args.output_dir) / FOLDER
        partial = PartialScores(folder / PARTIAL, self.config.save_every, start_over=True)
        self._clock.record(WARMUP)
        warmup = self._cost(WARMUP, model, range(self._plan.warmup_steps))
        selection = measure_and_choose(self._pass(args, model), inputs, self.config, partial)
        self._clock.record(None)
        self.selection = dataclasses.replace(selection, costs=selection.costs.with_phase(warmup, first=True))
        kept = len(self.selection.indices)
        if kept == len(self._pool):
            warnings.warn("GIST kept the whole pool: the selection has no effect.", NoEffectWarning, stacklevel=2)
        if PartialState().is_main_process:
            self.selection.save(folder)
            report_training(args, self.selection, self._pool, self._targets, self._tokenizer)
        partial.remove()
        self._sampler.selection = self.selection.indices
        self._lay_out(args, loader, kept)
        self._sampler.plan = self._plan
        self._apply_plan(args, state)
        if self._initial_adapter is not None:
            for name, parameter in adapter_parameters(model).items():
                assign(parameter, self._initial_adapter[name])
            optimizer.state.clear()
        track_selection(args, state, self.selection)
        if state.is_world_process_zero:
            tqdm.write(summary_line(self.selection, self._plan.total_steps - self._plan.warmup_steps))
            tqdm.write(summary_table(self.selection))

    def _cost(self, phase: str, model: torch.nn.Module, steps: range) -> PhaseCost:
        # numbers, not objects: a long training has millions of them
        rows = np.fromiter((row for step in steps for row in self._sampler.rows_of_step(step)), dtype=np.int64)
        return self._clock.cost(phase, model, row_lengths(self._pool), rows)

    def _verify(self, step: int) -> None:
        seen = self._row_check.rows
        self._close_row_check()
        expected = self._sampler.rows_of_step(step - 1)
        allowed = rows_as_collated(fetch_rows(self._pool, expected), self._collator) if seen else None
        if allowed is None:
            warnings.warn(
                "Could not check that only selected rows are trained on: the model takes no `input_ids`, or the collator "
                "makes different tokens each time.",
                SelectionNotVerifiedWarning,
                stacklevel=3,
            )
        elif strangers := sum(not is_one_of(row, allowed) for row in seen):
            raise RuntimeError(
                f"{strangers} of {len(seen)} rows of the first step after the swap were not selected: something replaced "
                "the order of the train dataloader. Remove other callbacks or subclasses that change it."
            )
        self._verified = True

    def _close_row_check(self) -> None:
        if self._row_check is not None:
            self._row_check.close()
            self._row_check = None

    # ---- Checkpoints ----

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put into the checkpoint what a resumed run needs."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._clock.record(WARMUP if self.selection is None else TRAINING)
        self._clock.save(folder)
        if self.selection is not None:
            write_json(folder / SELECTED, {"indices": self.selection.indices})

    def _resume(self, args: TrainingArguments, state: TrainerState, loader: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDER
        self._clock.restore(folder)
        if state.global_step >= self._plan.warmup_steps:
            self.selection = Selection.load(Path(args.output_dir) / FOLDER)
            # Trainer finishes a checkpoint before its callbacks add to it: a kill in between leaves this file out
            indices = self.selection.indices
            if (folder / SELECTED).exists():
                indices = read_json(folder / SELECTED)["indices"]
            if self.selection.config != self.config:
                raise ValueError(
                    f"The selection in {folder} was made with another GISTConfig ({self.selection.config}). Resume with "
                    "that one, or start a new run in another output folder."
                )
            if indices != self.selection.indices or len(self.selection.scores) != len(self._pool):
                raise ValueError(
                    f"The selection in {folder} is not the one in {Path(args.output_dir) / FOLDER}, or was made from "
                    "another train dataset. Resume with the output folder and dataset of the interrupted run."
                )
            self._sampler.selection = indices
            self._lay_out(args, loader, len(indices))
            self._sampler.plan = self._plan
            self._apply_plan(args, state)
        if not args.ignore_data_skip:
            self._skip_next = state.global_step % self._updates_in_epoch

    # ---- The end ----

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the ledger, and say so if training ended before anything was trained on the selection."""
        self._close_row_check()
        if self.selection is not None:
            self._close_ledger(args, state, kwargs["model"])
        if self.selection is None or (not self._verified and self._first_step < state.global_step):
            warnings.warn(
                f"Training ended at step {state.global_step}, before a step on selected rows was seen: the warm-up alone "
                f"takes {self._plan.warmup_steps} steps.",
                NoEffectWarning,
                stacklevel=2,
            )

    def _close_ledger(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> None:
        self._clock.record(TRAINING)
        if self.selection.costs is None:
            return
        training = self._cost(TRAINING, model, range(self._plan.warmup_steps, state.global_step))
        self.selection = dataclasses.replace(self.selection, costs=self.selection.costs.with_phase(training))
        if state.is_world_process_zero:
            self.selection.costs.save(Path(args.output_dir) / FOLDER)
            report_at_end(args.output_dir, self.selection)
            if not args.disable_tqdm:
                tqdm.write(self.selection.costs.break_even())
