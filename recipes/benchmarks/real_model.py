"""What a selection is worth on a real model: losses and accuracies, against baselines, with several seeds.

    python recipes/benchmarks/real_model.py --model MODEL --data DATA --output OUT
    python recipes/benchmarks/real_model.py --model MODEL --data DATA --output OUT --device cpu --dtype float32 \
        --targets arc_easy --pool_rows 2000 --test_rows 300 --seeds 0 --minutes 60

DATA holds `pool.jsonl` and, for every target, `target_NAME.jsonl` and `test_NAME.jsonl`: rows with `messages`, one
question and its answer; test rows also have `choices` (texts) and `answer` (index). Rows of the pool that are also
target or test rows are left out. Every arm trains a new LoRA on as many rows with the same settings; all targets are
scored in one pass over the pool, after a warm-up on 5 % of it. OUT/results.json and OUT/results.md are rewritten after
every arm; OUT/scores_SCORER_SEED holds the scores of all rows, from which other selections can be made without scoring.
With `--minutes`, arms that would not finish in time are skipped, and named at the end.
"""

import argparse
import copy
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from choices import Choices, answer, encode, read_jsonl
from datasets import Dataset
from real_model_table import markdown
from transformers import AutoModelForCausalLM, Trainer

from hf_gist import GISTConfig, Selection, select
from hf_gist.commands.bench import quiet_arguments
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.leaks import find_leaks
from hf_gist.training.loading import fresh_lora, load_tokenizer, padding_collator
from hf_gist.training.warmup import warmup_rows
from hf_gist.utils.disk import write, write_json
from hf_gist.utils.step_bar import with_step_bar


UNTRAINED, RANDOM, WHOLE = "untrained", "random rows", "whole pool"
PAPER, RECOMMENDED, RDS_PLUS = "GIST, the paper's rule", "GIST, recommended setting", "RDS+, round robin"
SELECTIONS = {
    PAPER: ("gist", {}),
    RECOMMENDED: ("gist", {"score": "cosine", "strategy": "round_robin", "sample_from_top": 3.0}),
    RDS_PLUS: ("rds_plus", {"scorer": "rds_plus", "strategy": "round_robin"}),
}
SCORERS = {"gist": {}, "rds_plus": {"scorer": "rds_plus"}}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="folder of a causal model and its tokenizer with a chat template"
    )
    parser.add_argument("--data", required=True, help="folder with the pool, the targets and the test rows")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--targets", nargs="+", default=["piqa", "arc_easy", "openbookqa"])
    parser.add_argument("--pool_rows", type=int, help="random rows of the pool; default: all")
    parser.add_argument("--test_rows", type=int, help="random rows of each test set; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=0.05, help="share of the pool to train on")
    parser.add_argument("--passes", type=int, default=3, help="passes over the selected or random rows")
    parser.add_argument("--whole_pool_passes", type=int, default=1, help="passes over the whole pool; 0: not at all")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lora_target_modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--max_length", type=int, default=512, help="longer rows of pool and targets are left out")
    parser.add_argument("--tokens_per_batch", type=int, help="of scoring and testing; default: 16384, on a CPU 4096")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16, on a CPU float32")
    options = parser.parse_args(argv)
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.tokens_per_batch = options.tokens_per_batch or (16384 if on_gpu else 4096)
    return options


class Clock:
    """The time limit, and the seconds that each kind of work took per unit when it was last done."""

    def __init__(self, minutes):
        self.end = time.perf_counter() + 60 * minutes
        self.rates = {}

    def fits(self, **work):
        """Whether so many units of each kind of work fit into the time left; work never done before counts as nothing."""
        expected = sum(self.rates.get(kind, 0.0) * units for kind, units in work.items())
        return time.perf_counter() + 1.1 * expected < self.end

    @contextmanager
    def timing(self, kind, units):
        """Measure the block; the list that it gets is filled with the seconds."""
        start, seconds = time.perf_counter(), []
        yield seconds
        seconds.append(time.perf_counter() - start)
        self.rates[kind] = seconds[0] / units


# ---- Data ----


def some_of(rows, count):
    """`count` random rows in their order, the same in every run; `None` means all."""
    if count is None or count >= len(rows):
        return rows
    kept = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return [rows[i] for i in sorted(kept.tolist())]


def as_tokens(rows, tokenizer, name, max_length):
    """A tokenised dataset with a column `source`, without rows that are too long."""
    names = [f"Row {number} of {name}" for number in range(len(rows))]
    encoded = encode([row["messages"] for row in rows], tokenizer, names)
    pairs = zip(encoded, rows, strict=True)
    kept = [
        tokens | {"source": row.get("source", name)} for tokens, row in pairs if len(tokens["input_ids"]) <= max_length
    ]
    if len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows have more than {max_length} tokens, left out")
    if not kept:
        raise ValueError(f"{name} has no rows.")
    return Dataset.from_list(kept)


def read_data(options, tokenizer):
    """The pool, all targets as one dataset (their names in the column `source`), and the test sets by name."""
    data = Path(options.data)
    targets, tests = [], {}
    for name in options.targets:
        rows = read_jsonl(data / f"target_{name}.jsonl")
        targets += [row | {"source": name} for row in rows]
        test = some_of(read_jsonl(data / f"test_{name}.jsonl"), options.test_rows)
        tests[name] = Choices.of(test, tokenizer, f"test_{name}.jsonl")
    targets = as_tokens(targets, tokenizer, "targets", options.max_length)
    pool = some_of(read_jsonl(data / "pool.jsonl"), options.pool_rows)
    pool = as_tokens(pool, tokenizer, "pool.jsonl", options.max_length)
    held_out = {name: test.right() for name, test in tests.items()}
    leaked = find_leaks(pool, targets, held_out, tokenizer, quiet=True).mask(len(pool))
    if leaked.any():
        print(f"pool.jsonl: {int(leaked.sum())} rows are also target or test rows, left out")
    return pool.select((~leaked).nonzero().flatten().tolist()), targets, tests


# ---- Arms ----


class Experiment:
    """The model, the data and the results so far."""

    def __init__(self, options):
        self.options = options
        self.clock = Clock(options.minutes)
        self.tokenizer, _ = load_tokenizer(options.model, None, False)
        self.collator = padding_collator(self.tokenizer)
        self.pool, self.targets, self.tests = read_data(options, self.tokenizer)
        self.rows = max(1, round(options.budget * len(self.pool)))
        dtype = getattr(torch, options.dtype)
        self.base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
        self.settings = WarmupSettings(
            lora_alpha=32, lora_dropout=0.0, lora_target_modules=options.lora_target_modules,
            learning_rate=options.learning_rate, per_device_train_batch_size=options.batch_size,
        )  # fmt: skip
        self.compute_dtype = "bfloat16" if options.dtype == "bfloat16" else "auto"
        self.folder = Path(options.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = []

    def planned(self):
        """Arm, seed and target of every result that a complete run has."""
        arms = [RANDOM, *SELECTIONS, *([WHOLE] if self.options.whole_pool_passes else [])]
        trained = [(arm, seed, name) for arm in arms for seed in self.options.seeds for name in self.tests]
        return [(UNTRAINED, None, name) for name in self.tests] + trained

    def config(self, seed, **fields):
        more = {"scoring_tokens_per_batch": self.options.tokens_per_batch, "scoring_dtype": self.compute_dtype}
        return GISTConfig(budget=self.rows, seed=seed, **more, **fields)

    def train(self, rows, seed, passes):
        """A new LoRA trained on some rows of the pool with the stock Trainer, and the seconds of the training."""
        model = fresh_lora(copy.deepcopy(self.base), self.settings, seed)
        arguments = quiet_arguments(
            self.folder / "trainer", seed=seed, num_train_epochs=passes, lr_scheduler_type="linear", warmup_steps=0.05,
            learning_rate=self.settings.learning_rate, per_device_train_batch_size=self.options.batch_size,
            use_cpu=self.options.device == "cpu", bf16=self.options.dtype == "bfloat16",
        )  # fmt: skip
        data = self.pool.select(rows).select_columns(["input_ids", "labels"])
        trainer = with_step_bar(Trainer(model, arguments, train_dataset=data, data_collator=self.collator), "training")
        with self.clock.timing("train", len(rows) * passes) as seconds:
            trainer.train()
        return model, seconds[0]

    def test(self, arm, seed, model, names, **facts):
        """Test a model on some of the test sets, and write all results."""
        for name in names:
            choices = self.tests[name]
            with self.clock.timing("test", len(choices.encoded)) as seconds:
                answers = answer(model, choices, self.collator, self.options.tokens_per_batch, self.compute_dtype)
            found = {"arm": arm, "seed": seed, "target": name} | measured(answers) | facts
            self.results.append(found | {"test_seconds": seconds[0]})
            print(
                f"{title(arm, seed)}, {name}: loss {found['loss']:.4f}, accuracy {found['accuracy_by_sum']:.4f} by sum, "
                f"{found['accuracy_by_mean']:.4f} by mean per token, tested in {seconds[0]:.1f} s",
                flush=True,
            )
        self.write()

    def train_and_test(self, arm, seed, rows, names, passes, **facts):
        """One arm, if it fits into the time left."""
        answers = sum(len(self.tests[name].encoded) for name in names)
        if self.clock.fits(train=len(rows) * passes, test=answers):
            model, seconds = self.train(rows, seed, passes)
            sources = dict(Counter(self.pool.select(rows)["source"]).most_common())
            more = {"rows": len(rows), "passes": passes, "train_seconds": seconds, "sources": sources}
            self.test(arm, seed, model, names, **more, **facts)

    def scored(self, seed):
        """Scorer to its selection for all targets together and its seconds, with the warm-up, if they fit."""
        warmup = warmup_rows(self.config(seed), self.settings, len(self.pool))
        if not self.clock.fits(train=len(warmup)):
            return {}
        model, seconds_of_warmup = self.train(warmup, seed, 1)
        found = {}
        for scorer, fields in SCORERS.items():
            if self.clock.fits(**{scorer: len(self.pool)}):
                with self.clock.timing(scorer, len(self.pool)) as seconds:
                    config = self.config(seed, target_group_column="source", **fields)
                    selection = select(
                        model, self.pool, self.targets, config, data_collator=self.collator, progress=False
                    )
                selection.save(self.folder / f"scores_{scorer}_{seed}")
                found[scorer] = selection, seconds_of_warmup + seconds[0]
                print(
                    f"{scorer}, seed {seed}: warm-up {seconds_of_warmup:.1f} s, scoring {seconds[0]:.1f} s", flush=True
                )
        return found

    def run_seed(self, seed):
        """Random rows, then every selection for every target."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(1000 + seed))
        passes = self.options.passes
        self.train_and_test(RANDOM, seed, order[: self.rows].tolist(), list(self.tests), passes, select_seconds=0.0)
        found = self.scored(seed)
        for name in self.tests:
            for arm, (scorer, fields) in SELECTIONS.items():
                if scorer in found:
                    selection, seconds = found[scorer]
                    measurements = selection.measurements.for_targets("source", name)
                    chosen = Selection.choose(measurements, self.config(seed, **fields))
                    facts = {"select_seconds": seconds, "rank": chosen.rank, "energy": float(chosen.energy.mean())}
                    self.train_and_test(arm, seed, chosen.indices, [name], passes, **facts)

    def missing(self):
        done = {(found["arm"], found["seed"], found["target"]) for found in self.results}
        return [f"{title(arm, seed)}, {name}" for arm, seed, name in self.planned() if (arm, seed, name) not in done]

    def report(self):
        """Everything that is written to `results.json`."""
        where = torch.cuda.get_device_name() if self.options.device == "cuda" else "CPU"
        about = {
            "pool": len(self.pool), "selected": self.rows, "targets": dict(Counter(self.targets["source"])),
            "test_rows": {name: len(test.answers) for name, test in self.tests.items()}, "device_name": where,
            "torch": torch.__version__, "transformers": transformers.__version__,
        }  # fmt: skip
        # infinity is not JSON
        settings = {k: v for k, v in vars(self.options).items() if v != float("inf")}
        return {"settings": settings, "about": about, "missing": self.missing(), "results": self.results}

    def write(self):
        report = self.report()
        write_json(self.folder / "results.json", report)
        text = markdown(report)
        write(self.folder / "results.md", lambda name: Path(name).write_text(text, encoding="utf-8"))


def title(arm, seed):
    """The untrained model has no seed."""
    return arm if seed is None else f"{arm}, seed {seed}"


def measured(answers):
    """Means over the test rows with their standard errors, and which rows were answered correctly."""
    found = {"test_rows": len(answers.losses)}
    values = {"loss": answers.losses, "accuracy_by_sum": answers.by_sum, "accuracy_by_mean": answers.by_mean}
    for name, each in values.items():
        found[name] = float(each.float().mean())
        found[f"{name}_error"] = float(each.float().std()) / len(each) ** 0.5 if len(each) > 1 else 0.0
    for name in ("by_sum", "by_mean"):
        found[f"right_{name}"] = "".join("01"[right] for right in getattr(answers, name).tolist())
    return found


def run(options):
    """Run all arms that fit into the time limit; returns what is in `results.json`."""
    experiment = Experiment(options)
    rows, names = list(range(len(experiment.pool))), list(experiment.tests)
    print(f"{len(rows)} rows in the pool, {experiment.rows} to train on", flush=True)
    experiment.test(UNTRAINED, None, experiment.base, names)
    # the whole pool takes as long as a seed of all other arms: once early, then last
    first, *others = options.seeds
    for part in ([first], others):
        for seed in part:
            experiment.run_seed(seed)
        for seed in part if options.whole_pool_passes else []:
            experiment.train_and_test(WHOLE, seed, rows, names, options.whole_pool_passes, select_seconds=0.0)
    experiment.write()
    report = experiment.report()
    print(markdown(report))
    return report


def main(argv=None):
    """Entry point; returns what is in `results.json`."""
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    try:
        return run(options)
    except ValueError as error:
        sys.exit(f"real_model.py: error: {error}")


if __name__ == "__main__":
    main()
