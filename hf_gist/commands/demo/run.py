"""`hf-gist demo`: a selection and three trainings on a pool with known labels, told as they happen."""

import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.commands.demo.model import ModelSizes, pretrain, train_tokenizer
from hf_gist.commands.demo.tasks import NEIGHBOURS, TARGET_TASK, TASKS, DataSizes, DemoData, Row, make_data
from hf_gist.commands.demo.training import Bench, quiet_and_small
from hf_gist.config.files import FOLDER
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs import stopwatch
from hf_gist.data.formats import tokenize
from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.gist.selection import Selection
from hf_gist.report import REPORT_FILE
from hf_gist.utils.disk import write, write_json
from hf_gist.utils.terminal import say_wrapped


BASE_MODEL, RESULT = "base_model", "demo.json"
POOL, TARGETS, TEST = "pool.jsonl", "targets.jsonl", "test.jsonl"
GIST, RANDOM, WHOLE, UNTRAINED = "GIST", "random", "whole pool", "untrained"


@dataclass(frozen=True)
class DemoSettings:
    """Every size of the demo.

    Args:
        data (`DataSizes`): rows.
        model (`ModelSizes`): the Llama and its pre-training.
        lora (`WarmupSettings`): adapter, learning rate and batch size of all fine-tunings.
        budget (`float`): share of the pool that GIST and the random choice keep.
        passes (`int`): passes over the GIST selection after its warm-up.
    """

    data: DataSizes = field(default_factory=DataSizes)
    model: ModelSizes = field(default_factory=ModelSizes)
    lora: WarmupSettings = WarmupSettings(learning_rate=3e-3, per_device_train_batch_size=16)
    budget: float = 0.05
    passes: int = 4


@dataclass
class DemoResult:
    """What a run of the demo measured.

    Args:
        losses (`dict[str, float]`): target test loss of each training and of the untrained model.
        rows (`dict[str, int]`): rows each training chose from the pool.
        steps (`dict[str, int]`): optimizer steps of each training.
        seconds (`dict[str, float]`): wall time of each phase.
        kept (`int`): selected rows.
        found (`int`): those of the target task.
        hidden (`int`): rows of the target task in the pool.
        found_by_chance (`int`): rows of the target task among the random choice.
        share_by_length (`float`): expected share of the target task among rows drawn by answer length alone.
    """

    losses: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    found: int = 0
    hidden: int = 0
    found_by_chance: int = 0
    share_by_length: float = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Take the time of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def as_dataset(rows: list[Row]) -> Dataset:
    """Rows as `messages` with their `task`, the form in which users bring their own."""
    return Dataset.from_list([{"messages": row.messages(), "task": row.task} for row in rows])


def share_by_length(pool: Dataset, targets: Dataset) -> float:
    """Share of target rows among pool rows whose answers are exactly as long as those of the targets, on average."""
    lengths = [sum(label != IGNORE_INDEX for label in labels) for labels in pool["labels"]]
    rows, of_target = (
        Counter(lengths),
        Counter(n for n, task in zip(lengths, pool["task"], strict=True) if task == TARGET_TASK),
    )
    shares = []
    for labels in targets["labels"]:
        length = sum(label != IGNORE_INDEX for label in labels)
        shares.append(of_target[length] / rows[length] if rows[length] else 0.0)
    return sum(shares) / len(shares)


# ---- Phases ----


def prepare(settings: DemoSettings, folder: Path, seed: int) -> tuple[DemoData, PreTrainedTokenizerFast]:
    """Make the rows and a tokenizer for all of their text, and leave the rows on disk for `hf-gist select`."""
    data = make_data(settings.data, seed)
    for name, rows in ((POOL, data.pool), (TARGETS, data.targets), (TEST, data.test)):
        write(folder / name, as_dataset(rows).to_json)
    answers = [row.answer for row in data.pool]
    return data, train_tokenizer([*data.reading, *answers], settings.model.vocabulary)


def tell_data(data: DemoData, settings: DemoSettings, hidden: int) -> None:
    """What the pool looks like."""
    example = data.targets[0]
    say_wrapped(
        f"1. The pool: {len(data.pool):,} instruction rows of {len(TASKS)} tasks, made in code. {hidden} of them "
        f"({hidden / len(data.pool):.1%}) are the target task '{TARGET_TASK}'; GIST is not told which. It gets "
        f"{len(data.targets)} other examples of it. {len(data.test)} more are kept for the test. No question occurs twice."
    )
    say_wrapped(f"   {TARGET_TASK}: {example.prompt}\n   -> {example.answer}")
    names = ", ".join(f"'{name}' ({what})" for name, what in NEIGHBOURS.items())
    say_wrapped(f"   Easy to mistake for it: {names}.")
    say_wrapped(f"   Other tasks: {', '.join(name for name in TASKS if name not in (TARGET_TASK, *NEIGHBOURS))}.\n")


def make_base(
    data: DemoData, tokenizer: PreTrainedTokenizerFast, settings: DemoSettings, folder: Path, seed: int
) -> LlamaForCausalLM:
    """Pre-train the Llama and save it with its tokenizer."""
    say_wrapped(
        f"2. A small Llama, pre-trained from scratch on {len(data.reading):,} other questions of all tasks with bare results; "
        "writing out the solution is what the pool teaches ..."
    )
    model = pretrain(data.reading, tokenizer, settings.model, folder, seed)
    model.save_pretrained(folder / BASE_MODEL)
    tokenizer.save_pretrained(folder / BASE_MODEL)
    return model


def train_with_gist(
    bench: Bench, pool: Dataset, targets: Dataset, settings: DemoSettings, result: DemoResult
) -> Selection:
    """A stock `Trainer` with the callback: warm-up, selection and training in one `train()`."""
    config = GISTConfig(budget=settings.budget, source_column="task", seed=bench.seed)
    callback = GISTDataSelectorCallback(config, target_dataset=targets, train_dataset=pool)
    say_wrapped(
        f"3. Training with GIST: one Trainer with the callback takes a warm-up on a random {config.warmup_ratio:.0%}, scores "
        f"all rows by their LoRA gradients, keeps {settings.budget:.0%} and makes {settings.passes} passes over them ...\n"
    )
    with result.phase("training with GIST, selection included"):
        loss, steps = bench.finetune(pool, "with GIST", [callback], num_train_epochs=1 + settings.passes)
    seconds = {phase.phase: phase.seconds for phase in callback.selection.costs.phases}
    result.seconds["- of it, target gradients"] = round(seconds[stopwatch.TARGETS] + seconds[stopwatch.SUBSPACE], 1)
    result.seconds["- of it, scoring the pool"] = round(seconds[stopwatch.SCORING], 1)
    result.losses[GIST], result.steps[GIST], result.rows[GIST] = loss, steps, len(callback.selection.indices)
    return callback.selection


def train_baselines(bench: Bench, pool: Dataset, settings: DemoSettings, result: DemoResult) -> list[int]:
    """A random choice of the same size for the same steps, and one pass over everything."""
    kept, steps = result.rows[GIST], result.steps[GIST]
    chosen = random.Random(bench.seed).sample(range(len(pool)), kept)
    say_wrapped(f"4. The same training on {kept} random rows, for the same {steps} steps, from the same start ...")
    with result.phase("training on random rows"):
        result.losses[RANDOM], result.steps[RANDOM] = bench.finetune(
            pool.select(chosen), "random rows", max_steps=steps
        )
    say_wrapped("5. The same training on the whole pool, one pass, from the same start ...")
    with result.phase("training on the whole pool"):
        result.losses[WHOLE], result.steps[WHOLE] = bench.finetune(pool, "whole pool", num_train_epochs=1)
    result.rows |= {RANDOM: kept, WHOLE: len(pool)}
    return chosen


# ---- Outcome ----


def tell_recall(result: DemoResult) -> None:
    """What the selection found, beside what chance and length would find."""
    say_wrapped(
        f"\nFound: {result.found} of the {result.kept} rows that GIST kept are the target task ({result.found / result.kept:.1%}; "
        f"its share of the pool is {result.hidden / result.rows[WHOLE]:.1%}), which is a recall of "
        f"{result.found / result.hidden:.1%} of all {result.hidden}."
    )
    say_wrapped(
        f"   For comparison: the random choice has {result.found_by_chance} of them; a draw of rows whose answers are "
        f"exactly as long as the target's would have about {result.share_by_length * result.kept:.0f}."
    )


def tell_losses(result: DemoResult) -> None:
    """The table of losses, and what it says."""
    say_wrapped(f"\n{'trained on':<30}{'rows':>8}{'steps':>8}{'target test loss':>20}")
    say_wrapped(f"{'nothing (the base model)':<30}{'-':>8}{'-':>8}{result.losses[UNTRAINED]:>20.4f}")
    labels = {WHOLE: "the whole pool, one pass", RANDOM: "random rows", GIST: "rows kept by GIST"}
    for name, label in labels.items():
        say_wrapped(f"{label:<30}{result.rows[name]:>8,}{result.steps[name]:>8,}{result.losses[name]:>20.4f}")
    say_wrapped(f"\n{verdict(result, RANDOM, 'as many random rows in the same number of steps')}")
    say_wrapped(
        verdict(result, WHOLE, f"the whole pool in {result.steps[WHOLE] / result.steps[GIST]:.1f} times the steps")
    )


def verdict(result: DemoResult, other: str, words: str) -> str:
    """One sentence that compares GIST with another training, whichever is better."""
    gain = result.losses[other] - result.losses[GIST]
    if gain > 0:
        return f"GIST's rows gave a lower target loss than {words}: by {gain:.4f}."
    return f"GIST's rows did NOT give a lower target loss than {words} in this run: it is {-gain:.4f} higher."


def tell_seconds(result: DemoResult) -> None:
    """Seconds of each phase."""
    say_wrapped(f"\n{'seconds':<46}")
    for name, seconds in result.seconds.items():
        say_wrapped(f"{'  ' * name.startswith('-') + name:<46}{seconds:>8.1f}")


def tell_next(folder: Path, settings: DemoSettings) -> None:
    """What to do with it."""
    where = shlex.quote(str(folder))
    say_wrapped("\nWhat to do next")
    say_wrapped("- In your own training, pass the callback to your Trainer; the README has all ten lines:")
    say_wrapped("    GISTDataSelectorCallback(GISTConfig(budget=0.05), target_dataset=targets)")
    say_wrapped("- Another choice from the same scores, in seconds:")
    say_command(f"hf-gist select --from_scores {where}/{FOLDER} --budget 0.1 --strategy round_robin", f"{where}/again")
    say_wrapped("- The same pool from the command line; replace model and files by yours:")
    say_command(
        f"hf-gist select --model_name_or_path {where}/{BASE_MODEL} --train_file {where}/{POOL}",
        f"--target_file {where}/{TARGETS} --source_column task --budget {settings.budget}",
        f"--learning_rate {settings.lora.learning_rate} --per_device_train_batch_size "
        f"{settings.lora.per_device_train_batch_size}",
        f"{where}/select",
    )


def say_command(*parts: str) -> None:
    """A shell command over several lines that can be pasted as it is; the last part is its output folder."""
    sys.stdout.write("    " + " \\\n        ".join([*parts[:-1], f"--output_dir {parts[-1]}"]) + "\n")


# ---- The whole ----


def run_demo(output_dir: str | Path, seed: int = 42, settings: DemoSettings | None = None) -> DemoResult:
    """Build a pool with known labels and a base model, select with GIST, train, and print what came out.

    Needs no network, no GPU and no file; its numbers come from this run.

    Args:
        output_dir (`str` or `Path`): receives pool, targets, base model, artifacts, pictures and `demo.json`.
        seed (`int`, defaults to 42): seed of everything.
        settings (`DemoSettings`, *optional*): other sizes.

    Returns:
        `DemoResult`: what was measured.
    """
    settings, folder, result = settings or DemoSettings(), Path(output_dir), DemoResult()
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_and_small(), result.phase("all"):
        with result.phase("data and tokenizer"):
            data, tokenizer = prepare(settings, folder, seed)
            pool, targets, test = (
                tokenize(as_dataset(rows), tokenizer, None, name)
                for name, rows in (("pool", data.pool), ("targets", data.targets), ("test", data.test))
            )
        result.hidden, result.share_by_length = Counter(pool["task"])[TARGET_TASK], share_by_length(pool, targets)
        tell_data(data, settings, result.hidden)
        with result.phase("pre-training"):
            base = make_base(data, tokenizer, settings, folder, seed)
        bench = Bench(base, tokenizer, test, folder, seed, settings.lora)
        result.losses[UNTRAINED] = bench.test_loss(base)
        say_wrapped(
            f"   {base.num_parameters() / 1e6:.2f} million parameters, {result.seconds['pre-training']:.0f} s.\n"
        )
        selection = train_with_gist(bench, pool, targets, settings, result)
        chance = train_baselines(bench, pool, settings, result)
    result.kept = len(selection.indices)
    result.found, result.found_by_chance = (
        sum(pool[i]["task"] == TARGET_TASK for i in rows) for rows in (selection.indices, chance)
    )
    tell(result, selection, folder, settings, seed)
    return result


def tell(result: DemoResult, selection: Selection, folder: Path, settings: DemoSettings, seed: int) -> None:
    """The outcome, on the terminal and on disk."""
    tell_recall(result)
    tell_losses(result)
    tell_seconds(result)
    say_wrapped(f"\nArtifacts: {folder / FOLDER}")
    say_wrapped(f"To look at: {folder / REPORT_FILE} (open it in a browser)")
    write_json(folder / RESULT, {"seed": seed, "settings": asdict(settings), **asdict(result)})
    tell_next(folder, settings)
