"""The forecast that `hf-gist select --dry_run` prints."""

from dataclasses import asdict, dataclass
from typing import Any

from hf_gist.costs.ledger import in_units
from hf_gist.costs.stopwatch import WARMUP
from hf_gist.gist.forecast import duration
from hf_gist.gist.scoring_cost.plan import ScoringPlan
from hf_gist.utils.terminal import named, wrapped


@dataclass(frozen=True)
class LaterSelection:
    """The forecast of each later selection of a training with the callback (`reselect_every`).

    Args:
        every (`int`): `reselect_every`.
        rows (`int`): rows that are scored.
        seconds (`float`): of targets and rows.
        passes (`float`, *optional*): with `scoring_cost`, what it costs in training passes over the pool.
    """

    every: int
    rows: int
    seconds: float
    passes: float | None = None

    def describe(self) -> str:
        """One line for the user."""
        price = "" if self.passes is None else f" ({self.passes:.3f} training passes over the pool)"
        return (
            f"`reselect_every={self.every}`: this command selects once. A training with the callback selects again after "
            f"every {self.every} pass(es) but the last, each time by scoring {self.rows:,} rows in about "
            f"{duration(self.seconds)}{price}."
        )


@dataclass(frozen=True)
class SelectionPlan:
    """The forecast of a selection.

    Args:
        counts (`dict[str, int]`): `candidates`, `candidate_tokens`, `targets`, `target_groups`, `selected` (0 for a
            budget in tokens), `warmup_steps`, `leaked` rows of the pool, and `duplicates`, rows that repeat an earlier
            one.
        bytes (`dict[str, int]`): `basis`, `coordinates`, `activations`, `device_free` (of a GPU) and `host_free` memory, and
            `artifacts` on disk.
        seconds (`dict[str, float]`): of each phase, from a few timed batches.
        timed_rows (`int`): rows in those batches.
        scoring (`ScoringPlan`, *optional*): the rows that are scored for `scoring_cost`.
        later (`LaterSelection`, *optional*): with `reselect_every`, each later selection of a training.
    """

    counts: dict[str, int]
    bytes: dict[str, int]
    seconds: dict[str, float]
    timed_rows: int
    scoring: ScoringPlan | None = None
    later: LaterSelection | None = None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        shown = {name: getattr(self, name) for name in ("counts", "bytes", "seconds", "timed_rows")}
        plan = None if self.scoring is None else self.scoring.to_dict()
        later = None if self.later is None else asdict(self.later)
        total = sum(self.seconds.values())
        return shown | {"scoring_plan": plan, "later_selections": later, "total_seconds": total}

    def describe(self) -> str:
        """The forecast as lines of two aligned columns."""
        counts = self.counts
        lines = []
        lines.append(("pool", f"{counts['candidates']:,} rows of {counts['candidate_tokens']:,} tokens"))
        lines.append(("targets", f"{counts['targets']:,} rows in {counts['target_groups']:,} group(s)"))
        share = counts["selected"] / counts["candidates"]
        kept = (
            f"{counts['selected']:,} rows ({share:.2%})" if counts["selected"] else "as many as fit the token budget"
        )
        lines.append(("rows to select", kept))
        lines.append(("target or evaluation rows", f"{counts['leaked']:,} found in the pool"))
        lines.append(("repeated rows", f"{counts['duplicates']:,} found in the pool"))
        lines += [(f"memory, {name.replace('_', ' ')}", in_units(size)) for name, size in self.bytes.items()]
        steps = f" ({counts['warmup_steps']:,} steps)"
        for name, seconds in self.seconds.items():
            lines.append((f"time, {name}", f"about {duration(seconds)}{steps if name == WARMUP else ''}"))
        lines.append(
            ("time, total", f"about {duration(sum(self.seconds.values()))}, from {self.timed_rows} timed rows")
        )
        lines = [(name.replace("memory, artifacts", "disk, artifacts"), text) for name, text in lines]
        table = [named(name, text) for name, text in lines]
        plans = [wrapped(plan.describe()) for plan in (self.scoring, self.later) if plan is not None]
        return "\n".join(["Nothing is written in a dry run.", *table, *plans])
