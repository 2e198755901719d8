"""Counts of which samples updated which layer over the run, saved as Parquet."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from hf_gist.utils.disk import read, write


TABLE_FILE = "gast_selection.parquet"

HISTORY_FILE = "gast_history.parquet"

RUN_FILE = "gast_run.json"

PICTURE_FILE = "gast_selection.png"
"""Figure of the table in the report."""

MOST_SPANS = 24
FEWEST_SPANS = 4

MOST_CELLS = 1 << 18
"""Approximate maximum number of values in the table over time, on the device and in every checkpoint."""

LENGTH_EDGES = (8, 32, 128, 512)


def length_columns() -> list[str]:
    """Names of the report's columns when samples are grouped by their number of labelled tokens."""
    starts = [1, *(edge + 1 for edge in LENGTH_EDGES)]
    return [f"{start}-{end} tokens" for start, end in zip(starts, LENGTH_EDGES, strict=False)] + [
        f"over {LENGTH_EDGES[-1]} tokens"
    ]


def length_column_of(counts: Tensor) -> Tensor:
    """Column index `[B]` of samples with `counts` `[B]` labelled tokens."""
    # compared with numbers, because a tensor of the edges would be copied to the device
    return torch.stack([counts > edge for edge in LENGTH_EDGES]).sum(0)


def number_of_spans(groups: int, columns: int) -> int:
    """Number of step spans in a table of this size: an even number, fewer for a very large table."""
    return min(MOST_SPANS, max(FEWEST_SPANS, MOST_CELLS // max(1, groups * columns))) // 2 * 2


@dataclass
class SelectionTable:
    """How often each group kept a sample of each column (a source, or a range of lengths), over the run.

    The run is divided into `P` spans with equal numbers of optimizer steps. When a run exceeds them, adjacent spans
    are merged and the span length doubles, so that the table does not grow.

    Args:
        groups (`list[str]`): names of the `L` groups.
        columns (`list[str]`): names of the `S` columns.
        kept (`Tensor`): `[P, L, S]` counts.
        seen (`Tensor`): `[P, S]` counts.
        span_steps (`int`): optimizer steps in a span; the first span starts at step 0.
    """

    groups: list[str]
    columns: list[str]
    kept: Tensor
    seen: Tensor
    span_steps: int = 1

    @classmethod
    def empty(cls, groups: list[str], columns: list[str], device: torch.device) -> "SelectionTable":
        """An empty table."""
        spans = number_of_spans(len(groups), len(columns))
        kept = torch.zeros(spans, len(groups), len(columns), dtype=torch.float64, device=device)
        return cls(groups, columns, kept, torch.zeros(spans, len(columns), dtype=torch.float64, device=device))

    def add(self, masks: Tensor, columns: Tensor, valid: Tensor, step: int) -> None:
        """Count one batch.

        Args:
            masks (`Tensor`): `[L, B]` bool.
            columns (`Tensor`): column of each sample `[B]`.
            valid (`Tensor`): samples with a loss `[B]`.
            step (`int`): the optimizer step.
        """
        while step // self.span_steps >= len(self.kept):
            self._halve()
        span = step // self.span_steps
        # not `torch.nn.functional.one_hot`, which reads the indices back to check them
        one_hot = (columns[:, None] == torch.arange(len(self.columns), device=columns.device)).to(self.kept.dtype)
        self.kept[span] += masks.to(self.kept.dtype) @ one_hot
        self.seen[span] += (one_hot * valid[:, None]).sum(0)

    def _halve(self) -> None:
        for counts in (self.kept, self.seen):
            half = len(counts) // 2
            counts[:half] = counts[0::2] + counts[1::2]
            counts[half:] = 0
        self.span_steps *= 2

    def rates(self) -> Tensor:
        """Share of the samples of each column that each group kept in the whole run `[L, S]`; NaN if never seen."""
        return self.kept.sum(0) / self.seen.sum(0)

    def rates_over_time(self) -> tuple[range, Tensor]:
        """The first steps of the spans in use, and [`rates`] in each of them `[P', L, S]`."""
        used = self.seen.sum(1).nonzero().flatten().tolist()
        spans = range(used[0], used[-1] + 1) if used else range(0)
        starts = range(spans.start * self.span_steps, spans.stop * self.span_steps, self.span_steps)
        return starts, self.kept[spans.start : spans.stop] / self.seen[spans.start : spans.stop, None]

    def state(self) -> dict[str, Any]:
        """The table as a dict for a checkpoint."""
        used = int(self.seen.sum(1).nonzero().max()) + 1 if self.seen.any() else 0
        return {
            "groups": self.groups,
            "columns": self.columns,
            "span_steps": self.span_steps,
            "kept": self.kept[:used].tolist(),
            "seen": self.seen[:used].tolist(),
        }

    def restore(self, state: dict[str, Any], counts: bool) -> None:
        """Load a [`state`].

        Args:
            state (`dict`): of a table with the same groups and columns.
            counts (`bool`): load the counts too; only one process may do this.
        """
        self.span_steps = state["span_steps"]
        for name in ("kept", "seen"):
            values = getattr(self, name).zero_()
            if counts and state[name]:
                values[: len(state[name])] = torch.tensor(state[name], dtype=values.dtype)

    def write(self, folder: str | os.PathLike) -> list[Path]:
        """Write `gast_selection.parquet`, one row per group and column, and `gast_history.parquet`, the same over time.

        Returns:
            `list[Path]`: the files written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        starts, _ = self.rates_over_time()
        first = starts.start // self.span_steps
        spans = slice(first, first + len(starts))
        total = _cells(self, self.kept.sum(0, keepdim=True), self.seen.sum(0, keepdim=True), None)
        history = _cells(self, self.kept[spans], self.seen[spans], starts)
        for name, table in ((TABLE_FILE, total), (HISTORY_FILE, history)):
            write(folder / name, partial(parquet.write_table, table))
        return [folder / TABLE_FILE, folder / HISTORY_FILE]

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "SelectionTable":
        """Read `gast_history.parquet`.

        Raises:
            ValueError: if the file is missing or damaged.
        """
        return read(Path(folder) / HISTORY_FILE, lambda path: cls._from_cells(parquet.read_table(path)))

    @classmethod
    def _from_cells(cls, table: pyarrow.Table) -> "SelectionTable":
        if not len(table):
            return cls([], [], torch.zeros(0, 0, 0), torch.zeros(0, 0))
        groups = [str(name) for name in table["layer"].unique().to_pylist()]
        columns = [str(name) for name in table["source"].unique().to_pylist()]
        first_step = table["first_step"][0].as_py()
        span_steps = table["last_step"][0].as_py() - first_step + 1
        before = first_step // span_steps

        def counts(name: str) -> Tensor:
            """`[P, L, S]`, with the spans before the first one in the file as zeros."""
            values = torch.tensor(table[name].to_numpy(), dtype=torch.float64).view(-1, len(groups), len(columns))
            return torch.cat([torch.zeros(before, *values.shape[1:], dtype=values.dtype), values])

        return cls(groups, columns, counts("kept"), counts("seen")[:, 0], span_steps)


def _cells(table: SelectionTable, kept: Tensor, seen: Tensor, starts: range | None) -> pyarrow.Table:
    """One row for every span, group and column; `starts` are the first steps of the spans."""
    spans, groups, columns = kept.shape
    kept, seen = kept.cpu(), seen.cpu()[:, None].expand(spans, groups, columns)
    span, group, column = (index.flatten().numpy() for index in torch.meshgrid(
        torch.arange(spans), torch.arange(groups), torch.arange(columns), indexing="ij"
    ))  # fmt: skip
    steps = {}
    if starts is not None:
        first = np.asarray(starts, dtype=np.int64)[span]
        steps = {"first_step": first, "last_step": first + table.span_steps - 1}
    share = (kept / seen).flatten().numpy()
    return pyarrow.table(
        steps
        | {
            "layer": pyarrow.array(table.groups, pyarrow.string()).take(pyarrow.array(group)),
            "source": pyarrow.array(table.columns, pyarrow.string()).take(pyarrow.array(column)),
            "kept": kept.flatten().long().numpy(),
            "seen": seen.flatten().long().numpy(),
            "kept_fraction": pyarrow.array(share, from_pandas=True),
        }
    )
