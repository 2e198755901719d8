"""The selections of a run that chooses rows again: their rows, steps, costs, and how much they overlap."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gist.gist.selection import Selection
from hf_gist.utils.disk import read, read_json, write


HISTORY = "selections.json"

ENTRY = "selections"
"""The manifest's entry: [`SelectionRecord.numbers`] of each selection, in order."""


@dataclass(frozen=True)
class SelectionRecord:
    """One selection of a run.

    Args:
        number (`int`): from 1.
        step (`int`): optimizer steps before it.
        passes (`int`): passes over earlier selections before it.
        indices (`list[int]`): the selected rows, best first.
        in_common (`list[int]`): rows in common with each earlier selection.
        seconds (`float`): of this selection; the first includes the warm-up.
        flops (`float`): its operations.
        selection_passes (`float`, *optional*): its cost in training passes over the pool, if row lengths are known.
    """

    number: int
    step: int
    passes: int
    indices: list[int]
    in_common: list[int]
    seconds: float = 0.0
    flops: float = 0.0
    selection_passes: float | None = None

    @classmethod
    def of(
        cls, selection: Selection, step: int, passes: int, earlier: Sequence["SelectionRecord"]
    ) -> "SelectionRecord":
        """The record of a new selection.

        Args:
            selection (`Selection`): with the ledger of the run so far.
            step (`int`): optimizer steps before it.
            passes (`int`): passes over the earlier selections before it.
            earlier (`Sequence[SelectionRecord]`): of the earlier selections.
        """
        rows = set(selection.indices)
        record = cls(
            number=selection.number,
            step=step,
            passes=passes,
            indices=selection.indices,
            in_common=[len(rows.intersection(other.indices)) for other in earlier],
        )
        if selection.costs is None:
            return record
        own = selection.costs.of_selection(selection.number)
        totals = own.totals()
        return dataclasses.replace(
            record,
            seconds=round(totals["selection_seconds"], 3),
            flops=totals["selection_flops"],
            selection_passes=own.selection_passes(),
        )

    @property
    def share_in_common(self) -> float | None:
        """Share of its rows that are also in the selection before it; `None` for the first."""
        return self.in_common[-1] / len(self.indices) if self.in_common else None

    def numbers(self) -> dict[str, Any]:
        """For the manifest: everything but the rows themselves."""
        values = dataclasses.asdict(self) | {"rows": len(self.indices), "share_in_common": self.share_in_common}
        del values["indices"]
        return values

    def describe(self, expected: int) -> str:
        """Number, step, rows in common and cost, for the line of a later selection.

        Args:
            expected (`int`): selections that the run is planned to have.
        """
        cost = "" if self.selection_passes is None else f", {self.selection_passes:.2f} training passes over the pool"
        line = f"selection {self.number} of {expected}, at step {self.step}"
        if self.in_common:
            line += f", with {self.in_common[-1]:,} rows ({self.share_in_common:.1%}) of the one before"
        return f"{line}; {self.seconds:,.1f} s{cost}"


def with_history(selection: Selection, history: Sequence[SelectionRecord]) -> Selection:
    """The selection with the records of all selections so far in its manifest."""
    return dataclasses.replace(
        selection, manifest=selection.manifest | {ENTRY: [record.numbers() for record in history]}
    )


def save_history(history: Sequence[SelectionRecord], folder: Path) -> None:
    """Write the records with their rows into an artifact folder, atomically; one line for each selection."""
    lines = ",\n".join(json.dumps(record.numbers() | {"indices": record.indices}) for record in history)
    write(folder / HISTORY, lambda name: Path(name).write_text(f"[\n{lines}\n]\n", encoding="utf-8"))


def load_history(folder: Path) -> list[SelectionRecord]:
    """Read the records of [`save_history`].

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    names = {field.name for field in dataclasses.fields(SelectionRecord)}
    values = read_json(folder / HISTORY)
    return read(
        folder / HISTORY,
        lambda _: [SelectionRecord(**{name: entry[name] for name in names}) for entry in values],
    )
