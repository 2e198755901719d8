"""The runs of `while_training.py`: one JSON file each."""

import copy
import dataclasses
import shutil
import time
from pathlib import Path

from frontier_parts.data import TOKENS
from frontier_parts.flags import RUNS, keep_settings, lora_of
from transformers import Trainer

from hf_gist import GASTTrainer, GISTDataSelectorCallback
from hf_gist.commands.bench import quiet_arguments
from hf_gist.costs.ledger import CostLedger
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gradients.collect import mean_loss
from hf_gist.training.loading import fresh_lora, padding_collator
from hf_gist.utils.disk import read_json, write, write_json
from hf_gist.utils.step_bar import with_step_bar
from hf_gist.utils.terminal import say
from while_training_parts.costs import Costs
from while_training_parts.methods import COST, METHODS, ONCE, SAMPLES, UNTRAINED, plan
from while_training_parts.tables import markdown


SETTINGS = "while_training.json"
TABLES = "while_training.md"
TRAINER = "trainer"

SHARED = (
    *("model", "budget", "passes", "learning_rate", "batch_size", "lora_target_modules", "max_length"),
    *("pool_rows", "test_rows"),
)
"""Flags that all runs in a folder share."""


class Experiment:
    """All runs of a command.

    Args:
        options: the flags.
        data (`Data`): the rows.
        base (`PreTrainedModel`): the base model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.

    Raises:
        ValueError: if the output folder has runs with other settings or rows.
    """

    def __init__(self, options, data, base, tokenizer):
        self.options = options
        self.data = data
        self.base = base
        self.collator = padding_collator(tokenizer)
        self.folder = Path(options.output)
        self.end = time.monotonic() + 60 * options.minutes
        self.variants = {variant.name: variant for variant in data.variants}
        self.planned = plan(list(self.variants), options.seeds)
        self.lora = lora_of(options)
        keep_settings(self.folder / SETTINGS, {name: getattr(options, name) for name in SHARED} | data.digests())

    def found(self, planned):
        """What a finished run found, or `None`."""
        path = self.folder / RUNS / planned.file
        return read_json(path) if path.exists() else None

    def run(self):
        """Everything that is missing, until the time is over."""
        for planned in self.planned:
            if self.found(planned) is None and time.monotonic() < self.end:
                result = self._result(planned)
                write_json(self.folder / RUNS / planned.file, dataclasses.asdict(planned) | result)
                outcome = f"loss {result['loss']:.4f}" if "loss" in result else f"not run: {result['refused']}"
                say(f"{planned.table}, {planned.method}, {planned.target}, seed {planned.seed}: {outcome}")
                self.write_tables()

    def write_tables(self):
        """Write the tables of all finished runs; returns the Markdown."""
        runs = [found for found in map(self.found, self.planned) if found is not None]
        missing = sum(self.found(planned) is None for planned in self.planned)
        tests = ", ".join(f"{name} {len(rows)}" for name, rows in self.data.tests.items())
        options = self.options
        about = (
            f"Pool of {len(self.data.pool):,} rows; {100 * options.budget:g} % of them for the warm-up, and as many selected, "
            f"{options.passes} passes over these; {options.batch_size} samples trained in a step, learning rate "
            f"{options.learning_rate:g}; test rows: {tests}."
        )
        text = markdown(runs, missing, about)
        write(self.folder / TABLES, lambda name: Path(name).write_text(text, encoding="utf-8"))
        return text

    # ---- One run ----

    def _result(self, planned):
        """What is kept of a run; a price that does not pay for the rows of a selection is a result too."""
        if planned.method == UNTRAINED:
            return self._test(self.base, planned)
        try:
            return self._train(planned)
        except ValueError as error:
            if planned.table != COST:
                raise
            return {"refused": str(error)}

    def _test(self, model, planned):
        test = self.data.tests[self.variants[planned.target].target]
        return {"loss": mean_loss(model, test, self.collator)}

    def _train(self, planned):
        """Train with one method and test the model."""
        variant = self.variants[planned.target]
        method = METHODS[planned.method]
        model = fresh_lora(copy.deepcopy(self.base), self.lora, planned.seed)
        shutil.rmtree(self.folder / TRAINER, ignore_errors=True)
        start = time.perf_counter()
        if method.gist is not None:
            facts = self._with_callback(planned, method, model, variant)
        else:
            facts = self._without_callback(planned, method, model, variant)
        seconds = time.perf_counter() - start
        return self._test(model, planned) | facts | {"seconds": round(seconds, 1)}

    def _steps_of_pass(self, variant):
        """Optimizer steps of the warm-up, and of a pass over the selected rows: whole batches, for equal samples."""
        steps = rows_in_budget(self.options.budget, "rows", len(variant.pool)) // self.options.batch_size
        if not steps:
            raise ValueError(f"`--budget {self.options.budget:g}` is less than one batch. Raise it.")
        return steps

    def _arguments(self, seed, batch_size, **length):
        return quiet_arguments(
            self.folder / TRAINER,
            seed=seed,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            learning_rate=self.options.learning_rate,
            per_device_train_batch_size=batch_size,
            **length,
        )

    def _with_callback(self, planned, method, model, variant):
        """Train with the data selector."""
        cost = self._scoring_cost(planned) if planned.table == COST else None
        steps = self._steps_of_pass(variant)
        config = method.callback_config(steps * self.options.batch_size, steps, planned.seed, cost)
        callback = GISTDataSelectorCallback(config, target_dataset=variant.targets)
        arguments = self._arguments(planned.seed, self.options.batch_size, num_train_epochs=1 + self.options.passes)
        trainer = Trainer(
            model, arguments, train_dataset=variant.pool, data_collator=self.collator, callbacks=[callback]
        )
        with_step_bar(trainer, planned.method).train()
        ledger = CostLedger.load(self.folder / TRAINER / "gist")
        steps = trainer.state.global_step
        counted = sum(phase.flops for phase in ledger.phases if phase.phase != "target loss")
        return {
            "steps": steps,
            "samples": steps * self.options.batch_size,
            "selection_passes": ledger.selection_passes(),
            "passes": counted / ledger.pool_pass_flops,
            "sources": self._sources(callback.run.selection.indices, variant),
        }

    def _without_callback(self, planned, method, model, variant):
        """Train on random rows with the stock trainer or with GAST."""
        size = self.options.batch_size
        given = size if method.gast is None else 2 * size
        steps = self._steps_of_pass(variant) * (1 + self.options.passes)
        config = None if method.gast is None else method.trainer_config(size, planned.seed)
        step = Costs(model, variant).of_step(given, 0 if config is None else config.support_batch_size)
        if planned.table == COST:
            steps = round(self._once(planned)["passes"] / step)
        arguments = self._arguments(planned.seed, given, max_steps=steps)
        data = {"train_dataset": variant.pool.select_columns(TOKENS), "data_collator": self.collator}
        if config is None:
            trainer = Trainer(model, arguments, **data)
        else:
            trainer = GASTTrainer(model, arguments, gast_config=config, support_dataset=variant.targets, **data)
        with_step_bar(trainer, planned.method).train()
        return {"steps": steps, "samples": steps * size, "selection_passes": 0.0, "passes": steps * step}

    def _once(self, planned):
        """What selecting once found, with the same seed and target."""
        return self.found(dataclasses.replace(planned, table=SAMPLES, method=ONCE))

    def _scoring_cost(self, planned):
        """The price of each selection with which selecting again costs as much in all as selecting once."""
        return self._once(planned)["selection_passes"] / self.options.passes

    def _sources(self, rows, variant):
        """Rows of the latest selection by their source."""
        sources = self.data.pool.select([variant.kept[row] for row in rows])["source"]
        return {name: sources.count(name) for name in sorted(set(sources))}
