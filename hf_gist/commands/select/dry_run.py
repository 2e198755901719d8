"""`hf-gist select --dry_run`: a forecast of the rows, memory and time of a selection, without running it."""

import dataclasses
import math
import time
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from hf_gist.commands.flags import SelectArguments
from hf_gist.commands.select.plan import LaterSelection, SelectionPlan
from hf_gist.commands.select.scoring import evaluation_rows
from hf_gist.commands.warmed import scoring_passes
from hf_gist.commands.workspace import Workspace, open_workspace, token_counts
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.accounting import Sizes, expected_seconds, training_cost
from hf_gist.costs.clock import RunClock
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.stopwatch import SCORING, TARGETS, WARMUP
from hf_gist.data.batches import plan_batches
from hf_gist.data.leaks import excluded_rows, find_leaks
from hf_gist.data.rows import rows_of
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gist.forecast import plan_memory
from hf_gist.gist.inputs import Inputs, prepare
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scorers.less import LESS_SIZE
from hf_gist.gist.scorers.table import scorer_of, vectors_per_checkpoint
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gist.scoring_cost.share import check_share
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import fresh_lora
from hf_gist.training.warmup import warmup_rows
from hf_gist.utils.terminal import say


TIMED_BATCHES = 3
LABELS_LOOKED_AT = 200


def _timed(dataset_pass: DatasetPass, pool: Any, lengths: np.ndarray, config: GISTConfig) -> tuple[Sizes, float]:
    """Seconds of a few batches spread over the pool, without the first one, which includes start-up costs."""
    batches = plan_batches(lengths, len(lengths), dataset_pass.tokens_per_batch)
    chosen = sorted({round(at * (len(batches) - 1) / TIMED_BATCHES) for at in range(TIMED_BATCHES + 1)})
    vectors = vectors_per_checkpoint(dataset_pass.model, config, ())[0].candidates
    rows: list[int] = []
    labelled = 0
    seconds = 0.0
    for number in chosen:
        start = time.perf_counter()
        facts = dataset_pass.scan(rows_of(pool, batches[number]), "timing", vectors)
        if number != chosen[0] or len(chosen) == 1:
            seconds += time.perf_counter() - start
            rows += batches[number]
            labelled += int(facts.label_tokens.sum())
    return Sizes(lengths[rows], labelled), seconds


def _labelled_share(dataset_pass: DatasetPass, dataset: Any, lengths: np.ndarray) -> float:
    """Share of the tokens that have a label, measured on some rows."""
    rows = list(range(0, len(lengths), math.ceil(len(lengths) / LABELS_LOOKED_AT)))
    counts = LabelCounts()
    facts = dataset_pass.scan(rows_of(dataset, rows), "counting labels", counts)
    return int(facts.label_tokens.sum()) / max(1, int(lengths[rows].sum()))


def _seconds(
    dataset_pass: DatasetPass,
    inputs: Inputs,
    config: GISTConfig,
    warmup_sample: list[int],
    passes: int,
    scored: list[int] | None,
) -> tuple[dict[str, float], int]:
    """Expected seconds of each phase, and the number of timed rows; `scored` are the rows to score, by default all."""
    if config.strategy in UNSCORED:
        return {}, 0
    lengths = token_counts(inputs.pool)
    timed, took = _timed(dataset_pass, inputs.pool, lengths, config)
    work = ModelWork.of(dataset_pass.model)
    share = _labelled_share(dataset_pass, inputs.pool, lengths)

    def expected(rows: np.ndarray) -> float:
        sizes = Sizes(rows, int(share * int(rows.sum())))
        return expected_seconds(work, config, timed, sizes, took, scorer_of(config).forward_only)

    seconds = {}
    if warmup_sample:
        trained = training_cost(work, Sizes(lengths[warmup_sample], 0), WARMUP, 0.0)
        seconds[WARMUP] = took * trained.flops / training_cost(work, timed, WARMUP, took).flops
    scoring = expected(lengths if scored is None else lengths[scored])
    seconds |= {TARGETS: passes * expected(token_counts(inputs.targets)), SCORING: passes * scoring}
    return {name: round(value, 1) for name, value in seconds.items()}, len(timed.lengths)


def _bytes(dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig) -> dict[str, int]:
    """Memory of the scoring and size of the artifacts."""
    if config.strategy in UNSCORED:
        return {"artifacts": 0}
    vectors = vectors_per_checkpoint(dataset_pass.model, config, ())[0].candidates
    memory = plan_memory(vectors, len(inputs.targets), len(inputs.pool), dataset_pass.tokens_per_batch)
    # on a CPU, the memory of the device is that of the host
    on_device = () if memory.device == "cpu" else ("device_free",)
    shown = ("basis", "coordinates", "activations", *on_device, "host_free")
    return {name: getattr(memory, name) for name in shown} | {"artifacts": memory.coordinates}


def _counts(inputs: Inputs, config: GISTConfig, warmup_steps: int) -> dict[str, int]:
    """The `counts` of [`SelectionPlan`]."""
    size = len(inputs.pool)
    excluded = excluded_rows(inputs.leaks, size, config)
    usable = size if excluded is None else size - int(excluded.sum())
    copies = None if inputs.leaks is None else inputs.leaks.copies
    column = config.target_group_column
    return {
        "candidates": size,
        "candidate_tokens": int(token_counts(inputs.pool).sum()),
        "targets": len(inputs.targets),
        "target_groups": len(set(inputs.target_columns[column])) if column else len(inputs.targets),
        "selected": min(usable, rows_in_budget(config.budget, config.budget_unit, size) or 0),
        "warmup_steps": warmup_steps,
        "leaked": 0 if inputs.leaks is None else int(inputs.leaks.mask(size).sum()),
        "duplicates": 0 if copies is None else int(copies.mask.sum()),
    }


def _warmup_sample(
    inputs: Inputs, workspace: Workspace, config: GISTConfig, warmup: WarmupSettings | None
) -> list[int]:
    """The rows that the warm-up would train on; none without a warm-up."""
    if warmup is None or config.strategy in UNSCORED:
        return []
    size = len(inputs.pool)
    excluded = workspace.with_bad_rows(excluded_rows(inputs.leaks, size, config))
    return warmup_rows(config, warmup, size, excluded)


def plan_selection(
    model: nn.Module,
    workspace: Workspace,
    config: GISTConfig,
    warmup: WarmupSettings | None,
    eval_dataset: Dataset | None,
) -> SelectionPlan:
    """The forecast of [`select`] with this model.

    Args:
        model (`PeftModel`): the model before its warm-up.
        workspace (`Workspace`): tokenised pool and targets.
        config (`GISTConfig`): the selection.
        warmup (`WarmupSettings`, *optional*): of the warm-up; `None` if the adapter is trained already.
        eval_dataset (`Dataset`, *optional*): evaluation rows.

    Raises:
        ValueError: for every input that [`select`] raises for before it starts.
    """
    inputs = prepare(model, workspace.pool, workspace.targets, config, workspace.collator)
    leaks = find_leaks(inputs.pool, inputs.targets, eval_dataset, workspace.tokenizer)
    inputs = dataclasses.replace(inputs, leaks=leaks)
    sample = _warmup_sample(inputs, workspace, config, warmup)
    passes = scoring_passes(config, warmup or WarmupSettings(), len(sample))
    if scorer_of(config).needs_adam:
        # the same work without the optimizer state, which exists only after a warm-up
        config = dataclasses.replace(config, scorer="gist", sketch_dim=LESS_SIZE)
    steps = math.ceil(len(sample) / warmup.per_device_train_batch_size) if warmup is not None else 0
    dataset_pass = workspace.dataset_pass(model, config)
    cost = RunClock().cost(WARMUP, model, token_counts(inputs.pool), sample)
    plan = plan_scoring(dataset_pass, inputs, config, cost, passes)
    seconds, timed_rows = _seconds(dataset_pass, inputs, config, sample, passes, None if plan is None else plan.rows)
    needed = _bytes(dataset_pass, inputs, config)
    # a training scores by one checkpoint, the adapter of the moment
    at_once = {name: value / passes for name, value in seconds.items()}
    later = _later_selection(dataset_pass, inputs, config, at_once, len(inputs.pool) if plan is None else plan.scored)
    return SelectionPlan(_counts(inputs, config, steps), needed, seconds, timed_rows, plan, later)


def _later_selection(
    dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, seconds: dict[str, float], scored: int
) -> LaterSelection | None:
    """Each later selection of a training, from the forecast of the first; `None` without `reselect_every`.

    Args:
        dataset_pass (`DatasetPass`): model, collator and batching.
        inputs (`Inputs`): pool, targets and what must not be selected.
        config (`GISTConfig`): the selection.
        seconds (`dict[str, float]`): expected seconds of each phase of the first selection, for one checkpoint.
        scored (`int`): rows that the first selection scores.

    Raises:
        ValueError: if `reselect_share` or `scoring_cost` has too few rows for the budget.
    """
    if config.reselect_every is None:
        return None
    if config.strategy in UNSCORED:
        return LaterSelection(config.reselect_every, 0, 0.0)
    shares = check_share(dataset_pass, inputs, config, [2])
    share = shares[0] if shares else None
    plan = plan_scoring(dataset_pass, inputs, config, passes=1, share=share)
    drawn = len(inputs.pool) if share is None else len(share.rows)
    rows = drawn if plan is None else plan.scored
    expected = seconds[TARGETS] + seconds[SCORING] * rows / scored
    return LaterSelection(config.reselect_every, rows, round(expected, 1), None if plan is None else plan.total)


def dry_run(arguments: SelectArguments, warmup: WarmupSettings, config: GISTConfig) -> dict[str, Any]:
    """Print the forecast of a selection; returns what `--json` prints.

    Args:
        arguments (`SelectArguments`): the flags.
        warmup (`WarmupSettings`): of the warm-up of a new LoRA.
        config (`GISTConfig`): of the selection.

    Raises:
        ValueError: for flags that do not score a whole pool.
    """
    if arguments.from_scores is not None or arguments.streaming:
        other = "--from_scores" if arguments.from_scores is not None else "--streaming"
        raise ValueError(f"`--dry_run` cannot be used with `{other}`: it forecasts the scoring of a whole pool.")
    base = arguments.load_model()
    workspace = open_workspace(arguments, arguments.load_pool(), base)
    trained = arguments.adapter_name_or_path
    forecast = plan_selection(
        arguments.with_adapter(base, trained, workspace.tokenizer)
        if trained
        else fresh_lora(base, warmup, config.seed),
        workspace,
        config,
        None if trained else warmup,
        evaluation_rows(arguments, workspace.preparer),
    )
    say(forecast.describe())
    return forecast.to_dict()
