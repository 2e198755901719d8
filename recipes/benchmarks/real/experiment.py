"""The runs of `real_model.py` in order."""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import transformers

from hf_gist.commands.preparing import Preparer
from hf_gist.data.rows import content_digest
from hf_gist.gradients.models import weights_digest
from hf_gist.training.loading import load_tokenizer, padding_collator, positions
from hf_gist.utils.disk import write, write_json
from real.arms import EVERY_ARM, LABELS, UNTRAINED, WHOLE, random_order
from real.clock import Clock
from real.data import file_digests, read_data, without_scores
from real.gast import gast_arms, trainer_of
from real.plans import plan_for, scored_only
from real.results import Key, Results, sources_of
from real.scores import Scores, gist_config, proxy_scores
from real.table import markdown
from real.training import Bench, load_model
from real.workers import run_in_processes


SHARED = (
    *("pool_rows", "test_rows", "max_length", "budgets", "passes", "whole_pool_passes", "learning_rate", "batch_size"),
    *("lora_target_modules", "tokens_per_batch", "device", "dtype", "attn_implementation"),
)
"""Options that all runs in a folder share."""

OF_GAST = ("gast_rows", "gast_passes", "rows_at_once")
"""Options that all runs with GAST share."""


@dataclass(frozen=True)
class Training:
    """One training run, with all test sets that its model is tested on.

    Args:
        arm (`str`): its name.
        targets (`tuple[str]`): names of the test sets.
        budget (`float`, *optional*): share of the pool.
        seed (`int`, *optional*): the untrained model has none.
    """

    arm: str
    targets: tuple[str, ...]
    budget: float | None = None
    seed: int | None = None

    def keys(self):
        """What is kept of it."""
        return [Key(self.arm, name, self.budget, self.seed) for name in self.targets]


def trainings(options):
    """All runs, in an order in which an interruption leaves whole comparisons: all arms of a seed, then the next.

    The whole pool and GAST take as long as a seed of the other arms: once after the first seed, then last.
    """
    names = tuple(options.targets)
    first, *others = options.seeds
    found = [Training(UNTRAINED, names)] if UNTRAINED in options.arms else []
    for part in ([first], others):
        found += [run for seed in part for run in of_seed(options, seed, names)]
        found += [Training(WHOLE, names, None, seed) for seed in part if WHOLE in options.arms]
        if options.gast:
            found += [
                Training(arm, names, None, seed)
                for seed in part
                for arm in gast_arms(options.gast, options.gast_support)
            ]
    return found


def of_seed(options, seed, names):
    """The runs with a budget of one seed; arms whose rows are the same for all targets come first."""
    arms = [arm for arm in options.arms if arm not in (UNTRAINED, WHOLE)]
    for budget in options.budgets:
        yield from (Training(arm, names, budget, seed) for arm in arms if not EVERY_ARM[arm].by_target)
        for name in names:
            yield from (Training(arm, (name,), budget, seed) for arm in arms if EVERY_ARM[arm].by_target)


class Experiment:
    """The model, the data and the finished runs.

    Args:
        options (`Namespace`): of the script.
        command (`str`): the command line, for the results.

    Raises:
        ValueError: for other settings than those of an earlier start into the same folder, or wrong data.
    """

    def __init__(self, options, command):
        self.options = options
        self.command = command
        self.folder = Path(options.output)
        tokenizer, _ = load_tokenizer(options.model, None, False)
        base = load_model(options.model, options)
        self.data = read_data(options, Preparer(tokenizer, positions(base)))
        if options.gast and options.gast_rows > len(self.data.pool):
            raise ValueError(f"--gast_rows {options.gast_rows}: the pool has only {len(self.data.pool)} rows.")
        self.clock = Clock(options.end)
        self.bench = Bench(options, base, self.data, padding_collator(tokenizer), self.clock)
        self.unscored = without_scores(self.data)
        rows = list(range(len(self.data.pool)))
        shared = (self.unscored, self.folder, self.clock)
        self.scores = Scores(options, base, self.data, rows, *shared)
        self.proxy = proxy_scores(options, self.data, *shared, base) if options.proxy_model else None
        self.results = Results(self.folder, self.settings())

    def settings(self):
        """Everything that results depend on besides arm, seed and target."""
        found = {name: getattr(self.options, name) for name in SHARED}
        found |= {"model": identity(self.options.model, self.scores.base)}
        found |= file_digests(self.options)
        found |= {"pool without target and test rows": content_digest(self.data.pool)[:16]}
        if self.proxy is not None:
            found |= {"proxy_model": identity(self.options.proxy_model, self.proxy.base)}
        if self.options.gast:
            found |= {name: getattr(self.options, name) for name in OF_GAST}
        return found

    @cached_property
    def planned(self):
        """All runs of this start."""
        return trainings(self.options)

    def run(self):
        """Finish all runs that fit into the time limit; returns what is in `results.json`."""
        print(f"{len(self.data.pool)} rows in the pool", flush=True)
        if self.options.workers > 1:
            run_in_processes(self, self.options.workers)
            return self.write()
        self.to_device()
        self.learn()
        for training in self.planned:
            if self.finish_missing(training):
                self.write()
        return self.write()

    def to_device(self):
        """Move the models to the device of the options."""
        self.bench.base.to(self.options.device)
        if self.proxy is not None:
            self.proxy.base.to(self.options.device)

    def score(self, seed, proxy):
        """Score the pool with a model after its warm-up, for all arms and targets, if it fits into the time limit."""
        scorers = {
            EVERY_ARM[arm].scorer for arm in self.options.arms if arm in EVERY_ARM and EVERY_ARM[arm].proxy == proxy
        }
        scores = self.proxy if proxy else self.scores
        for scorer in sorted(scorers - {LABELS}):
            for target in self.options.targets:
                scores.of(scorer, seed, target)

    def finish_missing(self, training):
        """Train one model, if not all of its results are there; returns whether some were missing."""
        missing = [key for key in training.keys() if not self.results.has(key)]
        if missing:
            self.finish(training, missing)
        return bool(missing)

    def learn(self):
        """What training and testing took in finished runs, for the time limit."""
        for run in self.results.all():
            if "train_seconds" in run:
                self.clock.learn("train", run["train_seconds"], run["rows"] * run["passes"])
            if run["target"] in self.data.tests:
                choices = sum(self.data.tests[run["target"]].sizes)
                self.clock.learn("test", run["test_seconds"], choices)

    def finish(self, training, missing):
        """Train one model, if it fits into the time left, and keep its results on the test sets that are missing."""
        if training.arm == UNTRAINED:
            found = self.bench.base, {}
        elif training.arm in EVERY_ARM:
            found = self.on_chosen_rows(training, missing)
        else:
            found = self.with_gast(training, missing)
        if found is None:
            return
        model, facts = found
        for key in missing:
            results = self.bench.test(model, key.target)
            self.results.add(key, results | {"target_rows": len(self.data.of_target(key.target))} | facts)
            print(
                f"{key.title}: loss {results['loss']:.4f}, accuracy {results['accuracy_by_sum']:.4f} by sum, "
                f"{results['accuracy_by_mean']:.4f} by mean per token, tested in {results['test_seconds']:.1f} s",
                flush=True,
            )

    def on_chosen_rows(self, training, missing):
        """A model trained on the rows of an arm, with the facts of the run."""
        passes = self.options.whole_pool_passes if training.arm == WHOLE else self.options.passes
        rows = len(self.data.pool) if training.budget is None else self.rows_of(training.budget)
        if not self.bench.fits(rows, passes, [key.target for key in missing]):
            return None
        chosen = self.choose(EVERY_ARM[training.arm], rows, training)
        if chosen is None:
            return None
        rows, facts = chosen
        # scoring may have taken the time
        if not self.bench.fits(len(rows), passes, [key.target for key in missing]):
            return None
        model, seconds = self.bench.train(rows, training.seed, passes)
        return model, facts | self.facts(rows, passes, seconds)

    def choose(self, arm, count, training):
        """The rows of an arm, and what they cost."""
        scores = self.proxy if arm.proxy else self.scores
        target = training.targets[0]
        measured = self.unscored.for_targets("source", target), 0.0
        passes = 0.0
        if arm.scorer != LABELS:
            measured = scores.of(arm.scorer, training.seed, target)
            if measured is None:
                return None
            passes = scores.passes(arm.scorer, training.seed)
        measurements, seconds = measured
        config = gist_config(self.options, count, training.seed)
        if arm.scoring_cost is not None:
            try:
                plan = plan_for(arm.scoring_cost, scores, target, config, scores.warmup_rows(training.seed))
            except ValueError as error:
                print(f"{arm.title}, {target}: {error}", flush=True)
                return None
            measurements = scored_only(measurements, plan)
            # in proportion to what was measured for all rows
            seconds = None if seconds is None else seconds * plan.total / passes
            passes = plan.total
        start = time.perf_counter()
        rows = arm.rows(measurements, self.data.pool, self.data.of_target(target), config, training.seed)
        took = None if seconds is None else seconds + time.perf_counter() - start
        return rows, {"selection_passes": passes, "select_seconds": took}

    def with_gast(self, training, missing):
        """A model trained with one mode of GAST, with the facts of the run."""
        rows = random_order(len(self.data.pool), training.seed)[: self.options.gast_rows]
        passes = self.options.gast_passes
        if not self.bench.fits(len(rows), passes, [key.target for key in missing]):
            return None
        more = trainer_of(training.arm, self.data, training.seed)
        model, seconds = self.bench.train(rows, training.seed, passes, **more)
        return model, self.facts(rows, passes, seconds)

    def rows_of(self, budget):
        """A budget in rows."""
        return max(1, round(budget * len(self.data.pool)))

    def facts(self, rows, passes, seconds):
        """What is kept of a training run besides its results."""
        sources = sources_of(self.data.pool, rows)
        return {"rows": len(rows), "passes": passes, "train_seconds": seconds, "sources": sources}

    def report(self):
        """Everything that is written to `results.json`."""
        on_gpu = self.options.device == "cuda"
        about = {
            "command": self.command,
            "pool": len(self.data.pool),
            "selected": {f"{budget:g}": self.rows_of(budget) for budget in self.options.budgets},
            "device_name": torch.cuda.get_device_name() if on_gpu else "CPU",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        missing = [key.title for training in self.planned for key in training.keys() if not self.results.has(key)]
        # infinity is not JSON
        settings = {name: value for name, value in vars(self.options).items() if value != float("inf")}
        return {"settings": settings, "about": about, "missing": missing, "results": self.results.all()}

    def write(self):
        """Rewrite the results of all finished runs; returns what is in `results.json`."""
        report = self.report()
        write_json(self.folder / "results.json", report)
        text = markdown(report)
        write(self.folder / "results.md", lambda name: Path(name).write_text(text, encoding="utf-8"))
        return report


def identity(folder, model):
    """The name of a model's folder, and the start of the digest of its weights."""
    return f"{Path(folder).name} ({weights_digest(model, trainable=True)[:8]})"
