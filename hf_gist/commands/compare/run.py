"""`hf-gist compare`: measure once per scorer, then train every arm with every seed; finished runs are kept."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_gist.commands.bench import Bench
from hf_gist.commands.compare.arguments import (
    CompareArguments,
    check_comparison,
    check_rows,
    chosen_methods,
    comparison_settings,
    scoring_settings,
    shared_settings,
)
from hf_gist.commands.compare.arms import ARMS, LABELS, NEED_NO_ROWS, PLANNED, UNTRAINED, WHOLE_POOL, rows_of_arm
from hf_gist.commands.compare.estimates import ERROR, OUTCOMES, Column, Run, Runs, columns_of
from hf_gist.commands.compare.files import (
    PLOT,
    RUNS_FOLDER,
    SETTINGS,
    TABLE,
    run_file,
    without_outcomes,
    write_results,
)
from hf_gist.commands.compare.page import write_comparison
from hf_gist.commands.compare.printing import results
from hf_gist.commands.compare.scores import Scores
from hf_gist.commands.compare.verdicts import verdicts
from hf_gist.commands.flags import GROUPS, add_settings_flags, settings_of
from hf_gist.commands.testing.measured import Measured
from hf_gist.commands.testing.sets import LossSet, measure, read_test
from hf_gist.commands.workspace import USAGE, Workspace, open_workspace, token_columns, token_counts
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.provenance import RowSource
from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.report.best_effort import not_fatal
from hf_gist.report.canvas import NoFigures
from hf_gist.training.loading import positions
from hf_gist.utils.disk import read_json, write_json
from hf_gist.utils.terminal import named_path, say, say_wrapped


SCORES_FOLDER = "scores"
TRAINER_FOLDER = "trainer"

TRAINING = {
    "warmup_steps": 0.03,
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": "non_padding",
}
"""`TrainingArguments` of every training run."""


def read_tests(arguments: CompareArguments, workspace: Workspace, positions: int) -> dict[str, LossSet]:
    """The test sets by name.

    Args:
        arguments (`CompareArguments`): files and metrics.
        workspace (`Workspace`): tokenises rows.
        positions (`int`): of the model.
    """
    tests = {}
    metrics = arguments.metric or {}
    for name, file in arguments.test_files.items():
        raw = arguments.read(RowSource(file), "test_file")
        tests[name] = read_test(raw, workspace, metrics.get(name), arguments.max_new_tokens, positions)
    return tests


# ---- Training ----


@dataclass(frozen=True)
class Comparison:
    """The inputs and settings that the runs of a comparison share.

    Args:
        arguments (`CompareArguments`): training length and the sources of the oracle.
        config (`GISTConfig`): settings that the arms share.
        folder (`Path`): where results are written.
        bench (`Bench`): trains a new LoRA on some rows.
        scores (`Scores`): measurements that the arms select from.
        pool_tokens (`int`): tokens of the whole pool.
    """

    arguments: CompareArguments
    config: GISTConfig
    folder: Path
    bench: Bench[dict[str, Measured]]
    scores: Scores
    pool_tokens: int

    def finish(self, method: str, seed: int) -> None:
        """Train and evaluate one method with one seed, unless done already, and write the results of all runs."""
        file = run_file(self.folder, method, seed)
        if file.exists():
            return
        run = self.train(method, seed)
        write_json(file, run)
        write_results(self.pool_tokens, self.folder)
        measured = ", ".join(f"{column.title} {run[column.name]:.4f}" for column in columns_of([run]))
        say_wrapped(f"{method}, seed {seed}: {measured}")

    def train(self, method: str, seed: int) -> Run:
        """Train one arm with one seed and measure it: one row of the results."""
        run = {"method": method, "seed": seed, "rows": 0, "label_tokens": 0, "steps": 0}
        run |= {"selection_seconds": 0.0, "selection_passes": 0.0, "train_seconds": 0.0, "train_tokens": 0}
        if method == UNTRAINED:
            return run | measured_columns(self.bench.results(self.bench.base))
        scorer = ARMS[method].scorer if method not in NEED_NO_ROWS else LABELS
        scored = self.scores.of(scorer)
        measured = scored.measured
        rows = rows_of_arm(method, measured, self.config, seed, self.arguments.oracle_source, scored.row_scores)
        run |= {"rows": len(rows), "label_tokens": int(measured.label_tokens[torch.tensor(rows)].sum())}
        if scorer != LABELS:
            run |= {"selection_seconds": scored.seconds, "selection_passes": scored.passes}
        pool = self.scores.workspace.pool.select(rows).select_columns(["input_ids", "labels"])
        trained = self.bench.train(pool, f"{method}, seed {seed}", seed, **self._length(method))
        run |= {"steps": trained.steps, "train_seconds": trained.seconds, "train_tokens": trained.tokens}
        return run | measured_columns(trained.results)

    def _length(self, method: str) -> dict[str, Any]:
        """Passes over the rows of an arm, or optimizer steps."""
        if method == WHOLE_POOL:
            return {"num_train_epochs": self.arguments.whole_pool_epochs}
        return {"num_train_epochs": self.arguments.num_train_epochs, "max_steps": self.arguments.max_steps}


def measured_columns(results: dict[str, dict[str, Measured]]) -> Run:
    """What was measured as columns of the results, with standard errors and the outcomes of single test rows.

    Args:
        results (`dict`): test set to measure to what was measured.
    """
    run: Run = {}
    for test, measures in results.items():
        for name, found in measures.items():
            column = Column(test, name)
            run |= {column.name: found.value, f"{ERROR}_{column.name}": found.standard_error}
    outcomes = {test: {name: compact(found.rows) for name, found in one.items()} for test, one in results.items()}
    return run | {OUTCOMES: outcomes}


def compact(rows: Sequence[float] | None) -> list[float] | None:
    """Outcomes with few digits: whole numbers without a point."""
    return None if rows is None else [int(value) if value in (0, 1) else round(value, 6) for value in rows]


def trainings(methods: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Every method with every seed, seed by seed, so that an interruption leaves complete seeds; `untrained` once."""
    return [(m, s) for s in seeds for m in methods if m != UNTRAINED or s == seeds[0]]


# ---- The command ----


def open_comparison(
    arguments: CompareArguments, warmup: WarmupSettings, config: GISTConfig, methods: Sequence[str] = ()
) -> Comparison:
    """Load the model, read all rows, check that the settings fit them, and write the settings into the folder.

    Raises:
        ValueError: naming the setting that does not fit the rows, that pays for too few of them, or that differs from an
            earlier run into the same folder.
    """
    folder = arguments.folder
    settings = comparison_settings(arguments, warmup, config)
    if (folder / SETTINGS).exists():
        before = read_json(folder / SETTINGS)
        # the method that has a price may be added later, or be left out by a later command
        price = before["scoring_cost"] or settings["scoring_cost"]
        settings["scoring_cost"] = settings["scoring_cost"] or price
        refuse_other_settings(before | {"scoring_cost": price}, settings, folder)
    base = arguments.load_model()
    workspace = open_workspace(arguments, arguments.load_pool(), base)
    tests = read_tests(arguments, workspace, positions(base))
    bench = Bench(base, workspace.collator, tests, warmup, folder / TRAINER_FOLDER, measure, TRAINING)
    scores = Scores(
        workspace,
        base,
        warmup,
        config,
        folder=Path(arguments.scores_dir) if arguments.scores_dir else folder / SCORES_FOLDER,
        settings=scoring_settings(settings),
        tests=token_columns([test.rows for test in tests.values()]),
        target=arguments.target,
    )
    # before anything is written: a setting that is refused must not be that of the folder
    check_rows(arguments, config, workspace.pool, scores.own_targets().targets)
    if PLANNED in methods:
        scores.check_plan()
    (folder / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, settings)
    return Comparison(arguments, config, folder, bench, scores, int(token_counts(workspace.pool).sum()))


def compare(arguments: CompareArguments, warmup: WarmupSettings, config: GISTConfig) -> Runs:
    """Measure each scorer once, train every method with every seed, and write the table.

    Args:
        arguments (`CompareArguments`): data, methods, seeds and training length.
        warmup (`WarmupSettings`): LoRA, learning rate and batch size, of the warm-up and of every training run.
        config (`GISTConfig`): budget, groups and other settings that the methods share.

    Returns:
        `Runs`: one row per method and seed.

    Raises:
        ValueError: naming the flag that is missing or wrong.
    """
    check_comparison(arguments)
    config = shared_settings(config)
    methods = chosen_methods(arguments, config)
    comparison = open_comparison(arguments, warmup, config, methods)
    for method, seed in trainings(methods, arguments.seeds or [0, 1, 2]):
        comparison.finish(method, seed)
    runs = write_results(comparison.pool_tokens, comparison.folder)
    say(f"\n{results(runs, comparison.pool_tokens)}")
    print_files(comparison.folder)
    return runs


def print_files(folder: Path) -> None:
    """Write the report, and print the paths of the results."""
    say(f"\n{named_path('results', folder)}")
    say(named_path("table", folder / TABLE))
    if (folder / PLOT).is_file():
        say(named_path("figure", folder / PLOT))
    else:
        say_wrapped(NoFigures.HINT)
    with not_fatal("The report was", f"To write it once the cause is fixed: hf-gist report {folder}"):
        say(named_path("report", write_comparison(folder)))


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist compare`."""
    parser.usage = f"hf-gist compare {USAGE} --test_file TEST [flags]"
    add_settings_flags(parser, GROUPS["compare"])
    parser.add_argument(
        "--json", action="store_true", help="Print the result as JSON on stdout, everything else on stderr."
    )


def run_compare(flags: argparse.Namespace) -> dict[str, Any]:
    """`hf-gist compare`; returns what `--json` prints."""
    _, (arguments, warmup, config) = settings_of(flags)
    runs = compare(arguments, warmup, config)
    return {"runs": without_outcomes(runs), "verdicts": verdicts(runs), "artifacts": arguments.output_dir}
