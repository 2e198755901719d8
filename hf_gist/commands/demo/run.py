"""`hf-gist demo`: a selection and three training runs on a pool with known labels, with printed explanations."""

import random
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.commands.bench import Bench
from hf_gist.commands.demo.model import CHAT_TEMPLATE, pretrain, train_tokenizer
from hf_gist.commands.demo.printing import BASE_MODEL, POOL, TARGETS, print_data, print_outcome
from hf_gist.commands.demo.result import GIST, RANDOM, UNTRAINED, WHOLE, DemoResult, DemoSettings
from hf_gist.commands.demo.tasks import TARGET_TASK, DemoData, Row, make_data
from hf_gist.commands.demo.training import TARGET_TEST, demo_bench, quiet_and_small
from hf_gist.config.gist import GISTConfig
from hf_gist.costs import stopwatch
from hf_gist.costs.ledger import CostLedger
from hf_gist.data.preparation.run import tokenize
from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.gist.selection import Selection
from hf_gist.utils.disk import write, write_json
from hf_gist.utils.terminal import say_wrapped


RESULT = "demo.json"
TEST = "test.jsonl"


def as_dataset(rows: list[Row]) -> Dataset:
    """Rows as `messages` with their `task`, the format of a chat dataset."""
    return Dataset.from_list([{"messages": row.messages(), "task": row.task} for row in rows])


def answer_lengths(rows: Dataset) -> list[int]:
    """Labelled tokens of every row."""
    return [sum(label != IGNORE_INDEX for label in labels) for labels in rows["labels"]]


def share_by_length(pool: Dataset, targets: Dataset) -> float:
    """Share of the target task among pool rows with answers exactly as long as a target's, averaged over the targets."""
    lengths = answer_lengths(pool)
    rows = Counter(lengths)
    of_target = Counter(n for n, task in zip(lengths, pool["task"], strict=True) if task == TARGET_TASK)
    shares = [of_target[length] / rows[length] if rows[length] else 0.0 for length in answer_lengths(targets)]
    return sum(shares) / len(shares)


# ---- Phases ----


def make_rows(settings: DemoSettings, folder: Path, seed: int) -> tuple[DemoData, PreTrainedTokenizerFast]:
    """Generate the rows, write them for `hf-gist select`, and train a tokenizer on all of their text."""
    data = make_data(settings.data, seed)
    for name, rows in ((POOL, data.pool), (TARGETS, data.targets), (TEST, data.test)):
        write(folder / name, as_dataset(rows).to_json)
    answers = [row.answer for row in data.pool]
    return data, train_tokenizer([*data.reading, *answers], settings.model.vocabulary)


def make_base(
    data: DemoData, tokenizer: PreTrainedTokenizerFast, settings: DemoSettings, folder: Path, seed: int
) -> LlamaForCausalLM:
    """Pre-train the Llama and save it with its tokenizer."""
    say_wrapped(
        f"2. A small Llama, pre-trained from scratch on {len(data.reading):,} other questions of all tasks with their "
        "results only; the written-out solutions are in the pool only ..."
    )
    model = pretrain(data.reading, tokenizer, settings.model, folder, seed)
    model.save_pretrained(folder / BASE_MODEL)
    tokenizer.save_pretrained(folder / BASE_MODEL)
    return model


def train_with_gist(
    bench: Bench[float], pool: Dataset, targets: Dataset, settings: DemoSettings, seed: int, result: DemoResult
) -> Selection:
    """A stock `Trainer` with the callback: warm-up, selection and training in one `train()`."""
    config = GISTConfig(budget=settings.budget, source_column="task", seed=seed)
    callback = GISTDataSelectorCallback(config, target_dataset=targets, train_dataset=pool)
    say_wrapped(
        f"3. Training with GIST: one Trainer with the callback. It trains on a random {config.warmup_ratio:.0%} "
        f"(warm-up), scores all rows by their LoRA gradients, keeps {settings.budget:.0%} and makes {settings.passes} "
        "passes over them ...\n"
    )
    with result.phase("training with GIST, selection included"):
        trained = bench.train(pool, "with GIST", seed, [callback], num_train_epochs=1 + settings.passes)
    selection = callback.selection
    if selection is None or selection.costs is None:
        raise RuntimeError("The training ended before its selection.")
    add_scoring_seconds(result, selection.costs)
    result.losses[GIST] = trained.results[TARGET_TEST]
    result.steps[GIST] = trained.steps
    result.rows[GIST] = len(selection.indices)
    return selection


def add_scoring_seconds(result: DemoResult, costs: CostLedger) -> None:
    """Add the seconds of target gradients and scoring, which only the training with GIST has."""
    seconds = {phase.phase: phase.seconds for phase in costs.phases}
    result.seconds["- of it, target gradients"] = round(seconds[stopwatch.TARGETS] + seconds[stopwatch.SUBSPACE], 1)
    result.seconds["- of it, scoring the pool"] = round(seconds[stopwatch.SCORING], 1)


def train_baselines(bench: Bench[float], pool: Dataset, seed: int, result: DemoResult) -> list[int]:
    """Train on as many random rows for as many steps, and on the whole pool once; returns the random rows."""
    kept = result.rows[GIST]
    steps = result.steps[GIST]
    chosen = random.Random(seed).sample(range(len(pool)), kept)
    say_wrapped(f"\n4. The same training on {kept} random rows: as many steps ({steps}), the same initial adapter ...")
    with result.phase("training on random rows"):
        on_random = bench.train(pool.select(chosen), "random rows", seed, max_steps=steps)
    say_wrapped("5. The same training on the whole pool: one pass, the same initial adapter ...")
    with result.phase("training on the whole pool"):
        on_whole = bench.train(pool, "whole pool", seed, num_train_epochs=1)
    for name, trained in ((RANDOM, on_random), (WHOLE, on_whole)):
        result.losses[name] = trained.results[TARGET_TEST]
        result.steps[name] = trained.steps
    result.rows |= {RANDOM: kept, WHOLE: len(pool)}
    return chosen


def count_found(result: DemoResult, pool: Dataset, selected: list[int], drawn: list[int]) -> None:
    """Count the target rows among the selected rows and among the randomly drawn ones."""
    is_target = [task == TARGET_TASK for task in pool["task"]]
    result.kept = len(selected)
    result.found = sum(is_target[i] for i in selected)
    result.found_by_chance = sum(is_target[i] for i in drawn)


# ---- The demo ----


def run_demo(output_dir: str | Path, seed: int = 42, settings: DemoSettings | None = None) -> DemoResult:
    """Build a pool with known labels and a base model, select with GIST, train, and print the results.

    Needs no network, no GPU and no file; all numbers are measured in this run.

    Args:
        output_dir (`str` or `Path`): folder for pool, targets, base model, artifacts, figures and `demo.json`.
        seed (`int`, defaults to 42): seed of everything.
        settings (`DemoSettings`, *optional*): other sizes.

    Returns:
        `DemoResult`: what was measured.
    """
    settings = settings or DemoSettings()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = DemoResult()
    with quiet_and_small(), result.phase("all"):
        _measure(settings, folder, seed, result)
    write_json(folder / RESULT, {"seed": seed, "settings": asdict(settings), **asdict(result)})
    print_outcome(result, folder, settings)
    return result


def _measure(settings: DemoSettings, folder: Path, seed: int, result: DemoResult) -> None:
    with result.phase("data and tokenizer"):
        data, tokenizer = make_rows(settings, folder, seed)
        pool = tokenize(as_dataset(data.pool), tokenizer, None, "pool", CHAT_TEMPLATE)
        targets = tokenize(as_dataset(data.targets), tokenizer, None, "targets", CHAT_TEMPLATE)
        test = tokenize(as_dataset(data.test), tokenizer, None, "test", CHAT_TEMPLATE)
    result.hidden = Counter(pool["task"])[TARGET_TASK]
    result.share_by_length = share_by_length(pool, targets)
    print_data(data, result.hidden)
    with result.phase("pre-training"):
        base = make_base(data, tokenizer, settings, folder, seed)
    bench = demo_bench(base, tokenizer, test, folder, settings.lora)
    result.losses[UNTRAINED] = bench.results(base)[TARGET_TEST]
    say_wrapped(f"   {base.num_parameters() / 1e6:.2f} million parameters, {result.seconds['pre-training']:.0f} s.\n")
    selection = train_with_gist(bench, pool, targets, settings, seed, result)
    drawn = train_baselines(bench, pool, seed, result)
    count_found(result, pool, selection.indices, drawn)
