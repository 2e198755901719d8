"""The measurements that the arms of a comparison select from, and the cost of each scorer."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from hf_gist.commands.compare.arms import ARMS, LABELS, RANDOM, config_of
from hf_gist.commands.warmed import warmed_model
from hf_gist.commands.workspace import Workspace
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.leaks import Leaks, find_leaks
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gist.scorers.table import SCORERS
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.offline import select
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.disk import read_json, write_json
from hf_gist.utils.terminal import say


SCORED_WITH = "scored_with.json"


@dataclass
class Scores:
    """Measurements by scorer, computed at first use and saved to disk.

    Args:
        workspace (`Workspace`): model, pool and targets.
        base (`PreTrainedModel`): the base model.
        warmup (`WarmupSettings`): of the warm-up.
        config (`GISTConfig`): settings that the arms share.
        folder (`Path`): holds a folder per scorer.
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
    _loaded: dict[str, tuple[Measurements, float]] = field(default_factory=dict)
    _leaks: list[Leaks | None] | None = None

    def of(self, scorer: str) -> tuple[Measurements, float]:
        """Measurements of a scorer, and the seconds they took with their warm-up."""
        if scorer not in self._loaded:
            self._loaded[scorer] = self._load(scorer)
        return self._loaded[scorer]

    def _load(self, scorer: str) -> tuple[Measurements, float]:
        folder = self.folder / scorer
        reused = (folder / SCORED_WITH).exists()
        if reused:
            about = read_json(folder / SCORED_WITH)
            refuse_other_settings(about["settings"], self.settings, folder)
        else:
            about = {"settings": self.settings, "seconds": round(self._measure(scorer, folder), 1)}
            write_json(folder / SCORED_WITH, about)
        measured = Selection.load(folder).measurements
        if reused:
            # an earlier comparison may have had other test rows
            measured = dataclasses.replace(measured, **self._leaked())
        if self.target is not None:
            measured = measured.for_targets(*self.target)
        return measured, about["seconds"]

    def _leaked(self) -> dict[str, Any]:
        """The rows of the pool that are target or test rows of this comparison, or repeat each other."""
        if self._leaks is None:
            space = self.workspace
            self._leaks = [find_leaks(space.pool, space.targets, self.tests, space.tokenizer)]
        (leaks,) = self._leaks
        return {"leaked": None} if leaks is None else leaks.measured(len(self.workspace.pool))

    def _measure(self, scorer: str, folder: Path) -> float:
        """Score into `folder`; returns the seconds of scoring and warm-up, even if the warm-up was shared."""
        say(f"measuring: {scorer}")
        config = config_of(ARMS.get(scorer, ARMS[RANDOM]), self.config)
        model, checkpoints, seconds_of_warmup = self._model(scorer, config)
        start = time.perf_counter()
        select(
            model,
            self.workspace.pool,
            self.workspace.targets,
            config,
            data_collator=self.workspace.collator,
            checkpoints=checkpoints,
            eval_dataset=self.tests,
            output_dir=folder,
        )
        model.unload()
        return seconds_of_warmup + time.perf_counter() - start

    def _model(self, scorer: str, config: GISTConfig) -> tuple[PeftModel, Sequence[AdamCheckpoint], float]:
        """The model to score with, the checkpoints of its warm-up, and the seconds the warm-up took."""
        if scorer == LABELS:
            return fresh_lora(self.base, self.warmup, config.seed), [], 0.0
        warmed = warmed_model(self.workspace, self.base, self.warmup, config, self.tests)
        return warmed.model, warmed.checkpoints, warmed.cost.seconds


def passes_of(scorer: str, warmup: WarmupSettings, config: GISTConfig, rows: int, blocks: int) -> float:
    """Cost of scoring in passes over the pool (forward and backward); a forward pass alone counts half.

    Args:
        scorer (`str`): name of the scorer.
        warmup (`WarmupSettings`): batch size and checkpoints of the warm-up.
        config (`GISTConfig`): settings that the arms share.
        rows (`int`): rows of the pool.
        blocks (`int`): transformer blocks of the model.
    """
    if scorer == LABELS:
        return 0.0
    trained = config.warmup_ratio
    if config.warmup_steps is not None:
        trained = config.warmup_steps * warmup.per_device_train_batch_size / rows
    if SCORERS[scorer].forward_only:
        return trained + 0.5
    passed = 0.5 + 0.5 * (config.score_layers or blocks) / blocks
    if SCORERS[scorer].needs_adam:
        return trained + passed * warmup.less_checkpoints
    return trained + passed
