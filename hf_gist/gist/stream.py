"""Selects from a stream that is read once: scores the targets, then the stream in chunks, and keeps the best rows."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.stopwatch import Stopwatch
from hf_gist.data.copies import SeenRows
from hf_gist.data.leaks import LeakGuard, warn
from hf_gist.data.reading.stream import chunk_of
from hf_gist.data.rows import Collator, keep_columns
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.checks import (
    check_dataset,
    check_groups,
    check_labels,
    check_only_selects,
    group_columns,
    warn_selects_once,
)
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.table import scorer_of, vectors_per_checkpoint
from hf_gist.gist.scoring import chunk_measurements
from hf_gist.gist.selection import Selection
from hf_gist.gist.target_subspace import find_target_subspace
from hf_gist.gradients.models import signature_columns
from hf_gist.gradients.passes import DatasetPass


CHUNK_ROWS = 4096


@dataclass(frozen=True)
class StreamSelection:
    """The best rows of a stream.

    Args:
        indices (`list[int]`): their numbers in the stream, best first.
        scores (`list[float]`): their scores.
        rows (`list[dict]`): the unchanged rows.
        seen (`int`): number of rows in the stream.
        unscorable (`int`): number of rows without a label or a finite gradient.
        repeated (`int`): number of rows left out because they repeat an earlier one.
    """

    indices: list[int]
    scores: list[float]
    rows: list[dict[str, Any]]
    seen: int
    unscorable: int
    repeated: int = 0


def check_stream_config(config: GISTConfig) -> None:
    """Check that no setting needs the whole pool at once.

    Raises:
        ValueError: naming the setting.
    """
    check_only_selects(config)
    if isinstance(config.budget, float) or config.budget_unit != "rows":
        raise ValueError(
            f"`budget={config.budget!r}` {config.budget_unit}: the length of a stream is not known; "
            "give a number of rows."
        )
    if config.strategy in (*UNSCORED, "round_robin") or config.sample_from_top != 1 or config.scoring_cost is not None:
        raise ValueError(
            "A stream is read once: `strategy` must be 'max' or 'mean', without `sample_from_top` and `scoring_cost`."
        )
    if config.source_shares or config.source_max:
        raise ValueError(
            "`source_shares` and `source_max` need the whole pool; a stream is read once. Leave them out."
        )
    if scorer_of(config).needs_adam:
        raise ValueError(f"`scorer={config.scorer!r}` scores at several checkpoints, but a stream is read only once.")


def chunks_of(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of up to `size` rows."""
    stream = iter(rows)
    while chunk := list(islice(stream, size)):
        yield chunk


def select_stream(
    model: torch.nn.Module,
    candidates: Iterable[dict[str, Any]],
    targets: Any,
    config: GISTConfig,
    *,
    data_collator: Collator,
    tokenize: Callable[[Dataset], Dataset] | None = None,
    eval_dataset: Any = None,
    chunk_rows: int = CHUNK_ROWS,
    progress: bool = True,
) -> StreamSelection:
    """Select from a stream in little memory: one chunk, the best rows so far, and 16 bytes for every row seen.

    The 16 bytes are for `drop_pool_duplicates`; without it, memory does not grow with the stream.

    Args:
        model (`PeftModel`): a model with trainable LoRA layers, after the warm-up.
        candidates: rows, for example a streaming dataset.
        targets: tokenised target rows.
        config (`GISTConfig`): `budget` is a number of rows, `strategy` `"max"` or `"mean"`.
        data_collator (`Callable`): rows to a padded batch.
        tokenize (`Callable`, *optional*): turns a chunk of raw rows into tokenised ones, row by row.
        eval_dataset (*optional*): tokenised evaluation rows; those that are also candidates are not selected.
        chunk_rows (`int`): rows per chunk.
        progress (`bool`): show progress bars.

    Returns:
        `StreamSelection`: the same rows that [`select`] would select; of rows with equal scores, the earlier row.

    Raises:
        ValueError: for settings that need the whole pool, before the stream is read.
    """
    check_stream_config(config)
    warn_selects_once(config, "a selection from a stream")
    check_dataset(targets, "targets")
    columns = group_columns(targets, config)
    accepted = signature_columns(model)
    targets = keep_columns(targets, accepted)
    dataset_pass = DatasetPass(model, data_collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress)
    labelled = check_labels(targets, data_collator, dataset_pass.loss, "target_dataset", range(len(targets)))
    check_groups(labelled > 0, columns.get(config.target_group_column or ""))
    per_checkpoint = vectors_per_checkpoint(model, config, ())
    subspace = find_target_subspace(
        dataset_pass, per_checkpoint, targets, Stopwatch(), None, columns.get(config.target_group_column or "")
    )
    guard = LeakGuard(targets, eval_dataset, getattr(data_collator, "tokenizer", None))
    found = guard.nothing_found()
    best = _BestRows(config)
    for rows in chunks_of(candidates, chunk_rows):
        chunk = chunk_of(rows)
        inputs = Inputs(keep_columns(tokenize(chunk) if tokenize else chunk, accepted), targets, columns)
        measured = chunk_measurements(dataset_pass, per_checkpoint, inputs, subspace)
        digests = None
        if guard.usable:
            leaks, digests, _ = guard.compare(inputs.pool)
            measured = replace(measured, leaked=leaks.mask(len(rows)))
            found.extend(leaks, best.seen)
        best.add(rows, measured, digests)
    warn(found)
    return best.selection()


class _BestRows:
    """The best rows of a stream so far, in a heap that holds at most `budget` rows."""

    def __init__(self, config: GISTConfig) -> None:
        self.config = config
        self.limit = int(config.budget)
        self.heap: list[tuple[float, int, dict[str, Any]]] = []
        self.seen = 0
        self.unscorable = 0
        self.repeated = 0
        self.contents = SeenRows()

    def add(self, rows: list[dict[str, Any]], measured: Measurements, digests: np.ndarray | None) -> None:
        """Add a chunk, with the digests of its rows' contents; of rows with equal scores, the earlier one is kept."""
        self.unscorable += len(rows) - int(measured.scorable.sum())
        if self.config.drop_pool_duplicates and digests is not None:
            measured = self._first_copies(measured, digests)
        eligible = int(measured.eligible(self.config.drop_target_duplicates, False).sum())
        if eligible:
            chosen = Selection.choose(measured, replace(self.config, budget=min(self.limit, eligible)))
            for row in chosen.indices:
                entry = (float(chosen.scores[row]), -(self.seen + row), rows[row])
                (heapq.heappush if len(self.heap) < self.limit else heapq.heappushpop)(self.heap, entry)
        self.seen += len(rows)

    def _first_copies(self, measured: Measurements, digests: np.ndarray) -> Measurements:
        """The measurements of a chunk without the rows whose content was in an earlier row that may be selected."""
        rows = measured.eligible(self.config.drop_target_duplicates, False).nonzero().flatten()
        new = torch.zeros(len(digests), dtype=torch.bool)
        new[rows] = torch.from_numpy(self.contents.add(digests[rows.numpy()]))
        self.repeated += len(rows) - int(new.sum())
        return replace(measured, scored=new)

    def selection(self) -> StreamSelection:
        """The rows, best first."""
        best = sorted(self.heap, key=lambda entry: entry[:2], reverse=True)
        return StreamSelection(
            [-number for _, number, _ in best],
            [score for score, _, _ in best],
            [row for *_, row in best],
            self.seen,
            self.unscorable,
            self.repeated,
        )
