"""Scores a pool against the target subspace, and selects rows by the scores."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.accounting import ScoringRun, selection_ledger
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.costs.manifest import run_manifest
from hf_gist.costs.stopwatch import CHOOSING, COUNTING, SCORING, SHORTLIST, Stopwatch
from hf_gist.data.copies import digest
from hf_gist.data.leaks import check_rows_left, excluded_rows
from hf_gist.data.rows import content_digest, row_lengths, rows_of
from hf_gist.errors import UnscorableRowsWarning
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.subspace import target_coordinates
from hf_gist.gist.alignment import alignment_facts
from hf_gist.gist.forecast import announce, forecast_memory, forecast_scoring
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.base import CheckpointVectors
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scorers.table import scorer_of, vectors_per_checkpoint
from hf_gist.gist.scoring_cost.plan import ScoringPlan, plan_scoring
from hf_gist.gist.scoring_cost.share import Share, draw_share
from hf_gist.gist.selection import Selection
from hf_gist.gist.sources import warn_quotas
from hf_gist.gist.target_subspace import TargetSubspace, find_target_subspace, lost_by_group
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.models import model_device, model_identity, weights_digest
from hf_gist.gradients.partial import PartialScores
from hf_gist.gradients.passes import DatasetPass, RowFacts
from hf_gist.utils.disk import as_json
from hf_gist.version import __version__


SCORED_BY = ("scoring_cost", "scorer", "score_layers", "sketch_dim", "scoring_tokens_per_batch", "seed")
"""Settings that scores depend on."""


def scoring_key(
    dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, rows: list[int] | None = None
) -> dict[str, Any]:
    """Everything that scores depend on, to check whether unfinished scores may be reused.

    Args:
        dataset_pass (`DatasetPass`): model, collator and batching.
        inputs (`Inputs`): the checked inputs.
        config (`GISTConfig`): the configuration.
        rows (`list[int]`, *optional*): the rows that are scored; by default all.
    """
    settings: dict[str, Any] = {name: getattr(config, name) for name in SCORED_BY}
    read = {
        "hf_gist": __version__,
        "model": model_identity(dataset_pass.model),
        "base weights": weights_digest(dataset_pass.model, trainable=False),
        "adapter": weights_digest(dataset_pass.model, trainable=True),
        "tokenizer": getattr(getattr(dataset_pass.collator, "tokenizer", None), "name_or_path", None),
        "compute dtype": dataset_pass.scoring_dtype,
        "loss": dataset_pass.loss.name,
        "checkpoints": [(c.steps, c.learning_rate) for c in inputs.checkpoints],
        "train_dataset": content_digest(inputs.pool),
        "target_dataset": content_digest(inputs.targets),
    }
    if rows is not None:
        read["scored rows"] = f"{len(rows)} ({digest(repr(rows).encode()).hex()[:8]})"
    return as_json(settings | read)


def _warn_unscorable(measurements: Measurements, pool: Any) -> None:
    unlabelled = int((measurements.label_tokens == 0).sum())
    bad = len(measurements.not_finite)
    if unlabelled or bad:
        lengths = row_lengths(pool)
        blank = 0 if lengths is None else int(((measurements.label_tokens.numpy() == 0) & (lengths <= 1)).sum())
        # a row that a command leaves out keeps its place, as a row of one token
        left_out = f" ({blank:,} of them are empty rows, or bad rows that were left out)" if blank else ""
        warnings.warn(
            f"{unlabelled:,} of {len(pool):,} candidate rows have no labelled token{left_out} and {bad:,} have a gradient "
            "that is not finite; they are not selected, and the manifest has their counts.",
            UnscorableRowsWarning,
            stacklevel=3,
        )


def _candidate_facts(
    dataset_pass: DatasetPass,
    per_checkpoint: Sequence[CheckpointVectors],
    pool: Any,
    subspace: TargetSubspace,
    partial: PartialScores | None,
) -> RowFacts:
    """Coordinates and facts of every candidate, with the norm of its whole vector."""
    found: list[RowFacts] = []
    for number, (at_checkpoint, slices) in enumerate(zip(per_checkpoint, subspace.basis, strict=True)):
        shards = partial.shards(f"stage{number}") if partial is not None else None
        with at_checkpoint.installed():
            now = collect_coordinates(
                dataset_pass, pool, slices, "scoring candidates", at_checkpoint.candidates, shards
            )
        if found:
            before = found.pop()
            now.coordinates += before.coordinates
            now.norms = torch.hypot(before.norms, now.norms)
        found.append(now)
    return found[0]


def chunk_measurements(
    dataset_pass: DatasetPass,
    per_checkpoint: Sequence[CheckpointVectors],
    inputs: Inputs,
    subspace: TargetSubspace,
    partial: PartialScores | None = None,
) -> Measurements:
    """Measurements of the rows in `inputs.pool`, given the target subspace."""
    facts = _candidate_facts(dataset_pass, per_checkpoint, inputs.pool, subspace, partial)
    columns = inputs.target_columns
    return Measurements(
        coordinates=facts.coordinates,
        norms=facts.norms,
        label_tokens=facts.label_tokens,
        singular_values=subspace.singular,
        target_coordinates=target_coordinates(subspace.singular, subspace.u),
        target_label_tokens=subspace.label_tokens,
        target_columns={name: [values[i] for i in subspace.usable.tolist()] for name, values in columns.items()},
        target_rows=[inputs.positions[i] for i in subspace.usable.tolist()],
        sources=inputs.sources,
    )


def _measure_nothing(dataset_pass: DatasetPass, inputs: Inputs) -> Measurements:
    """Measurements for strategies without scores: only labels are counted."""
    counts = LabelCounts()
    facts = dataset_pass.scan(inputs.pool, "counting labels", counts)
    wanted = dataset_pass.scan(inputs.targets, "counting labels", counts).label_tokens
    empty = torch.zeros(0, dtype=torch.float64)
    return Measurements(
        coordinates=torch.zeros(len(facts.norms), 0),
        norms=facts.norms,
        label_tokens=facts.label_tokens,
        singular_values=empty,
        target_coordinates=torch.zeros(len(wanted), 0),
        target_label_tokens=wanted,
        target_columns=inputs.target_columns,
        target_rows=inputs.target_positions,
        sources=inputs.sources,
    )


def _without_leaks(measured: Measurements, inputs: Inputs) -> Measurements:
    """The measurements, with the pool rows that are also in the target or evaluation set or repeat each other."""
    if inputs.leaks is None:
        return measured
    return dataclasses.replace(measured, **inputs.leaks.measured(len(inputs.pool)))


def _copies_report(inputs: Inputs) -> dict[str, int] | str:
    """The manifest's entry on rows of the pool that repeat each other."""
    copies = None if inputs.leaks is None else inputs.leaks.copies
    return "not looked for: rows without input_ids" if copies is None else copies.report()


def _group_names(inputs: Inputs, config: GISTConfig) -> list[Any] | None:
    """The name of each target row's group, if there is a `target_group_column`."""
    column = config.target_group_column
    return None if column is None else inputs.target_columns.get(column)


def _unusable_targets(measured: Measurements, inputs: Inputs, config: GISTConfig) -> dict[str, Any]:
    """The manifest's entry on target rows without a labelled token or a finite gradient."""
    rows = sorted(set(inputs.positions) - set(measured.target_numbers))
    names = _group_names(inputs, config)
    named = None if names is None else dict(zip(inputs.positions, names, strict=True))
    return {"rows": rows, "groups": lost_by_group(rows, named)}


def _held_out(inputs: Inputs) -> dict[str, Any] | None:
    """The manifest's entry on target rows that were held out."""
    held_out = inputs.held_out
    if held_out is None:
        return None
    groups = {} if held_out.groups is None else dict(sorted(Counter(held_out.groups).items()))
    return {"rows": held_out.numbers, "of": len(held_out.target_set), "groups": groups}


def measure(
    dataset_pass: DatasetPass,
    inputs: Inputs,
    config: GISTConfig,
    watch: Stopwatch,
    partial: PartialScores | None = None,
    plan: ScoringPlan | Share | None = None,
) -> Measurements:
    """The targets' vectors, their spectrum, and every candidate's coordinates.

    Args:
        dataset_pass (`DatasetPass`): model, collator and batching.
        inputs (`Inputs`): the checked inputs.
        config (`GISTConfig`): determines the row representation and which rows are scored.
        watch (`Stopwatch`): records the seconds of each phase.
        partial (`PartialScores`, *optional*): saves finished batches, and resumes after the last batch that an earlier
            run saved.
        plan (`ScoringPlan` or `Share`, *optional*): the rows to score; by default all.

    Raises:
        ValueError: if no target has a usable gradient.
    """
    if config.strategy in UNSCORED:
        measured = _measure_nothing(dataset_pass, inputs)
        watch.record(COUNTING)
        return measured
    if plan is None or plan.rows is None:
        return _measure_all(dataset_pass, inputs, config, watch, partial)
    affordable = dataclasses.replace(inputs, pool=rows_of(inputs.pool, plan.rows))
    measured = _measure_all(dataset_pass, affordable, config, watch, partial)
    return measured.expand_to_pool(plan.rows, plan.label_tokens)


def _measure_all(
    dataset_pass: DatasetPass, inputs: Inputs, config: GISTConfig, watch: Stopwatch, partial: PartialScores | None
) -> Measurements:
    """Measurements of all rows in `inputs.pool`."""
    per_checkpoint = vectors_per_checkpoint(dataset_pass.model, config, inputs.checkpoints)
    subspace = find_target_subspace(
        dataset_pass, per_checkpoint, inputs.targets, watch, partial, _group_names(inputs, config)
    )
    forecast_scoring(dataset_pass, inputs.targets, inputs.pool, subspace.label_tokens, config, watch)
    measured = chunk_measurements(dataset_pass, per_checkpoint, inputs, subspace, partial)
    watch.record(SCORING)
    return measured


def measure_and_choose(
    dataset_pass: DatasetPass,
    inputs: Inputs,
    config: GISTConfig,
    partial: PartialScores | None = None,
    warmup: PhaseCost | None = None,
    number: int = 1,
) -> Selection:
    """[`measure`], then [`Selection.choose`], with a manifest and a ledger. The inputs are not checked again.

    Args:
        dataset_pass (`DatasetPass`): model, collator and batching.
        inputs (`Inputs`): the checked inputs.
        config (`GISTConfig`): the configuration.
        partial (`PartialScores`, *optional*): see [`measure`].
        warmup (`PhaseCost`, *optional*): cost of the warm-up, part of `scoring_cost` and of the ledger.
        number (`int`): of the selection in a run that chooses rows again, from 1. The later ones draw anew, and may
            score a share of the pool only.

    Raises:
        ValueError: if no row can be selected, or see [`measure`].
    """
    check_rows_left(excluded_rows(inputs.leaks, len(inputs.pool), config))
    watch = Stopwatch(model_device(dataset_pass.model))
    share = draw_share(dataset_pass, inputs, config, number)
    plan = plan_scoring(dataset_pass, inputs, config, warmup, share=share)
    for found in (share, plan):
        if found is not None:
            announce(dataset_pass, found.describe())
    looked_at = plan or share
    if looked_at is not None:
        watch.record(SHORTLIST)
    rows = None if looked_at is None else looked_at.rows
    if partial is not None and config.strategy not in UNSCORED:
        partial.open(scoring_key(dataset_pass, inputs, config, rows))
    memory = forecast_memory(dataset_pass, len(inputs.pool), len(inputs.targets), config, announced=number == 1)
    if memory is not None and memory.placement == "host":
        dataset_pass = dataclasses.replace(dataset_pass, basis_device=torch.device("cpu"))
    measurements = _without_leaks(measure(dataset_pass, inputs, config, watch, partial, looked_at), inputs)
    _warn_unscorable(measurements, inputs.pool)
    selection = Selection.choose(measurements, config, number=number)
    warn_quotas(measurements, config, selection.indices)
    watch.record(CHOOSING)
    manifest = _manifest(dataset_pass, inputs, measurements, config)
    manifest["memory_plan"] = None if memory is None else memory.to_dict()
    manifest["scoring_plan"] = None if plan is None else plan.to_dict()
    manifest["scored_share"] = None if share is None else share.to_dict()
    manifest["alignment"] = alignment_facts(selection)
    ledger = _ledger(dataset_pass, inputs, selection, watch, warmup)
    return dataclasses.replace(selection, manifest=manifest, costs=ledger)


def _manifest(
    dataset_pass: DatasetPass, inputs: Inputs, measurements: Measurements, config: GISTConfig
) -> dict[str, Any]:
    """Everything needed to reproduce a selection, and what its inputs were found to contain."""
    manifest = run_manifest(dataset_pass.model, inputs.pool, inputs.target_set, config)
    manifest["loss"] = dataset_pass.loss.name
    manifest["leaks"] = "not looked for: rows without input_ids" if inputs.leaks is None else inputs.leaks.report()
    manifest["unusable_targets"] = _unusable_targets(measurements, inputs, config)
    manifest["held_out_targets"] = _held_out(inputs)
    manifest["pool_duplicates"] = _copies_report(inputs)
    return manifest


def _ledger(
    dataset_pass: DatasetPass, inputs: Inputs, selection: Selection, watch: Stopwatch, warmup: PhaseCost | None
) -> CostLedger:
    config = selection.config
    passes = max(1, len(inputs.checkpoints))
    run = ScoringRun(ModelWork.of(dataset_pass.model), config, scorer_of(config).forward_only, passes)
    pool = row_lengths(inputs.pool)
    targets = row_lengths(inputs.targets)
    ledger = selection_ledger(run, pool, targets, selection.measurements, selection.indices, watch, warmup)
    phases = tuple(dataclasses.replace(phase, selection=selection.number) for phase in ledger.phases)
    return dataclasses.replace(ledger, phases=phases)
