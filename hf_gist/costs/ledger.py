"""The cost ledger (`costs.json`): seconds, tokens, operations, memory and bytes of each phase."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gist.costs.stopwatch import SCORING, TARGET_LOSS, TRAINING
from hf_gist.utils.disk import read, read_json, write_json


COSTS = "costs.json"

NOT_SELECTING = (TRAINING, TARGET_LOSS)
"""Phases that are no cost of selecting."""


@dataclass(frozen=True)
class PhaseCost:
    """Cost of a phase, over all processes.

    Args:
        phase (`str`): its name.
        seconds (`float`): wall clock.
        rows (`int`): rows processed, counted once per pass.
        tokens (`int`): their tokens without padding.
        forward_flops (`float`): operations of forward passes.
        backward_flops (`float`): operations of backward passes.
        other_flops (`float`): projections and the subspace.
        forecast_seconds (`float`, *optional*): forecast made before the phase started.
        peak_memory_bytes (`int`, *optional*): peak so far, of the main process or its GPU.
        bytes_written (`int`, *optional*): size of the artifacts it wrote.
        selection (`int`): number of the selection that the phase belongs to, from 1; only a run that chooses rows again
            has others.
    """

    phase: str
    seconds: float
    rows: int = 0
    tokens: int = 0
    forward_flops: float = 0.0
    backward_flops: float = 0.0
    other_flops: float = 0.0
    forecast_seconds: float | None = None
    peak_memory_bytes: int | None = None
    bytes_written: int | None = None
    selection: int = 1

    @property
    def title(self) -> str:
        """Its name in tables."""
        return self.phase if self.selection == 1 else f"{self.phase}, selection {self.selection}"

    @property
    def flops(self) -> float:
        """All operations."""
        return self.forward_flops + self.backward_flops + self.other_flops


@dataclass(frozen=True)
class CostLedger:
    """The phases of a run, and the training costs they are compared with.

    Args:
        phases (`tuple[PhaseCost, ...]`): the phases in order.
        pool_pass_flops (`float`): operations of one training pass over the whole pool; 0 if row lengths are not known.
        kept_pass_flops (`float`, *optional*): operations of one training pass over the selected rows; `None` if rows were
            selected anew from saved scores.
    """

    phases: tuple[PhaseCost, ...]
    pool_pass_flops: float
    kept_pass_flops: float | None

    def with_phase(self, phase: PhaseCost, first: bool = False) -> "CostLedger":
        """The ledger with one more phase, which replaces the phase of the same name and selection."""
        same = (phase.phase, phase.selection)
        others = tuple(p for p in self.phases if (p.phase, p.selection) != same)
        return dataclasses.replace(self, phases=(phase, *others) if first else (*others, phase))

    def after(self, earlier: "CostLedger | None") -> "CostLedger":
        """The ledger of all selections of a run: the phases of the earlier ones, then these."""
        return self if earlier is None else dataclasses.replace(self, phases=(*earlier.phases, *self.phases))

    @property
    def selections(self) -> int:
        """Number of selections."""
        return max((p.selection for p in self.phases), default=1)

    def of_selection(self, number: int) -> "CostLedger":
        """The ledger of one selection, from 1: the warm-up is part of the first; training and target losses are of none."""
        own = tuple(p for p in self.phases if p.selection == number and p.phase not in NOT_SELECTING)
        return dataclasses.replace(self, phases=own)

    def of_scoring(self) -> "CostLedger":
        """The ledger for other rows that are chosen from the same scores: without training, or the cost of a pass over them."""
        own = tuple(p for p in self.phases if p.phase not in NOT_SELECTING)
        # what is saved of the rows has no lengths, only their labelled tokens
        return dataclasses.replace(self, phases=own, kept_pass_flops=None)

    def with_bytes(self, folder: Path, files: Sequence[str]) -> "CostLedger":
        """The ledger with the size of the artifacts added to the scoring phase of the latest selection."""
        size = sum((folder / name).stat().st_size for name in files)
        latest = (SCORING, self.selections)
        phases = [
            dataclasses.replace(p, bytes_written=size) if (p.phase, p.selection) == latest else p for p in self.phases
        ]
        return dataclasses.replace(self, phases=tuple(phases))

    def totals(self) -> dict[str, float]:
        """Sums: `seconds`, `tokens`, `flops`, and of what the selection needs `selection_flops` and `selection_seconds`."""
        choosing = [p for p in self.phases if p.phase not in NOT_SELECTING]
        return {
            "seconds": sum(p.seconds for p in self.phases),
            "tokens": sum(p.tokens for p in self.phases),
            "flops": sum(p.flops for p in self.phases),
            "selection_seconds": sum(p.seconds for p in choosing),
            "selection_flops": sum(p.flops for p in choosing),
        }

    def selection_passes(self) -> float | None:
        """Cost of the selection in training passes over the whole pool; `None` if row lengths are not known."""
        return self.totals()["selection_flops"] / self.pool_pass_flops if self.pool_pass_flops else None

    def break_even(self) -> str:
        """The number of epochs from which selecting is cheaper than training on everything, as a sentence.

        `E` epochs on the pool are compared with selecting and then `E` epochs on the selected rows.
        """
        cost = self.selection_passes()
        if cost is None:
            return "Break-even is not known: the rows are tokenised by the collator, so their lengths are not."
        if not cost:
            return "Selecting cost no computation: the model was not run."
        if self.selections > 1:
            return self._selected_several_times(cost)
        took = f"Selecting cost as much computation as training for {cost:.2f} epochs on the whole pool."
        if self.kept_pass_flops is None:
            return took
        share = self.kept_pass_flops / self.pool_pass_flops
        if share >= 1:
            return f"{took} The selected rows are as long as the whole pool, so selecting saves no computation."
        epochs = max(1, math.floor(cost / (1 - share)) + 1)
        number = "1 epoch" if epochs == 1 else f"{epochs:,} epochs"
        return (
            f"{took} If you train for {number} or more, selecting and then training on the selected rows is cheaper than "
            f"training on the whole pool: for {number}, it costs as much as {cost + epochs * share:.2f} epochs on the whole "
            "pool."
        )

    def _selected_several_times(self, cost: float) -> str:
        """The sentence of a run that selects anew with every further pass, so that no number of epochs is a break-even."""
        each = ", ".join(
            f"{self.of_selection(number).selection_passes():.2f}" for number in range(1, self.selections + 1)
        )
        trained = sum(p.flops for p in self.phases if p.phase == TRAINING) / self.pool_pass_flops
        after = f" Training on the selected rows cost {trained:.2f}." if trained else ""
        return (
            f"Selecting {self.selections} times cost as much computation as training for {cost:.2f} epochs on the whole "
            f"pool ({each}).{after}"
        )

    def table(self) -> list[list[str]]:
        """Header and one row per phase, as text."""
        head = ["phase", "seconds", "forecast, s", "rows", "tokens", "forward FLOP", "backward FLOP", "other FLOP"]
        lines = [[*head, "peak memory", "on disk"]]
        for p in self.phases:
            forecast = "" if p.forecast_seconds is None else f"{p.forecast_seconds:,.1f}"
            numbers = [f"{n:,}" if n else "" for n in (p.rows, p.tokens)]
            work = [f"{n:.2e}" if n else "" for n in (p.forward_flops, p.backward_flops, p.other_flops)]
            sizes = ["" if n is None else in_units(n) for n in (p.peak_memory_bytes, p.bytes_written)]
            lines.append([p.title, f"{p.seconds:,.1f}", forecast, *numbers, *work, *sizes])
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For `costs.json`, with what selecting cost in passes over the pool, and the break-even as a sentence."""
        more = {"selection_passes": self.selection_passes(), "break_even": self.break_even()}
        return dataclasses.asdict(self) | more

    def save(self, folder: str | Path) -> None:
        """Write `costs.json` into an artifact folder."""
        write_json(Path(folder) / COSTS, self.to_dict())

    @classmethod
    def load(cls, folder: str | Path) -> "CostLedger | None":
        """Read `costs.json`; `None` if the folder has none.

        Raises:
            ValueError: if the file is damaged.
        """
        path = Path(folder) / COSTS
        if not path.exists():
            return None
        values = read_json(path)
        return read(
            path,
            lambda _: cls(
                tuple(PhaseCost(**p) for p in values["phases"]), values["pool_pass_flops"], values["kept_pass_flops"]
            ),
        )


def in_units(size: float) -> str:
    """A number of bytes as text with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
