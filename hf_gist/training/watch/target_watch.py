"""Measures the loss of the target rows during one `train()` call."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState

from hf_gist.config.files import FOLDER
from hf_gist.config.gist import GISTConfig
from hf_gist.costs.accounting import Sizes, scoring_phase, times
from hf_gist.costs.clock import RunClock
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import TARGET_LOSS, TRAINING, WARMUP, peak_memory_bytes
from hf_gist.data.rows import content_digest, row_lengths, rows_of
from hf_gist.errors import TargetLossUnknownWarning, TargetLossWarning
from hf_gist.functional.target_losses import (
    AT_THE_END,
    MANIFEST_KEY,
    START,
    WARMED_UP,
    TargetLoss,
    TargetSeries,
    after_passes,
)
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.selection import Selection
from hf_gist.gradients.collect import collect_losses
from hf_gist.gradients.models import is_sharded, model_device
from hf_gist.gradients.passes import RowFacts
from hf_gist.training.parts import TrainerParts
from hf_gist.training.tracking import log_metrics
from hf_gist.training.watch.best_adapter import BEST_ADAPTER_FILE, BestAdapter
from hf_gist.training.watch.verdict import best_point, check_warmup, rise, sentence
from hf_gist.utils.disk import read_json, write_json
from hf_gist.utils.terminal import wrapped


SERIES_FILE = "target_loss.json"

ROWS_NAMED = 20

METRIC = "gist_target_loss"
"""Name of the target loss in trackers."""


class TargetWatch:
    """The loss of the target rows before the first step, at the end of the warm-up, after each pass, and at the end.

    It is measured in eval mode and without gradients, by the loss that the trainer trains with; random states, training
    flags and running metrics of the trainer are as before. Rows without a labelled token or a finite loss before the
    first step are left out.

    Args:
        config (`GISTConfig`): the callback's configuration.
        parts (`TrainerParts`): the trainer's objects.
        inputs (`Inputs`): target rows and loss.
        clock (`RunClock`): the seconds of the run.
    """

    def __init__(self, config: GISTConfig, parts: TrainerParts, inputs: Inputs, clock: RunClock) -> None:
        self.config = config
        self.parts = parts
        self.inputs = inputs
        self.clock = clock
        self.rows: Any = inputs.targets
        self.series = TargetSeries(inputs.positions, self._groups(inputs.target_columns))
        if (held_out := inputs.held_out) is not None:
            self.rows = rows_of(held_out.target_set, held_out.positions)
            self.series = TargetSeries(held_out.numbers, held_out.groups, held_out=True)
        self.series.digest = content_digest(inputs.target_set)
        self.best: BestAdapter | None = None
        self.rose = False
        self._tokens = 0
        self._watching = True
        self._not_logged: TargetLoss | None = None

    def _groups(self, columns: dict[str, list[Any]]) -> list[str] | None:
        return columns.get(self.config.target_group_column or "")

    @property
    def folder(self) -> Path:
        """Where the artifacts are."""
        return self.parts.output_folder / FOLDER

    @property
    def selected(self) -> bool:
        """Whether the passes over a selection have begun."""
        return self.series.at(WARMED_UP) is not None

    @property
    def restarts(self) -> bool:
        """Whether the passes start from the initial adapter."""
        return self.config.after_selection == "restart"

    # ---- Events ----

    def begin(self, state: TrainerState) -> None:
        """Measure the loss before the first step."""
        self._measure(state, START)

    def log_start(self, state: TrainerState) -> None:
        """Log the loss before the first step: when training begins, other callbacks are not ready for it yet."""
        if self._not_logged is not None:
            log_metrics(self.parts, state, {METRIC: self._not_logged.loss})
            self._not_logged = None

    def before_selection(self, state: TrainerState) -> None:
        """Measure the loss at the end of the warm-up, with the adapter that scores the pool.

        Raises:
            RuntimeError: if it is no longer finite, so that no gradient would be.

        Warns:
            NoEffectWarning: if the warm-up changed nothing.
        """
        self._measure(state, WARMED_UP)
        check_warmup(self.series, self.parts.args.learning_rate)

    def after_selection(self, state: TrainerState) -> None:
        """Keep the adapter that the first pass starts from."""
        if self.config.stop_when_target_rises and self.best is None:
            self._keep(state)

    def after_step(self, state: TrainerState, control: TrainerControl, pass_ended: bool) -> None:
        """Measure the loss at the end of a pass, and end training if `stop_when_target_rises` asks for it."""
        if pass_ended:
            self.measure(state)
        if self.rose:
            control.should_training_stop = True

    def measure(self, state: TrainerState) -> None:
        """Measure the loss, once after each step; not after it rose and training ends."""
        if self.rose:
            return
        self._measure(state, self._event(state))
        self._compare(state)

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs into a checkpoint; called on the main process only."""
        if self._watching:
            write_json(folder / SERIES_FILE, self.series.to_dict())
        if self.best is not None:
            self.best.save(folder)

    def finish(self, selection: Selection | None, state: TrainerState) -> Selection | None:
        """Measure the loss of the final adapter, or restore the best one; say how the loss changed.

        Returns:
            `Selection`, *optional*: with the series in its manifest and the cost of measuring in its ledger.

        Warns:
            TargetLossWarning: if the loss rose.
        """
        self._measure_final(state)
        if not self._watching or not self.series.points:
            return self._without_series(selection, state)
        final = self._final_point()
        said = sentence(self.series, final)
        warning = rise(self.series, final, self.restarts)
        if state.is_world_process_zero:
            (self.folder / BEST_ADAPTER_FILE).unlink(missing_ok=True)
            tqdm.write(wrapped(f"GIST: {said}"))
        if warning is not None:
            warnings.warn(warning, TargetLossWarning, stacklevel=5)
        if selection is None:
            return None
        words = {"sentence": said, "warning": warning, "final_step": final.step}
        return self._recorded(selection, self.series.summary() | words, state)

    def _final_point(self) -> TargetLoss:
        """The point whose adapter the run ends with: the last, or the best one, which is restored."""
        best = best_point(self.series, self.restarts)
        if not self.rose or self.best is None or best is None:
            return self.series.points[-1]
        self.best.restore(self.parts.model)
        return best

    # ---- Measuring ----

    def _event(self, state: TrainerState) -> str:
        return after_passes(self._passes(state) or 0.0) if self.selected else AT_THE_END

    def _passes(self, state: TrainerState) -> float | None:
        """Passes over the selection so far; the warm-up is the first epoch."""
        return (state.epoch or 0.0) - 1 if self.selected else None

    def _measure(self, state: TrainerState, event: str, again: bool = False) -> None:
        points = self.series.points
        known = bool(points) and points[-1].step == state.global_step
        if not self._watching or (known and not again):
            return
        self.clock.record(TRAINING if self.selected else WARMUP)
        facts = self._losses(state)
        if facts is not None:
            if not points:
                facts = self._usable(facts)
            self._tokens = int(facts.label_tokens.sum())
            passes = None if event == AT_THE_END else self._passes(state)
            point = TargetLoss(state.global_step, event, passes, tuple(facts.losses.double().tolist()))
            points.append(point)
            # of the model that is loaded at the very end, when the trackers have ended their runs
            self._record(point, state, tracked=not again)
        self.clock.record(TARGET_LOSS)

    def _losses(self, state: TrainerState) -> RowFacts | None:
        """Losses and labelled tokens of the rows; `None` if they cannot be measured.

        Raises:
            Exception: the reason, if `stop_when_target_rises` needs the losses, or the other processes of a sharded model
                would wait.
        """
        loss = self.inputs.loss
        dataset_pass = self.parts.dataset_pass(self.config, loss)
        dataset_pass = dataclasses.replace(dataset_pass, progress=False, one_by_one=loss is not None)
        try:
            facts = collect_losses(dataset_pass, self.rows, "target rows")
        except Exception as error:
            if self.config.stop_when_target_rises or is_sharded(self.parts.model):
                raise
            self._give_up(f"{type(error).__name__}: {error}", state)
            return None
        if not self.series.points and not bool(self._finite(facts).any()):
            self._give_up("no target row has a labelled token and a finite loss", state)
            return None
        return facts

    def _give_up(self, reason: str, state: TrainerState) -> None:
        """Stop measuring.

        Raises:
            ValueError: if `stop_when_target_rises` needs the losses.
        """
        if self.config.stop_when_target_rises:
            raise ValueError(f"`stop_when_target_rises=True` needs the loss of the target rows, but {reason}.")
        self._watching = False
        warnings.warn(
            f"The loss of the target rows cannot be measured at step {state.global_step}, so nothing will say whether training "
            f"moves away from the targets: {reason.rstrip('.')}.",
            TargetLossUnknownWarning,
            stacklevel=5,
        )

    @staticmethod
    def _finite(facts: RowFacts) -> Any:
        return (facts.label_tokens > 0) & facts.losses.isfinite()

    def _usable(self, facts: RowFacts) -> RowFacts:
        """Leave out the rows without a loss, in all measurements; rows that lose it later make the mean infinite."""
        finite = self._finite(facts)
        if not bool(finite.all()):
            left_out = [self.series.rows[at] for at in (~finite).nonzero().flatten().tolist()]
            warnings.warn(
                f"{len(left_out):,} of {len(finite):,} target rows have no labelled token or no finite loss, so the target loss "
                f"does not include them: {', '.join(map(str, left_out[:ROWS_NAMED]))}.",
                TargetLossUnknownWarning,
                stacklevel=6,
            )
        self._restrict_to(finite.nonzero().flatten().tolist())
        return RowFacts(*(values[finite] for values in vars(facts).values()))

    def _restrict_to(self, kept: Sequence[int]) -> None:
        series = self.series
        if len(kept) == len(series.rows):
            return
        self.rows = rows_of(self.rows, list(kept))
        series.rows = [series.rows[at] for at in kept]
        series.groups = None if series.groups is None else [series.groups[at] for at in kept]

    def _record(self, point: TargetLoss, state: TrainerState, tracked: bool) -> None:
        """Log a point, and write the series, so that it is complete even if the run is killed."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / SERIES_FILE, self.series.to_dict())
        if point.event == START:
            self._not_logged = point
        elif not tracked:
            state.log_history.append({METRIC: point.loss, "epoch": state.epoch, "step": state.global_step})
        else:
            log_metrics(self.parts, state, {METRIC: point.loss})

    def _measure_final(self, state: TrainerState) -> None:
        """Measure the loss at the end, unless it is known; that of the model which the Trainer has loaded at the end."""
        loaded = self.parts.args.load_best_model_at_end and state.best_model_checkpoint is not None
        if loaded:
            self._measure(state, AT_THE_END, again=True)
        else:
            self.measure(state)

    # ---- The best adapter ----

    def _compare(self, state: TrainerState) -> None:
        """Keep the adapter if its loss is the lowest so far; note if it is higher."""
        points = self.series.points
        if not self.config.stop_when_target_rises or self.best is None or points[-1].passes is None:
            return
        best = best_point(self.series, self.restarts)
        if best is points[-1] and self.best.step != best.step:
            self._keep(state)
        elif best is not None and points[-1].loss > best.loss:
            self.rose = True

    def _keep(self, state: TrainerState) -> None:
        best = best_point(self.series, self.restarts)
        self.best = BestAdapter.of(self.parts.model, 0 if best is None else best.step)
        if state.is_world_process_zero:
            self.best.save(self.folder)

    # ---- Resuming ----

    def resume(self, state: TrainerState, checkpoint: Path) -> None:
        """Continue the series of an interrupted run.

        Args:
            state (`TrainerState`): at the checkpoint.
            checkpoint (`Path`): artifact folder of the checkpoint.

        Raises:
            ValueError: if it has no series, or no best adapter, and `stop_when_target_rises` needs it.
        """
        # Trainer writes a checkpoint before its callbacks add to it; if the run was killed in between, the files in the
        # output folder are those of its last step
        places = [folder for folder in (checkpoint, self.folder) if (folder / SERIES_FILE).is_file()]
        if not places:
            self._give_up(f"{checkpoint} has no {SERIES_FILE} with the losses before", state)
            return
        series = TargetSeries.from_dict(read_json(places[0] / SERIES_FILE)).up_to(state.global_step)
        position_of = {number: at for at, number in enumerate(self.series.rows)}
        other = series.digest != self.series.digest or series.held_out != self.series.held_out
        if other or not set(series.rows) <= set(position_of):
            self._give_up(f"{places[0] / SERIES_FILE} is of other target rows", state)
            return
        self._restrict_to([position_of[number] for number in series.rows])
        self.series = series
        if self.config.stop_when_target_rises and self.selected:
            self._resume_best(places[0], state)

    def _resume_best(self, folder: Path, state: TrainerState) -> None:
        """Read the best adapter so far.

        Raises:
            ValueError: if it is not there.
        """
        best = best_point(self.series, self.restarts)
        self.best = BestAdapter.load(folder)
        if best is None or self.best.step != best.step:
            raise ValueError(
                f"{folder / BEST_ADAPTER_FILE} is the adapter of step {self.best.step}, but the target loss was lowest at "
                f"another step; `stop_when_target_rises` could not restore it. Resume from an earlier checkpoint."
            )
        self._compare(state)

    # ---- Records ----

    def _recorded(self, selection: Selection, found: dict[str, Any], state: TrainerState) -> Selection:
        costs = None if selection.costs is None else selection.costs.with_phase(self._cost())
        selection = dataclasses.replace(selection, manifest=selection.manifest | {MANIFEST_KEY: found}, costs=costs)
        return self._written(selection, state)

    def _without_series(self, selection: Selection | None, state: TrainerState) -> Selection | None:
        """The selection of a resumed run without the series of the run before, if it had come to its end."""
        if selection is None or MANIFEST_KEY not in selection.manifest:
            return selection
        manifest = {key: value for key, value in selection.manifest.items() if key != MANIFEST_KEY}
        return self._written(dataclasses.replace(selection, manifest=manifest), state)

    def _written(self, selection: Selection, state: TrainerState) -> Selection:
        if state.is_world_process_zero:
            selection.write_manifest(self.folder / MANIFEST)
        return selection

    def _cost(self) -> PhaseCost:
        """Cost of all measurements."""
        seconds = round(self.clock.seconds.get(TARGET_LOSS, 0.0), 3)
        count = len(self.series.points)
        lengths = row_lengths(self.rows)
        model = self.parts.model
        if lengths is None:
            return PhaseCost(TARGET_LOSS, seconds, count * len(self.rows))
        # a trainer's own loss computes logits at every token
        labelled = self._tokens if self.inputs.loss is None else int(lengths.sum())
        sizes = Sizes(lengths, labelled)
        peak = peak_memory_bytes(model_device(model))
        work = ModelWork.of(model)
        once = scoring_phase(
            work, sizes, self.config, 0, TARGET_LOSS, seconds, forward_only=True, peak_memory_bytes=peak
        )
        return times(once, count)
