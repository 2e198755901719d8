"""What GAST leaves on disk: which layer was trained by which samples, and the state that a resumed run needs."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from hf_gist.disk import write, write_json


STATE_FILE = "gast_state.json"
TABLE_FILE = "gast_selection.parquet"
PICTURE_FILE = "gast_selection.png"

LENGTH_EDGES = (8, 32, 128, 512)


def length_columns() -> list[str]:
    """Names of the report's columns when samples are grouped by their number of labelled tokens."""
    starts = [1, *(edge + 1 for edge in LENGTH_EDGES)]
    return [f"{start}-{end} tokens" for start, end in zip(starts, LENGTH_EDGES, strict=False)] + [
        f"over {LENGTH_EDGES[-1]} tokens"
    ]


def length_column_of(counts: Tensor) -> Tensor:
    """Column index `[B]` of samples with `counts` `[B]` labelled tokens."""
    return torch.bucketize(counts, torch.tensor(LENGTH_EDGES, device=counts.device, dtype=counts.dtype))


@dataclass
class SelectionTable:
    """How often each group kept a sample of each column (a source, or a range of lengths).

    Args:
        groups (`list[str]`): names of the `L` groups.
        columns (`list[str]`): names of the `S` columns.
        kept (`Tensor`): `[L, S]` counts.
        seen (`Tensor`): `[S]` counts.
    """

    groups: list[str]
    columns: list[str]
    kept: Tensor
    seen: Tensor

    @classmethod
    def empty(cls, groups: list[str], columns: list[str], device: torch.device) -> "SelectionTable":
        """No samples yet."""
        kept = torch.zeros(len(groups), len(columns), dtype=torch.float64, device=device)
        return cls(groups, columns, kept, torch.zeros(len(columns), dtype=torch.float64, device=device))

    def add(self, masks: Tensor, columns: Tensor, valid: Tensor) -> None:
        """Count one batch.

        Args:
            masks (`Tensor`): `[L, B]` bool.
            columns (`Tensor`): column of each sample `[B]`.
            valid (`Tensor`): samples with a loss `[B]`.
        """
        one_hot = torch.nn.functional.one_hot(columns.long(), len(self.columns)).to(self.kept.dtype)
        self.kept += masks.to(self.kept.dtype) @ one_hot
        self.seen += (one_hot * valid[:, None]).sum(0)

    def rates(self) -> Tensor:
        """Share of the samples of each column that each group kept, `[L, S]`; NaN for a column never seen."""
        return self.kept / self.seen

    def write(self, folder: str | os.PathLike) -> list[Path]:
        """Write `gast_selection.parquet`, one row per group and column, and a heat map where matplotlib is installed.

        Returns:
            `list[Path]`: the files written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [(g, c) for g in range(len(self.groups)) for c in range(len(self.columns))]
        kept, seen, rates = self.kept.tolist(), self.seen.tolist(), self.rates().tolist()
        table = {
            "layer": [self.groups[g] for g, _ in rows],
            "source": [self.columns[c] for _, c in rows],
            "kept": [int(kept[g][c]) for g, c in rows],
            "seen": [int(seen[c]) for _, c in rows],
            "kept_fraction": [rates[g][c] if seen[c] else None for g, c in rows],
        }
        path = folder / TABLE_FILE
        write(path, lambda name: parquet.write_table(pyarrow.table(table), name))
        picture = self._draw(folder / PICTURE_FILE)
        return [path, picture] if picture else [path]

    def _draw(self, path: Path) -> Path | None:
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return None
        height = min(2 + 0.22 * len(self.groups), 40)
        figure = Figure(figsize=(3 + 0.9 * len(self.columns), height), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.rates().cpu().numpy(), aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=45, ha="right")
        axes.set_yticks(range(len(self.groups)), self.groups, fontsize=7)
        axes.set_title("Share of samples kept by each layer")
        figure.colorbar(image, ax=axes, label="kept / seen")
        write(path, partial(figure.savefig, dpi=150, format="png"))
        return path


class SourceCollator:
    """A data collator that turns a text column into an integer tensor beside what another collator makes.

    Args:
        collator: the collator of everything else.
        column (`str`): the text column.
        names (`list[str]`): the values of the column; the index is what the batch carries.
        key (`str`): name of the tensor `[B]` in the batch.
    """

    def __init__(self, collator: Any, column: str, names: list[str], key: str) -> None:
        self.collator, self.column, self.key = collator, column, key
        self.index = {name: index for index, name in enumerate(names)}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sources = [self.index.get(str(row.get(self.column))) for row in rows]
        batch = self.collator([{k: v for k, v in row.items() if k != self.column} for row in rows])
        # GIST scores its targets through the loader's collator; rows of another dataset have no place in the report.
        if None not in sources:
            batch[self.key] = torch.tensor(sources)
        return batch


def save_state(folder: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write the counters of a run into a checkpoint folder."""
    write_json(Path(folder) / STATE_FILE, state)


def load_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Read them back; `None` if the checkpoint was written without GAST."""
    path = Path(folder) / STATE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
