"""`hf-gist select --dry_run`: what a selection would look at, need and take, without doing it."""

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hf_gist.commands.workspace import Workspace
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.accounting import Sizes, expected_seconds, training_cost
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import in_units
from hf_gist.costs.stopwatch import PREFILTER, SCORING, TARGETS, WARMUP
from hf_gist.data.batches import plan_batches
from hf_gist.data.leaks import excluded_rows, find_leaks
from hf_gist.data.rows import row_lengths, rows_of
from hf_gist.functional.budget import rows_in_budget
from hf_gist.gist.forecast import duration, plan_memory
from hf_gist.gist.inputs import prepare
from hf_gist.gist.scorers.label_counts import LabelCounts
from hf_gist.gist.scorers.less import LESS_SIZE
from hf_gist.gist.scorers.table import scorer_of, vectors_per_checkpoint
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.warmup import warmup_rows


TIMED_BATCHES = 3
LABELS_LOOKED_AT = 200


@dataclass(frozen=True)
class SelectionPlan:
    """A selection that was not made.

    Args:
        counts (`dict[str, int]`): `candidates`, `candidate_tokens`, `targets`, `target_groups`, `selected` (0 for a
            budget in tokens), `warmup_steps`, `leaked` rows of the pool.
        bytes (`dict[str, int]`): `basis`, `coordinates`, `activations`, `device_free` and `host_free` memory, and
            `artifacts` on disk.
        seconds (`dict[str, float]`): of each phase, from a few timed batches.
        timed_rows (`int`): rows in those.
    """

    counts: dict[str, int]
    bytes: dict[str, int]
    seconds: dict[str, float]
    timed_rows: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"total_seconds": sum(self.seconds.values())}

    def describe(self) -> str:
        """A table for people."""
        counts, lines = self.counts, []
        lines.append(("pool", f"{counts['candidates']:,} rows of {counts['candidate_tokens']:,} tokens"))
        lines.append(("targets", f"{counts['targets']:,} rows in {counts['target_groups']:,} group(s)"))
        share = counts["selected"] / counts["candidates"]
        kept = f"{counts['selected']:,} rows ({share:.2%})" if counts["selected"] else "by labelled tokens"
        lines.append(("to keep", kept))
        lines.append(("target or evaluation rows", f"{counts['leaked']:,} found in the pool"))
        lines += [(f"memory, {name.replace('_', ' ')}", in_units(size)) for name, size in self.bytes.items()]
        steps = f" ({counts['warmup_steps']:,} steps)"
        for name, seconds in self.seconds.items():
            lines.append((f"time, {name}", f"about {duration(seconds)}{steps if name == WARMUP else ''}"))
        lines.append(("time, all", f"about {duration(sum(self.seconds.values()))}, from {self.timed_rows} timed rows"))
        lines = [(name.replace("memory, artifacts", "disk, artifacts"), text) for name, text in lines]
        return "\n".join(["Nothing is written in a dry run.", *(f"{name:<28}{text}" for name, text in lines)])


def _timed(dataset_pass: DatasetPass, pool: Any, lengths: np.ndarray, config: GISTConfig) -> tuple[Sizes, float]:
    """Seconds of a few batches from all over the pool, without the first one, which pays for starting up."""
    batches = plan_batches(lengths, len(lengths), dataset_pass.tokens_per_batch)
    chosen = sorted({round(at * (len(batches) - 1) / TIMED_BATCHES) for at in range(TIMED_BATCHES + 1)})
    vectors = vectors_per_checkpoint(dataset_pass.model, config, ())[0].candidates

    def nothing(indices: list[int]) -> Any:
        return lambda name, values: None

    rows, labelled, seconds = [], 0, 0.0
    for number in chosen:
        start = time.perf_counter()
        facts = dataset_pass.scan(rows_of(pool, batches[number]), "timing", vectors, nothing)
        if number != chosen[0] or len(chosen) == 1:
            seconds += time.perf_counter() - start
            rows += batches[number]
            labelled += int(facts.label_tokens.sum())
    return Sizes(lengths[rows], labelled), seconds


def _labelled_share(dataset_pass: DatasetPass, dataset: Any, lengths: np.ndarray) -> float:
    """Share of the tokens that carry a label, from some rows."""
    rows = list(range(0, len(lengths), math.ceil(len(lengths) / LABELS_LOOKED_AT)))
    facts = dataset_pass.scan(
        rows_of(dataset, rows), "counting labels", LabelCounts(dataset_pass.model), lambda _: None
    )
    return int(facts.label_tokens.sum()) / max(1, int(lengths[rows].sum()))


def _seconds(
    dataset_pass: DatasetPass, pool: Any, targets: Any, config: GISTConfig, warm: list[int], passes: int
) -> tuple[dict[str, float], int]:
    lengths, wanted = row_lengths(pool), row_lengths(targets)
    if config.strategy in UNSCORED:
        return {}, 0
    timed, took = _timed(dataset_pass, pool, lengths, config)
    work, share = ModelWork.of(dataset_pass.model), _labelled_share(dataset_pass, pool, lengths)

    def expected(rows: np.ndarray) -> float:
        sizes = Sizes(rows, int(share * int(rows.sum())))
        return expected_seconds(work, config, timed, sizes, took, scorer_of(config).forward_only)

    seconds = {}
    if warm:
        known = training_cost(work, timed, WARMUP, took)
        seconds[WARMUP] = took * training_cost(work, Sizes(lengths[warm], 0), WARMUP, 0.0).flops / known.flops
    everything = expected(lengths)
    if config.prefilter is not None:
        # a forward pass alone, of a forward and a backward
        seconds[PREFILTER] = everything / 2
        everything *= config.prefilter
    return seconds | {TARGETS: passes * expected(wanted), SCORING: passes * everything}, len(timed.lengths)


def plan_selection(
    model: nn.Module,
    workspace: Workspace,
    config: GISTConfig,
    warmup: WarmupSettings | None,
    eval_dataset: Any,
) -> SelectionPlan:
    """What [`select`] would do with this model.

    Args:
        model (`PeftModel`): the model, its warm-up not made.
        workspace (`Workspace`): tokenised pool and targets.
        config (`GISTConfig`): the selection.
        warmup (`WarmupSettings`, *optional*): of the warm-up; `None` if the adapter is trained already.
        eval_dataset: evaluation rows, or `None`.

    Raises:
        ValueError: for all that [`select`] would refuse before it starts.
    """
    inputs = prepare(model, workspace.pool, workspace.targets, config, workspace.collator)
    passes = 1
    if config.scorer == "less":
        # the same work without the optimizer's state, which the warm-up would have made
        passes = (warmup or WarmupSettings()).less_checkpoints
        config = dataclasses.replace(config, scorer="gist", sketch_dim=LESS_SIZE)
    leaks = find_leaks(inputs.pool, inputs.targets, eval_dataset, workspace.tokenizer)
    lengths, size, targets = row_lengths(inputs.pool), len(inputs.pool), len(inputs.targets)
    dataset_pass = DatasetPass(
        model, workspace.collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress=False
    )
    warm = (
        []
        if warmup is None or config.strategy in UNSCORED
        else warmup_rows(config, warmup, size, excluded_rows(leaks, size, config))
    )
    seconds, timed_rows = _seconds(dataset_pass, inputs.pool, inputs.targets, config, warm, passes)
    needed = {"artifacts": 0}
    if config.strategy not in UNSCORED:
        vectors = vectors_per_checkpoint(model, config, ())[0].candidates
        memory = plan_memory(vectors, targets, size, dataset_pass.tokens_per_batch)
        shown = ("basis", "coordinates", "activations", "device_free", "host_free")
        needed = {name: getattr(memory, name) for name in shown} | {"artifacts": memory.coordinates}
    columns = inputs.target_columns
    groups = len(set(columns[config.target_group_column])) if config.target_group_column else targets
    return SelectionPlan(
        {
            "candidates": size,
            "candidate_tokens": int(lengths.sum()),
            "targets": targets,
            "target_groups": groups,
            "selected": rows_in_budget(config.budget, config.budget_unit, size) or 0,
            "warmup_steps": math.ceil(len(warm) / warmup.per_device_train_batch_size) if warm else 0,
            "leaked": 0 if leaks is None else int(leaks.mask(size).sum()),
        },
        needed,
        {name: round(value, 1) for name, value in seconds.items()},
        timed_rows,
    )
