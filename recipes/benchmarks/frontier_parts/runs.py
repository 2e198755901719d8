"""The runs of `frontier.py`: one JSON file each, seed by seed and arm by arm, until the time is over."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frontier_parts.arms import UNTRAINED, Arm, Choice
from frontier_parts.cases import Case, Refused
from frontier_parts.data import Data, Variant
from frontier_parts.flags import RUNS, keep_settings, lora_of
from frontier_parts.scores import Scores
from hf_gist.commands.bench import Bench
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gradients.collect import mean_loss
from hf_gist.training.loading import padding_collator
from hf_gist.utils.disk import read_json, write_json
from hf_gist.utils.terminal import say


SETTINGS = "frontier.json"

TRAINING = {"lr_scheduler_type": "linear", "warmup_steps": 0.05, "train_sampling_strategy": "group_by_length"}
"""`TrainingArguments` of every run."""


def run_file(folder: Path, arm: str, variant: str, seed: int | None) -> Path:
    """The file of one run."""
    end = "" if seed is None else f"-seed{seed}"
    return folder / RUNS / f"{arm}-{variant.replace(', ', '-').replace(' ', '_')}{end}.json"


class Experiment:
    """All runs of a command.

    Args:
        options: the flags.
        data (`Data`): the rows.
        base (`PreTrainedModel`): the base model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        arms (`dict[str, Arm]`): the arms to run, in their order.

    Raises:
        ValueError: if the output folder has runs with other settings or rows, or if the runs would be too short.
    """

    def __init__(
        self,
        options: Any,
        data: Data,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arms: dict[str, Arm],
    ) -> None:
        self.options = options
        self.data = data
        self.arms = arms
        self.folder = Path(options.output)
        self.settings = lora_of(options)
        self.tokenizer = tokenizer
        trainer = self.folder / "trainer"
        self.bench = Bench(base, padding_collator(tokenizer), data.tests, self.settings, trainer, mean_loss, TRAINING)
        self.end = time.monotonic() + 60 * options.minutes
        self._check_steps()
        self._check_settings()

    def _check_steps(self) -> None:
        """Check that every run trains: the learning rate of the first optimizer step is 0."""
        for variant in self.data.variants:
            rows = rows_in_budget(self.options.budget, "rows", len(variant.pool))
            if self.options.passes * math.ceil(rows / self.options.batch_size) < 2:
                raise ValueError(
                    f"{variant.name}: {self.options.passes} pass over {rows} rows in batches of {self.options.batch_size} is "
                    "one optimizer step, whose learning rate is 0. Raise `--passes` or `--budget`, or lower `--batch_size`."
                )

    def _check_settings(self) -> None:
        names = ("model", "budget", "passes", "learning_rate", "batch_size", "lora_target_modules", "max_length")
        settings = {name: getattr(self.options, name) for name in names} | self.data.digests()
        keep_settings(self.folder / SETTINGS, settings)

    # ---- What runs ----

    def planned(self) -> list[tuple[str, str, int | None]]:
        """Arm, variant and seed of every run, in their order; the untrained model has no seed."""
        names = [variant.name for variant in self.data.variants]
        untrained = [(UNTRAINED, name, None) for name in names if UNTRAINED in self.arms]
        trained = [arm for arm in self.arms if arm != UNTRAINED]
        return untrained + [(arm, name, seed) for seed in self.options.seeds for arm in trained for name in names]

    def missing(self) -> list[tuple[str, str, int | None]]:
        """The runs that are not finished."""
        return [key for key in self.planned() if not run_file(self.folder, *key).exists()]

    def finished(self) -> list[dict[str, Any]]:
        """The results of all planned runs that are finished, in their order."""
        files = [run_file(self.folder, *key) for key in self.planned()]
        return [read_json(file) for file in files if file.exists()]

    def in_time(self) -> bool:
        """Whether another run may begin."""
        return time.monotonic() < self.end

    def run(self) -> Iterator[str]:
        """Everything that is missing, until the time is over: the untrained model, then seed by seed.

        Yields:
            `str`: the name of each arm after its runs.
        """
        if UNTRAINED in self.arms:
            self._test_untrained()
            yield UNTRAINED
        for seed in self.options.seeds:
            scores = Scores(self.bench.base, self.tokenizer, self.settings, self.data, self.folder, seed)
            cases = {variant.name: Case(variant, scores, self.options.budget) for variant in self.data.variants}
            for name, arm in self.arms.items():
                if arm.choose is not None and self.in_time():
                    self._run_arm(name, arm, cases, seed)
                    yield name

    def _waiting(self, arm: str, seed: int | None) -> list[Variant]:
        """The variants that an arm has not been run for."""
        return [v for v in self.data.variants if not run_file(self.folder, arm, v.name, seed).exists()]

    def _test_untrained(self) -> None:
        waiting = self._waiting(UNTRAINED, None)
        if waiting and self.in_time():
            losses = self.bench.results(self.bench.base)
            for variant in waiting:
                self._write(UNTRAINED, variant.name, None, {"loss": losses[variant.target]})

    def _run_arm(self, name: str, arm: Arm, cases: dict[str, Case], seed: int) -> None:
        """Train an arm for every variant; one training serves all that get the same rows."""
        by_rows: dict[tuple[int, ...], list[tuple[Variant, Choice]]] = {}
        for variant in self._waiting(name, seed):
            try:
                choice = arm.choose(cases[variant.name])
            except Refused as error:
                self._write(name, variant.name, seed, {"refused": str(error)})
                continue
            by_rows.setdefault(tuple(variant.kept[row] for row in choice.rows), []).append((variant, choice))
        for rows, served in by_rows.items():
            if self.in_time():
                self._train(name, list(rows), served, cases, seed)

    def _train(
        self, name: str, rows: list[int], served: list[tuple[Variant, Choice]], cases: dict[str, Case], seed: int
    ) -> None:
        pool = self.data.pool.select(rows)
        tests = {variant.target: self.data.tests[variant.target] for variant, _ in served}
        bench = replace(self.bench, tests=tests)
        title = f"{name}, seed {seed}"
        data = pool.select_columns(["input_ids", "labels"])
        trained = bench.train(data, title, seed, num_train_epochs=self.options.passes)
        facts = {"rows": len(rows), "train_seconds": trained.seconds}
        facts |= {"sources": dict(Counter(pool["source"]).most_common())}
        for variant, choice in served:
            own = {"loss": trained.results[variant.target], "selection_passes": choice.passes}
            passes = self.options.passes * cases[variant.name].training_passes(choice.rows)
            self._write(name, variant.name, seed, own | {"training_passes": passes} | facts)

    def _write(self, arm: str, variant: str, seed: int | None, found: dict[str, Any]) -> None:
        about = {"arm": arm, "target": variant, "seed": seed, "selection_passes": 0.0, "training_passes": 0.0}
        write_json(run_file(self.folder, arm, variant, seed), about | found)
        result = f"loss {found['loss']:.4f}" if "loss" in found else f"not run: {found['refused']}"
        say(f"{arm}, {variant}, seed {seed}: {result}")
