"""What the arms of a comparison select from, saved and reused, and what it cost."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_gist.commands.compare.arms import ARMS, LABELS, PLANNED, RANDOM, config_of
from hf_gist.commands.compare.baselines import (
    BASELINES,
    TARGET_EPOCHS,
    BaselineInputs,
    load_row_scores,
    score_baseline,
    scores_for,
)
from hf_gist.commands.warmed import check_warm_up, warmed_model
from hf_gist.commands.workspace import Workspace
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.ledger import COSTS, CostLedger, PhaseCost
from hf_gist.data.copies import digest
from hf_gist.data.leaks import Leaks, find_leaks
from hf_gist.data.rows import content_digest, read_column
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.offline import select
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.disk import as_json, read_json, write_json
from hf_gist.utils.terminal import say


SCORED_WITH = "scored_with.json"


@dataclass(frozen=True)
class Scored:
    """What an arm selects from.

    Args:
        measured (`Measurements`): of a scorer; of a baseline, those with the label counts.
        seconds (`float`): of scoring and its warm-up.
        passes (`float`): cost of scoring and its warm-up in training passes over the pool.
        row_scores (`Tensor`, *optional*): of a baseline, see [`rows_by_scores`].
    """

    measured: Measurements
    seconds: float
    passes: float
    row_scores: Tensor | None = None


@dataclass
class Scores:
    """Measurements by scorer and row scores by baseline, computed at first use and saved to disk.

    Args:
        workspace (`Workspace`): model, pool and targets.
        base (`PreTrainedModel`): the base model.
        warmup (`WarmupSettings`): of the warm-up.
        config (`GISTConfig`): settings that the arms share.
        folder (`Path`): holds a folder per scorer and baseline.
        settings (`dict`): settings that the scores depend on.
        tests (`Dataset`, *optional*): all test rows, which must not be selected.
        target (`tuple[str, str]`, *optional*): column and value of the target rows to keep; by default all.
    """

    workspace: Workspace
    base: PreTrainedModel
    warmup: WarmupSettings
    config: GISTConfig
    folder: Path
    settings: dict[str, Any]
    tests: Dataset | None
    target: tuple[str, str] | None = None
    _loaded: dict[str, Scored] = field(default_factory=dict)
    _leaks: list[Leaks | None] | None = None

    def of(self, scorer: str) -> Scored:
        """What a scorer or a baseline has measured, and what it cost with its warm-up."""
        if scorer not in self._loaded:
            self._loaded[scorer] = self._baseline(scorer) if scorer in BASELINES else self._load(scorer)
        return self._loaded[scorer]

    def _load(self, scorer: str) -> Scored:
        if scorer == PLANNED:
            return self._planned()
        folder = self.folder / scorer
        seconds = self._seconds(folder, self.settings, lambda: self._measure(scorer, folder, self.workspace))
        measured = self._loaded_from(folder)
        if self.target is not None:
            measured = measured.for_targets(*self.target)
        return Scored(measured, seconds, passes_of(folder))

    def _planned(self) -> Scored:
        """The scores within `scoring_cost`, which are of the rows nearest to the target rows that are kept."""
        folder, settings = self._place_for_target(PLANNED)
        settings = settings | as_json(self._shortlisted_by())
        space = self.own_targets()
        seconds = self._seconds(folder, settings, lambda: self._measure(PLANNED, folder, space))
        return Scored(self._loaded_from(folder), seconds, passes_of(folder))

    def _loaded_from(self, folder: Path) -> Measurements:
        """Saved measurements, with the rows that must not be selected in this comparison."""
        # an earlier comparison may have had other test rows, and a plan for some target rows knows only those
        return dataclasses.replace(Selection.load(folder).measurements, **self._leaked())

    def _shortlisted_by(self) -> dict[str, Any]:
        """Settings that decide which rows are scored within `scoring_cost`."""
        names = ["scoring_cost", "budget", "budget_unit", "source_shares", "source_max"]
        names += ["drop_target_duplicates", "drop_pool_duplicates"]
        found = {name: getattr(self.config, name) for name in names}
        return found | {"test rows": None if self.tests is None else content_digest(self.tests)}

    def own_targets(self) -> Workspace:
        """The workspace with only the target rows that are kept.

        Raises:
            ValueError: if no row has the value, with those that there are.
        """
        if self.target is None:
            return self.workspace
        column, value = self.target
        values = [str(found) for found in read_column(self.workspace.targets, column, "target_column")]
        rows = [row for row, found in enumerate(values) if found == value]
        if not rows:
            known = ", ".join(sorted(set(values)))
            raise ValueError(f"`--target_value {value}` is not in the column {column!r}. Values: {known}.")
        return dataclasses.replace(self.workspace, targets=self.workspace.targets.select(rows))

    def check_plan(self) -> None:
        """Raise before any training if `scoring_cost` does not pay for enough rows."""
        config = config_of(ARMS[PLANNED], self.config)
        check_warm_up(self.own_targets(), self.base, self.warmup, config, self.tests)

    def _baseline(self, name: str) -> Scored:
        """The row scores of a baseline, which selects from the rows by their label counts, leaks and copies."""
        measured = self.of(LABELS).measured
        folder, settings = self._place_of(name)
        given = BaselineInputs(self.workspace, self.base, self.warmup, self.config, measured, folder)
        seconds = self._seconds(folder, settings, lambda: _save_baseline(name, given))
        scores = scores_for(name, load_row_scores(folder), measured)
        return Scored(measured, seconds, passes_of(folder), scores)

    def _place_of(self, baseline: str) -> tuple[Path, dict[str, Any]]:
        """The folder of a baseline and all settings of its scores, with the target rows if these depend on them."""
        if BASELINES[baseline].of_each_target:
            return self.folder / baseline, self.settings
        folder, settings = self._place_for_target(baseline)
        return folder, settings | as_json({"target_epochs": TARGET_EPOCHS})

    def _place_for_target(self, name: str) -> tuple[Path, dict[str, Any]]:
        """The folder and all settings of scores that serve only the target rows that are kept."""
        # the values of a column may be no file names
        suffix = "" if self.target is None else f"-{digest(repr(self.target).encode()).hex()[:12]}"
        return self.folder / f"{name}{suffix}", self.settings | as_json({"target": self.target})

    def _seconds(self, folder: Path, settings: dict[str, Any], score: Callable[[], float]) -> float:
        """Seconds that the scores in a folder took, now or in an earlier comparison."""
        if (folder / SCORED_WITH).exists():
            about = read_json(folder / SCORED_WITH)
            refuse_other_settings(about["settings"], settings, folder)
            return about["seconds"]
        about = {"settings": settings, "seconds": round(score(), 1)}
        write_json(folder / SCORED_WITH, about)
        return about["seconds"]

    def _leaked(self) -> dict[str, Any]:
        """The rows of the pool that are target or test rows of this comparison, or repeat each other."""
        if self._leaks is None:
            space = self.workspace
            self._leaks = [find_leaks(space.pool, space.targets, self.tests, space.tokenizer)]
        (leaks,) = self._leaks
        return {"leaked": None} if leaks is None else leaks.measured(len(self.workspace.pool))

    def _measure(self, scorer: str, folder: Path, workspace: Workspace) -> float:
        """Score into `folder`; returns the seconds of scoring and warm-up, even if the warm-up was shared."""
        say(f"measuring: {scorer}")
        config = config_of(ARMS.get(scorer, ARMS[RANDOM]), self.config)
        model, checkpoints, warmup = self._model(scorer, config, workspace)
        start = time.perf_counter()
        select(
            model,
            workspace.pool,
            workspace.targets,
            config,
            data_collator=workspace.collator,
            checkpoints=checkpoints,
            eval_dataset=self.tests,
            output_dir=folder,
            warmup=warmup,
        )
        seconds = time.perf_counter() - start
        model.unload()
        return seconds + (0.0 if warmup is None else warmup.seconds)

    def _model(
        self, scorer: str, config: GISTConfig, workspace: Workspace
    ) -> tuple[PeftModel, Sequence[AdamCheckpoint], PhaseCost | None]:
        """The model to score with, the checkpoints of its warm-up, and the cost of the warm-up."""
        if scorer == LABELS:
            return fresh_lora(self.base, self.warmup, config.seed), [], None
        warmed = warmed_model(workspace, self.base, self.warmup, config, self.tests)
        return warmed.model, warmed.checkpoints, warmed.cost


def _save_baseline(name: str, given: BaselineInputs) -> float:
    """Score into the folder of a baseline; returns the seconds of scoring and training."""
    say(f"measuring: {name}")
    scored = score_baseline(name, given)
    scored.save(given.folder)
    return scored.costs.totals()["selection_seconds"]


def ledger_of(folder: Path) -> CostLedger:
    """The costs of saved scores.

    Raises:
        ValueError: if the folder has none.
    """
    costs = CostLedger.load(folder)
    if costs is None:
        raise ValueError(
            f"{folder / COSTS} does not exist, so the cost of the scores there is not known. Delete the folder to score "
            "again."
        )
    return costs


def passes_of(folder: Path) -> float:
    """Cost of saved scores, warm-up included, in training passes over the pool."""
    # the rows are tokenised, so the cost of a pass is known
    return ledger_of(folder).selection_passes() or 0.0
