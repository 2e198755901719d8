"""Measuring a pool against the target subspace, and choosing from the measurements."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.accounting import selection_ledger
from hf_gist.costs.manifest import run_manifest
from hf_gist.costs.stopwatch import CHOOSING, COUNTING, PREFILTER, SCORING, Stopwatch
from hf_gist.data.rows import content_digest, row_lengths, rows_of
from hf_gist.errors import UnscorableRowsWarning
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.subspace import target_coordinates
from hf_gist.gist.forecast import forecast_memory, forecast_scoring
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scorers.table import Stage, stages_of
from hf_gist.gist.selection import Selection
from hf_gist.gist.target_subspace import Span, target_span
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.models import model_device, model_identity, weights_digest
from hf_gist.gradients.partial import PartialScores
from hf_gist.gradients.passes import Pass, RowFacts
from hf_gist.utils.disk import as_json
from hf_gist.version import __version__


SHORTLISTED_BY = ("rank", "explained_variance", "target_group_column", "drop_target_duplicates")


def scoring_key(run: Pass, inputs: Inputs, config: GISTConfig) -> dict[str, Any]:
    """All that scores depend on, to tell whether unfinished ones may be used."""
    names = ("scorer", "score_layers", "sketch_dim", "prefilter", "scoring_tokens_per_batch", "seed")
    shortlist: dict[str, Any] = {}
    if config.prefilter is not None:
        # what else decides which rows it passes on, by whose places scores are kept
        shortlist = {name: getattr(config, name) for name in SHORTLISTED_BY} | {
            "target groups": inputs.target_columns,
            "leaks": None if inputs.leaks is None else inputs.leaks.report(),
        }
    return as_json(
        {name: getattr(config, name) for name in names}
        | shortlist
        | {
            "hf_gist": __version__,
            "model": model_identity(run.model),
            "base weights": weights_digest(run.model, trainable=False),
            "adapter": weights_digest(run.model, trainable=True),
            "tokenizer": getattr(getattr(run.collator, "tokenizer", None), "name_or_path", None),
            "compute dtype": run.scoring_dtype,
            "checkpoints": [(c.steps, c.learning_rate) for c in inputs.checkpoints],
            "train_dataset": content_digest(inputs.pool),
            "target_dataset": content_digest(inputs.targets),
        }
    )


def _warn_unscorable(measurements: Measurements) -> None:
    unlabelled = int((measurements.label_tokens == 0).sum())
    bad = len(measurements.not_finite)
    if unlabelled or bad:
        warnings.warn(
            f"{unlabelled} candidate rows have no labelled token and {bad} have a gradient that is not finite; they "
            "are left out of the selection and counted in the manifest.",
            UnscorableRowsWarning,
            stacklevel=3,
        )


def _candidate_facts(
    run: Pass, stages: Sequence[Stage], pool: Any, span: Span, partial: PartialScores | None
) -> RowFacts:
    """Coordinates and facts of every candidate, with the norm of its whole vector."""
    facts = None
    for number, (stage, slices) in enumerate(zip(stages, span.basis, strict=True)):
        shards = partial.shards(f"stage{number}") if partial is not None else None
        with stage.installed():
            now = collect_coordinates(run, pool, slices, "scoring candidates", stage.candidates, shards)
        if facts is not None:
            now.coordinates += facts.coordinates
            now.norms = torch.hypot(facts.norms, now.norms)
        facts = now
    return facts


def chunk_measurements(
    run: Pass, stages: Sequence[Stage], inputs: Inputs, span: Span, partial: PartialScores | None = None
) -> Measurements:
    """Measurements of the rows in `inputs.pool` against targets whose subspace is known."""
    facts = _candidate_facts(run, stages, inputs.pool, span, partial)
    columns = inputs.target_columns
    return Measurements(
        coordinates=facts.coordinates,
        norms=facts.norms,
        label_tokens=facts.label_tokens,
        singular_values=span.singular,
        target_coordinates=target_coordinates(span.singular, span.u),
        target_label_tokens=span.label_tokens,
        target_columns={name: [values[i] for i in span.usable.tolist()] for name, values in columns.items()},
        target_rows=span.usable.tolist(),
        sources=inputs.sources,
    )


def _measure_nothing(run: Pass, inputs: Inputs) -> Measurements:
    """For the strategies that look at no score: only the labels are counted."""
    counts = LabelCounts(run.model)
    facts = run.run(inputs.pool, "counting labels", counts, lambda _: None)
    wanted = run.run(inputs.targets, "counting labels", counts, lambda _: None).label_tokens
    empty = torch.zeros(0, dtype=torch.float64)
    return Measurements(
        coordinates=torch.zeros(len(facts.norms), 0),
        norms=facts.norms,
        label_tokens=facts.label_tokens,
        singular_values=empty,
        target_coordinates=torch.zeros(len(wanted), 0),
        target_label_tokens=wanted,
        target_columns=inputs.target_columns,
        sources=inputs.sources,
    )


def _without_leaks(measured: Measurements, inputs: Inputs) -> Measurements:
    """The measurements, with the rows marked that are in another set too."""
    if inputs.leaks is None:
        return measured
    return dataclasses.replace(measured, leaked=inputs.leaks.mask(len(inputs.pool)))


def _shortlist(run: Pass, inputs: Inputs, config: GISTConfig) -> tuple[list[int], torch.Tensor]:
    """The rows that [`GISTConfig`]'s `prefilter` passes on, and the labelled tokens of all rows."""
    cheap = dataclasses.replace(
        config, scorer="rds_plus", score="subspace_cosine", prefilter=None, score_layers=None, sketch_dim=None
    )
    best = {"strategy": "max", "sample_from_top": 1.0, "budget": config.prefilter, "budget_unit": "rows"}
    cheap = dataclasses.replace(cheap, **best)
    measured = _without_leaks(measure(run, inputs, cheap, Stopwatch()), inputs)
    return sorted(Selection.choose(measured, cheap).indices), measured.label_tokens


def measure(
    run: Pass, inputs: Inputs, config: GISTConfig, watch: Stopwatch, partial: PartialScores | None = None
) -> Measurements:
    """The targets' vectors, their spectrum, and every candidate's coordinates.

    Args:
        run (`Pass`): model, collator and batching.
        inputs (`Inputs`): pool, targets and what goes with them.
        config (`GISTConfig`): what stands for a row, and which rows are looked at.
        watch (`Stopwatch`): gets the seconds of each phase.
        partial (`PartialScores`, *optional*): keeps what is finished, and goes on behind what an earlier run finished.

    Raises:
        ValueError: if no target has a usable gradient.
    """
    if config.strategy in UNSCORED:
        measured = _measure_nothing(run, inputs)
        watch.lap(COUNTING)
        return measured
    pool, rows = inputs.pool, None
    if config.prefilter is not None:
        rows, label_tokens = _shortlist(run, inputs, config)
        pool = rows_of(pool, rows)
        watch.lap(PREFILTER)
    stages = stages_of(run.model, config, inputs.checkpoints)
    span = target_span(run, stages, inputs.targets, watch, partial)
    forecast_scoring(run, inputs.targets, pool, span.label_tokens, config, watch)
    measurements = chunk_measurements(run, stages, dataclasses.replace(inputs, pool=pool), span, partial)
    watch.lap(SCORING)
    return measurements if rows is None else measurements.spread(rows, label_tokens)


def measure_and_choose(
    run: Pass, inputs: Inputs, config: GISTConfig, partial: PartialScores | None = None
) -> Selection:
    """[`measure`], then [`Selection.choose`], with a manifest. The inputs are taken as checked."""
    watch = Stopwatch(model_device(run.model))
    if partial is not None and config.strategy not in UNSCORED:
        partial.open(scoring_key(run, inputs, config))
    plan = forecast_memory(run, len(inputs.pool), len(inputs.targets), config)
    if plan is not None and plan.placement == "host":
        run = dataclasses.replace(run, basis_device=torch.device("cpu"))
    measurements = _without_leaks(measure(run, inputs, config, watch, partial), inputs)
    _warn_unscorable(measurements)
    selection = Selection.choose(measurements, config, {})
    watch.lap(CHOOSING)
    manifest = run_manifest(run.model, inputs.pool, inputs.targets, config)
    manifest["memory_plan"] = None if plan is None else plan.to_dict()
    ledger = selection_ledger(
        run.model,
        config,
        row_lengths(inputs.pool),
        row_lengths(inputs.targets),
        measurements,
        selection.indices,
        watch,
        max(1, len(inputs.checkpoints)),
    )
    manifest["leaks"] = "not looked for: rows without input_ids" if inputs.leaks is None else inputs.leaks.report()
    return dataclasses.replace(selection, manifest=manifest, costs=ledger)
