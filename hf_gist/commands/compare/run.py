"""The loop of `hf-gist compare`: measure once per scorer, then train every arm with every seed; resumes where it was."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import torch
from datasets import Dataset
from pyarrow import parquet

from hf_gist.commands.compare.arguments import CompareArguments
from hf_gist.commands.compare.arms import (
    ARMS,
    IN_DOMAIN,
    LABELS,
    NEED_NO_ROWS,
    RANDOM,
    UNTRAINED,
    WHOLE_POOL,
    config_of,
    rows_of_arm,
)
from hf_gist.commands.compare.table import Runs, break_even, markdown, save_plot
from hf_gist.commands.compare.training import Bench
from hf_gist.commands.flags import GROUPS, add_settings_flags, settings_of
from hf_gist.commands.workspace import (
    USAGE,
    SourceArguments,
    Workspace,
    check_source,
    open_workspace,
    token_columns,
    warmed_model,
)
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.formats import load_rows
from hf_gist.data.leaks import Leaks, find_leaks
from hf_gist.data.provenance import RowSource, digest
from hf_gist.data.rows import row_lengths
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.offline import select
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.disk import as_json, read_json, write, write_json
from hf_gist.utils.terminal import say


RUNS, RESULTS, SETTINGS, TABLE, PLOT = "runs", "compare.parquet", "compare.json", "compare.md", "compare.png"
SCORES, SCORED_WITH = "scores", "scored_with.json"


# ---- What was asked ----


def chosen_methods(arguments: CompareArguments, config: GISTConfig) -> list[str]:
    """The methods to compare.

    Raises:
        ValueError: for a method that does not exist or lacks its input.
    """
    oracle = arguments.oracle_source is not None
    methods = arguments.methods or [m for m in ARMS if m != "less" and (oracle or m != IN_DOMAIN)]
    unknown = [m for m in methods if m not in ARMS]
    if unknown:
        raise ValueError(f"`--methods {' '.join(unknown)}`: no such method. There are {', '.join(ARMS)}.")
    if IN_DOMAIN in methods and (not oracle or config.source_column is None):
        raise ValueError(f"`--methods {IN_DOMAIN}` needs `--source_column` and `--oracle_source`.")
    return list(dict.fromkeys(methods))


def test_files(arguments: CompareArguments) -> dict[str, str]:
    """The files of `--test_file` by name."""
    pairs = [text.rpartition("=") for text in arguments.test_file]
    return {name or Path(file).stem: file for name, _, file in pairs}


def read_tests(arguments: CompareArguments, workspace: Workspace) -> dict[str, Dataset]:
    """The test sets by name."""
    tests = {}
    for name, file in test_files(arguments).items():
        rows = workspace.tokenized(load_rows(RowSource(file), "test_file"), "test_file")
        tests[name] = rows.select_columns(["input_ids", "labels"])
    return tests


def comparison_settings(arguments: CompareArguments, warmup: WarmupSettings, config: GISTConfig) -> dict[str, Any]:
    """What two runs into one folder must share; methods and seeds may be added later."""
    free = {"output_dir", "methods", "seeds", "scores_dir"}
    values = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in free}
    files = {name: digest(values[name]) for name in ("train_file", "target_file")}
    tests = {name: digest(file) for name, file in test_files(arguments).items()}
    digests = {"sha256": files, "sha256 of the test files": tests}
    return as_json(values | dataclasses.asdict(warmup) | config.to_dict() | digests)


# ---- Measuring ----


@dataclass
class Scores:
    """What the arms choose from, measured when first asked for and kept on disk.

    Args:
        workspace (`Workspace`): model, pool and targets.
        base (`nn.Module`): the base model.
        warmup (`WarmupSettings`): of the warm-up.
        config (`GISTConfig`): what the arms share.
        folder (`Path`): a folder per scorer.
        settings (`dict`): what the scores depend on.
        tests (`Dataset`): all test rows, which are not to be selected.
    """

    workspace: Workspace
    base: torch.nn.Module
    warmup: WarmupSettings
    config: GISTConfig
    folder: Path
    settings: dict[str, Any]
    tests: Dataset
    _loaded: dict[str, tuple[Measurements, float]] = dataclasses.field(default_factory=dict)
    _leaks: list[Leaks | None] | None = None

    def of(self, scorer: str) -> tuple[Measurements, float]:
        """Measurements of a scorer, and the seconds they took with their warm-up."""
        if scorer not in self._loaded:
            self._loaded[scorer] = self._load(scorer)
        return self._loaded[scorer]

    def _load(self, scorer: str) -> tuple[Measurements, float]:
        folder = self.folder / scorer
        if reused := (folder / SCORED_WITH).exists():
            about = read_json(folder / SCORED_WITH)
            refuse_other_settings(about["settings"], self.settings, folder)
        else:
            about = {"settings": self.settings, "seconds": round(self._measure(scorer, folder), 1)}
            write_json(folder / SCORED_WITH, about)
        measured, only = Selection.load(folder).measurements, self.workspace.arguments
        if reused:
            # the scores may be of a comparison with other test rows
            measured = dataclasses.replace(measured, leaked=self._leaked())
        if only.target_column is not None:
            measured = measured.for_targets(only.target_column, only.target_value)
        return measured, about["seconds"]

    def _leaked(self) -> torch.Tensor | None:
        """Rows of the pool that are target or test rows of this comparison."""
        if self._leaks is None:
            space = self.workspace
            self._leaks = [find_leaks(space.pool, space.targets, self.tests, space.tokenizer)]
        (leaks,) = self._leaks
        return None if leaks is None else leaks.mask(len(self.workspace.pool))

    def _measure(self, scorer: str, folder: Path) -> float:
        """Seconds it took, with those of the warm-up, also where that was shared with another scorer."""
        say(f"measuring: {scorer}")
        config, checkpoints, warming = config_of(ARMS.get(scorer, ARMS[RANDOM]), self.config), [], 0.0
        if scorer == LABELS:
            model = fresh_lora(self.base, self.warmup, config.seed)
        else:
            warmed = warmed_model(self.workspace, self.base, self.warmup, config, self.tests)
            model, checkpoints, warming = warmed.model, warmed.checkpoints, warmed.cost.seconds
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
        return warming + time.perf_counter() - start


def scoring_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that change the scores: neither the budget nor how an arm is trained afterwards."""
    names = {f.name for f in dataclasses.fields(SourceArguments)} - {"output_dir"}
    names |= {f.name for f in dataclasses.fields(WarmupSettings)} | {"sha256", "seed", "source_column"}
    names |= {"warmup_ratio", "warmup_steps", "score_layers", "sketch_dim", "prefilter", "scoring_dtype"}
    return {name: value for name, value in settings.items() if name in names}


def passes_of(scorer: str, warmup: WarmupSettings, config: GISTConfig, rows: int, blocks: int) -> float:
    """Cost of scoring in passes over the pool, forward and backward; a forward alone counts half.

    Args:
        scorer (`str`): the measurements.
        warmup (`WarmupSettings`): batch size and checkpoints of the warm-up.
        config (`GISTConfig`): what the arms share.
        rows (`int`): of the pool.
        blocks (`int`): of the model.
    """
    if scorer == LABELS:
        return 0.0
    trained = config.warmup_ratio
    if config.warmup_steps is not None:
        trained = config.warmup_steps * warmup.per_device_train_batch_size / rows
    if scorer == "rds_plus":
        return trained + 0.5
    passed = 0.5 + 0.5 * (config.score_layers or blocks) / blocks
    if scorer == "less":
        return trained + passed * warmup.less_checkpoints
    return trained + (passed if config.prefilter is None else 0.5 + config.prefilter * passed)


# ---- Training ----


def run_file(folder: Path, method: str, seed: int) -> Path:
    """A file of its own for every run: what is finished is kept, and commands may share a folder at the same time."""
    return folder / RUNS / (f"{method}.json" if method == UNTRAINED else f"{method}-seed{seed}.json")


def read_runs(folder: Path) -> Runs:
    """Every finished run, of this command or another, in the order of the methods and seeds."""
    runs = [read_json(path) for path in (folder / RUNS).glob("*.json")]
    return sorted(runs, key=lambda run: (list(ARMS).index(run["method"]), run["seed"]))


def run_arm(
    name: str, seed: int, scores: Scores, bench: Bench, arguments: CompareArguments, config: GISTConfig
) -> dict[str, Any]:
    """One row of the results."""
    scorer = ARMS[name].scorer if name not in NEED_NO_ROWS else LABELS
    measured, seconds = scores.of(scorer)
    facts = {"method": name, "seed": seed, "rows": 0, "label_tokens": 0, "steps": 0}
    cost = {"selection_seconds": 0.0, "selection_passes": 0.0, "train_seconds": 0.0, "train_tokens": 0}
    if name == UNTRAINED:
        return facts | bench.losses(bench.base) | cost
    rows = rows_of_arm(name, measured, config, seed, arguments.oracle_source)
    epochs, max_steps = arguments.num_train_epochs, arguments.max_steps
    if name == WHOLE_POOL:
        epochs, max_steps = arguments.whole_pool_epochs, -1
    if scorer != LABELS:
        blocks = bench.base.config.num_hidden_layers
        passes = passes_of(scorer, bench.settings, config, len(measured.norms), blocks)
        cost |= {"selection_seconds": seconds, "selection_passes": passes}
    pool = scores.workspace.pool.select(rows).select_columns(["input_ids", "labels"])
    facts |= {"rows": len(rows), "label_tokens": int(measured.label_tokens[torch.tensor(rows)].sum())}
    return facts | cost | bench.train(pool, f"{name}, seed {seed}", seed, epochs, max_steps)


def write_results(pool_tokens: int, folder: Path) -> str:
    """Parquet, Markdown and picture of all finished runs; returns the Markdown."""
    runs = read_runs(folder)
    table = pyarrow.Table.from_pylist(runs)
    write(folder / RESULTS, lambda name: parquet.write_table(table, name))
    text = markdown(runs, pool_tokens) + "\n" + break_even(runs, pool_tokens)
    write(folder / TABLE, lambda name: Path(name).write_text(text, encoding="utf-8"))
    try:
        save_plot(runs, pool_tokens, folder / PLOT)
    except ImportError as error:
        text += f"\n{error}\n"
    return text


def plan(methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Every method with every seed, seed by seed, so that an early stop leaves whole comparisons; untrained once."""
    return [(m, s) for s in seeds for m in methods if m != UNTRAINED or s == seeds[0]]


def compare(arguments: CompareArguments, warmup: WarmupSettings, config: GISTConfig) -> Runs:
    """Measure each scorer once, train every method with every seed, and write the table.

    Args:
        arguments (`CompareArguments`): data, methods, seeds and training length.
        warmup (`WarmupSettings`): LoRA, learning rate and batch size, of the warm-up and of every training.
        config (`GISTConfig`): budget, groups and what else the methods share.

    Returns:
        `Runs`: one row per method and seed.

    Raises:
        ValueError: naming the flag that is missing or wrong.
    """
    check_source(arguments)
    if not arguments.test_file:
        raise ValueError("`--test_file` is missing: held-out rows to measure the loss on.")
    for file in test_files(arguments).values():
        if not Path(file).is_file():
            raise ValueError(f"`--test_file {file}`: no such file.")
    if (arguments.target_column is None) != (arguments.target_value is None):
        raise ValueError("`--target_column` and `--target_value` belong together.")
    methods, seeds = chosen_methods(arguments, config), arguments.seeds or [0, 1, 2]
    folder, settings = Path(arguments.output_dir), comparison_settings(arguments, warmup, config)
    if (folder / SETTINGS).exists():
        refuse_other_settings(read_json(folder / SETTINGS), settings, folder)
    base = arguments.load_model()
    workspace = open_workspace(arguments, arguments.load_pool(), base)
    bench = Bench(base, workspace.collator, read_tests(arguments, workspace), warmup, folder / "trainer")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    kept = Path(arguments.scores_dir) if arguments.scores_dir else folder / SCORES
    tests = token_columns(list(bench.tests.values()))
    scores = Scores(workspace, base, warmup, config, kept, scoring_settings(settings), tests)
    pool_tokens = int(row_lengths(workspace.pool).sum())
    (folder / RUNS).mkdir(exist_ok=True)
    for name, seed in plan(methods, seeds):
        if run_file(folder, name, seed).exists():
            continue
        result = run_arm(name, seed, scores, bench, arguments, config)
        write_json(run_file(folder, name, seed), result)
        write_results(pool_tokens, folder)
        losses = ", ".join(f"{k.removeprefix('loss_')} {v:.4f}" for k, v in result.items() if k.startswith("loss_"))
        say(f"{name}, seed {seed}: {losses}")
    say("\n" + write_results(pool_tokens, folder))
    say(f"results: {folder}")
    return read_runs(folder)


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist compare`."""
    parser.usage = f"hf-gist compare {USAGE} --test_file TEST [flags]"
    add_settings_flags(parser, GROUPS["compare"])
    parser.add_argument("--json", action="store_true", help="Print the result as JSON, and all else on stderr.")


def run_compare(flags: argparse.Namespace) -> dict[str, Any]:
    """`hf-gist compare`; returns what `--json` prints."""
    _, (arguments, warmup, config) = settings_of(flags)
    return {"runs": compare(arguments, warmup, config), "artifacts": arguments.output_dir}
