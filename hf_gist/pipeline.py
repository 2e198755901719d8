"""Offline GIST: measure a pool against a target set, then choose. The callback runs the same code inside training."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from hf_gist.artifacts import Selection
from hf_gist.backward import model_device
from hf_gist.baselines import AdamCheckpoint, LabelCounts, Stage, stages_of
from hf_gist.checks import check_dataset, check_inputs, group_columns
from hf_gist.collect import Pass, RowFacts, collect_coordinates, collect_vectors
from hf_gist.config import UNSCORED, GISTConfig
from hf_gist.disk import as_json
from hf_gist.errors import UnscorableRowsWarning
from hf_gist.forecast import forecast_memory, forecast_scoring
from hf_gist.leaks import Leaks, find_leaks
from hf_gist.ledger import selection_ledger
from hf_gist.lora import model_identity, weights_digest
from hf_gist.manifest import (
    CHOOSING,
    COUNTING,
    PREFILTER,
    SCORING,
    SUBSPACE,
    TARGETS,
    Stopwatch,
    run_manifest,
)
from hf_gist.measurements import Measurements
from hf_gist.report import keep_examples
from hf_gist.rows import (
    Collator,
    content_digest,
    keep_columns,
    read_column,
    row_lengths,
    rows_of,
    signature_columns,
)
from hf_gist.shards import PARTIAL, PartialScores
from hf_gist.subspace import basis_slice, spectrum, target_coordinates
from hf_gist.version import __version__


SPAN = "targets"
"""Name of the targets' spectrum among unfinished scores."""


@dataclass(frozen=True)
class Inputs:
    """What a measurement reads, all checked.

    Args:
        pool: tokenised candidates, `N` rows.
        targets: tokenised targets, `M` rows.
        target_columns (`dict[str, list]`): columns of the targets to group by later.
        sources (`list[str]`, *optional*): the source of each candidate.
        leaks (`Leaks`, *optional*): rows of the pool that are in the target or evaluation set too.
        checkpoints (`Sequence[AdamCheckpoint]`): for `scorer="less"`.
    """

    pool: Any
    targets: Any
    target_columns: dict[str, list[Any]]
    sources: list[str] | None = None
    leaks: Leaks | None = None
    checkpoints: Sequence[AdamCheckpoint] = ()


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


@dataclass(frozen=True)
class Span:
    """The subspace of the targets.

    Args:
        singular (`Tensor`): `[q]`.
        u (`Tensor`): `[M', q]`, for the usable target rows.
        usable (`Tensor`): their row numbers `[M']`.
        label_tokens (`Tensor`): their labelled tokens `[M']`.
        basis (`list[dict[str, Tensor]]`): each stage's slices of the basis.
    """

    singular: torch.Tensor
    u: torch.Tensor
    usable: torch.Tensor
    label_tokens: torch.Tensor
    basis: list[dict[str, torch.Tensor]]


def _place(slice_: torch.Tensor, run: Pass) -> torch.Tensor:
    """A slice of the basis where it is kept: pinned on the host, if it is copied to a GPU again and again."""
    on_host = model_device(run.model).type == "cuda" and slice_.device.type == "cpu"
    return slice_.pin_memory() if on_host else slice_


def target_span(
    run: Pass, stages: Sequence[Stage], targets: Any, watch: Stopwatch, partial: PartialScores | None
) -> Span:
    """Spectrum of the targets' vectors and each stage's slices of the basis."""
    parts: list[dict[str, torch.Tensor]] = []
    for stage in stages:
        with stage.installed():
            vectors, facts = collect_vectors(run, targets, "target gradients", stage.targets)
        parts.append(vectors)
    usable = (facts.label_tokens > 0) & torch.isfinite(facts.norms)
    if not usable.any():
        raise ValueError("No row of `target_dataset` has a labelled token and a finite gradient.")
    watch.lap(TARGETS)
    rows = usable.nonzero().flatten()
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for vectors in parts:
        for name in vectors:
            vectors[name] = vectors[name][rows.to(vectors[name].device)]
            wide = vectors[name].double()
            gram += (wide @ wide.T).cpu()
    kept = partial.kept(SPAN) if partial is not None else None
    if kept is None:
        singular, u = spectrum(gram)
        kept = {"singular": singular, "u": u.contiguous()}
        if partial is not None:
            partial.keep(SPAN, kept)
    # A last digit of difference can turn the eigenvectors: scores of before belong to the eigenvectors of before.
    singular, u = kept["singular"], kept["u"]
    basis = [
        {name: _place(basis_slice(vectors.pop(name), singular, u), run) for name in list(vectors)} for vectors in parts
    ]
    watch.lap(SUBSPACE)
    return Span(singular, u, rows, facts.label_tokens[rows], basis)


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


def prepare(model: nn.Module, candidates: Any, targets: Any, config: GISTConfig, collator: Collator) -> Inputs:
    """Check what [`select`] is given, and take from it what scoring needs.

    Returns:
        `Inputs`: pool and targets cut to the model's columns, the columns of the targets to group by, and the source of
        each candidate if there is a `source_column`.

    Raises:
        ValueError: see [`select`].
    """
    check_dataset(candidates, "candidates")
    check_dataset(targets, "targets")
    sources = None
    if config.source_column is not None:
        sources = [str(value) for value in read_column(candidates, config.source_column, "source_column")]
    columns = group_columns(targets, config)
    accepted = signature_columns(model)
    pool, targets = keep_columns(candidates, accepted), keep_columns(targets, accepted)
    check_inputs(model, pool, targets, config, collator)
    return Inputs(pool, targets, columns, sources)


def select(
    model: nn.Module,
    candidates: Any,
    targets: Any,
    config: GISTConfig | None = None,
    *,
    data_collator: Collator,
    output_dir: str | Path | None = None,
    progress: bool = True,
    eval_dataset: Any = None,
    checkpoints: Sequence[AdamCheckpoint] = (),
) -> Selection:
    """Select the candidates whose LoRA gradients align best with those of the targets (paper GIST).

    The adapter should have seen a short warm-up first: with LoRA's `B` at zero only half of its gradients say anything.

    Args:
        model (`PeftModel`): a model with trainable LoRA layers; it is left as it was.
        candidates: the pool, `N` tokenised rows (a `datasets.Dataset` or any sized dataset of dicts).
        targets: `M` tokenised rows that stand for what the model should become good at.
        config (`GISTConfig`, *optional*): what to select and how.
        data_collator (`Callable`): rows to a padded batch with `labels`, the one used for training.
        output_dir (`str` or `Path`, *optional*): where to write the artifacts. Scoring that was interrupted goes on
            behind what it had finished there.
        progress (`bool`, defaults to `True`): show progress bars.
        eval_dataset (*optional*): tokenised evaluation rows, which are not to be selected.
        checkpoints (`Sequence[AdamCheckpoint]`): for the baseline `scorer="less"`, see
            [`hf_gist.baselines.adam_checkpoint`].

    Returns:
        `Selection`: the selected rows, scores and measurements.

    Raises:
        ValueError: for inputs that cannot be selected from, before any gradient is taken.
    """
    config = config or GISTConfig()
    inputs = prepare(model, candidates, targets, config, data_collator)
    tokenizer = getattr(data_collator, "tokenizer", None)
    leaks = find_leaks(inputs.pool, inputs.targets, eval_dataset, tokenizer)
    inputs = dataclasses.replace(inputs, leaks=leaks, checkpoints=tuple(checkpoints))
    if config.strategy not in UNSCORED:
        stages_of(model, config, checkpoints)  # what is missing should show before the work starts
    run = Pass(model, data_collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress)
    partial = PartialScores(Path(output_dir) / PARTIAL, config.save_every) if output_dir is not None else None
    selection = measure_and_choose(run, inputs, config, partial)
    if output_dir is not None:
        if PartialState().is_main_process:
            selection.save(output_dir)
            keep_examples(output_dir, selection, inputs.pool, inputs.targets, tokenizer=tokenizer)
        partial.remove()
    return selection
