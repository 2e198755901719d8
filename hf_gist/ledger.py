"""The cost ledger: what each phase of a selection took, what was forecast, and from when on selecting pays."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_gist.config import GISTConfig
from hf_gist.disk import read, read_json, write_json
from hf_gist.flops import ModelWork
from hf_gist.manifest import PREFILTER, SCORING, SUBSPACE, TARGETS, Stopwatch
from hf_gist.measurements import Measurements


COSTS = "costs.json"
WARMUP, TRAINING = "warm-up", "training"


@dataclass(frozen=True)
class PhaseCost:
    """What a phase took, over all processes.

    Args:
        phase (`str`): its name.
        seconds (`float`): wall clock.
        rows (`int`): rows gone through, each as often as it was.
        tokens (`int`): their tokens without padding.
        forward_flops (`float`): operations of forward passes.
        backward_flops (`float`): operations of backward passes.
        other_flops (`float`): projections and the subspace.
        forecast_seconds (`float`, *optional*): what was expected before it began.
        peak_memory_bytes (`int`, *optional*): peak until its end, of the main process or its GPU.
        bytes_written (`int`, *optional*): artifacts it left on disk.
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

    @property
    def flops(self) -> float:
        """All operations."""
        return self.forward_flops + self.backward_flops + self.other_flops


@dataclass(frozen=True)
class CostLedger:
    """The phases of a run, and what they are compared with.

    Args:
        phases (`tuple[PhaseCost, ...]`): in order.
        pool_pass_flops (`float`): operations of training on the whole pool once; 0 if its lengths are not known.
        kept_pass_flops (`float`): of training on the selected rows once.
    """

    phases: tuple[PhaseCost, ...]
    pool_pass_flops: float
    kept_pass_flops: float

    def with_phase(self, phase: PhaseCost, first: bool = False) -> "CostLedger":
        """The ledger with one more phase; one of the same name gives way."""
        others = tuple(p for p in self.phases if p.phase != phase.phase)
        return dataclasses.replace(self, phases=(phase, *others) if first else (*others, phase))

    def with_bytes(self, folder: Path, files: Sequence[str]) -> "CostLedger":
        """The ledger with the size of the artifacts noted at the scoring."""
        size = sum((folder / name).stat().st_size for name in files)
        phases = [dataclasses.replace(p, bytes_written=size) if p.phase == SCORING else p for p in self.phases]
        return dataclasses.replace(self, phases=tuple(phases))

    def totals(self) -> dict[str, float]:
        """Sums over the phases: `seconds`, `tokens`, `flops`, `selection_flops` and `selection_seconds` (without training)."""
        choosing = [p for p in self.phases if p.phase != TRAINING]
        return {
            "seconds": sum(p.seconds for p in self.phases),
            "tokens": sum(p.tokens for p in self.phases),
            "flops": sum(p.flops for p in self.phases),
            "selection_seconds": sum(p.seconds for p in choosing),
            "selection_flops": sum(p.flops for p in choosing),
        }

    def selection_passes(self) -> float | None:
        """What selecting cost, in training passes over the whole pool; `None` if the rows' lengths are not known."""
        return self.totals()["selection_flops"] / self.pool_pass_flops if self.pool_pass_flops else None

    def break_even(self) -> str:
        """From how many epochs on selecting is cheaper than training on everything, as a sentence."""
        cost = self.selection_passes()
        if cost is None:
            return "Break-even is not known: the rows are tokenised by the collator, so their lengths are not."
        share = self.kept_pass_flops / self.pool_pass_flops
        took = f"Selecting cost {cost:.2f} training passes over the whole pool"
        if not cost:
            return "Selecting cost nothing: no row was scored."
        if share >= 1:
            return f"{took}, and the selection is as long as the pool: it never pays in time."
        epochs = max(1, math.floor(cost / (1 - share)) + 1)
        return (
            f"{took}, and a pass over the selected rows costs {share:.3f} of one over the pool: cheaper than training on "
            f"everything from {epochs} epoch(s) on ({cost + epochs * share:.2f} against {epochs:.2f} passes)."
        )

    def table(self) -> list[list[str]]:
        """Header and one row per phase, for people."""
        head = ["phase", "seconds", "forecast, s", "rows", "tokens", "forward FLOP", "backward FLOP", "other FLOP"]
        lines = [[*head, "peak memory", "on disk"]]
        for p in self.phases:
            forecast = "" if p.forecast_seconds is None else f"{p.forecast_seconds:,.1f}"
            numbers = [f"{n:,}" if n else "" for n in (p.rows, p.tokens)]
            work = [f"{n:.2e}" if n else "" for n in (p.forward_flops, p.backward_flops, p.other_flops)]
            sizes = ["" if n is None else in_units(n) for n in (p.peak_memory_bytes, p.bytes_written)]
            lines.append([p.phase, f"{p.seconds:,.1f}", forecast, *numbers, *work, *sizes])
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For `costs.json`, with the sentence for people."""
        return dataclasses.asdict(self) | {"break_even": self.break_even()}

    def save(self, folder: str | Path) -> None:
        """Write `costs.json` into an artifact folder."""
        write_json(Path(folder) / COSTS, self.to_dict())

    @classmethod
    def load(cls, folder: str | Path) -> "CostLedger | None":
        """Read it back; `None` if the folder has none.

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
    """A number of bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


# ---- From a run to its ledger ----


@dataclass(frozen=True)
class Sizes:
    """The tokens of some rows.

    Args:
        lengths (`np.ndarray`): tokens of each row `[n]`.
        labelled (`int`): labelled tokens of all.
    """

    lengths: np.ndarray
    labelled: int

    def take(self, rows: Any, label_tokens: torch.Tensor) -> "Sizes":
        """Only some of the rows."""
        rows = torch.as_tensor(rows)
        return Sizes(self.lengths[rows.numpy()], int(label_tokens[rows].sum()))

    def cost(self, phase: str, seconds: float, **more: Any) -> PhaseCost:
        """A phase that goes through these rows once."""
        return PhaseCost(phase, seconds, len(self.lengths), int(self.lengths.sum()), **more)


def training_cost(work: ModelWork, sizes: Sizes, phase: str, seconds: float, **more: Any) -> PhaseCost:
    """Training on rows: the head sees every token, and the adapters' gradients come on top."""
    tokens = float(sizes.lengths.sum())
    forward = work.forward(sizes.lengths, tokens)
    return sizes.cost(
        phase, seconds, forward_flops=forward, backward_flops=forward + work.weight_gradients(tokens), **more
    )


def scoring_cost(
    work: ModelWork, sizes: Sizes, config: GISTConfig, rank: int, phase: str, seconds: float, **more: Any
) -> PhaseCost:
    """Scoring rows: logits at labelled tokens only, then their gradients and coordinates; RDS+ goes forward only."""
    forward = work.forward(sizes.lengths, sizes.labelled)
    if config.scorer == "rds_plus" or phase == PREFILTER:
        return sizes.cost(phase, seconds, forward_flops=forward, **more)
    share = 1.0 if config.score_layers is None else min(1.0, config.score_layers / max(1, work.layers))
    backward = share * (forward + work.weight_gradients(float(sizes.lengths.sum())))
    other = share * work.projection(len(sizes.lengths), rank)
    return sizes.cost(phase, seconds, forward_flops=forward, backward_flops=backward, other_flops=other, **more)


def times(phase: PhaseCost, passes: int) -> PhaseCost:
    """The same rows gone through several times, in the seconds that all took."""
    counts = ("rows", "tokens", "forward_flops", "backward_flops", "other_flops")
    return dataclasses.replace(phase, **{name: getattr(phase, name) * passes for name in counts})


def expected_seconds(work: ModelWork, config: GISTConfig, targets: Sizes, candidates: Sizes, seconds: float) -> float:
    """Forecast of the scoring from what the targets took, which are scored in the same way."""
    known = scoring_cost(work, targets, config, 0, TARGETS, seconds)
    rank = len(targets.lengths)
    return seconds * scoring_cost(work, candidates, config, rank, SCORING, 0.0).flops / known.flops


def selection_ledger(
    model: torch.nn.Module,
    config: GISTConfig,
    pool: np.ndarray | None,
    targets: np.ndarray | None,
    measured: Measurements,
    kept: list[int],
    watch: Stopwatch,
    passes: int = 1,
) -> CostLedger:
    """The ledger of a selection.

    Args:
        model (`nn.Module`): the model that scored.
        config (`GISTConfig`): how.
        pool (`np.ndarray`, *optional*): tokens of each candidate `[N]`; `None` if they are not known.
        targets (`np.ndarray`, *optional*): tokens of each target row.
        measured (`Measurements`): what was measured.
        kept (`list[int]`): the selected rows.
        watch (`Stopwatch`): seconds and peaks of the phases.
        passes (`int`): checkpoints that were scored at.
    """
    if pool is None or targets is None:
        return CostLedger(tuple(PhaseCost(p, s, peak_memory_bytes=b) for p, s, b in watch.phases()), 0.0, 0.0)
    work, label_tokens = ModelWork.of(model), measured.label_tokens
    everything = Sizes(pool, int(label_tokens.sum()))
    wanted = Sizes(targets, int(measured.target_label_tokens.sum()))
    scored = everything if measured.scored is None else everything.take(measured.scored.nonzero()[:, 0], label_tokens)
    phases = []
    for name, seconds, peak in watch.phases():
        about = {"peak_memory_bytes": peak, "forecast_seconds": watch.forecasts.get(name)}
        if name == SUBSPACE:
            phases.append(PhaseCost(name, seconds, other_flops=work.basis(len(targets)), **about))
        elif name in (PREFILTER, TARGETS, SCORING):
            rows = {PREFILTER: everything, TARGETS: wanted, SCORING: scored}[name]
            phase = scoring_cost(work, rows, config, len(measured.singular_values), name, seconds, **about)
            phases.append(phase if name == PREFILTER else times(phase, passes))
        else:
            phases.append(PhaseCost(name, seconds, **about))
    chosen = everything.take(kept, label_tokens)
    return CostLedger(
        tuple(phases),
        training_cost(work, everything, TRAINING, 0.0).flops,
        training_cost(work, chosen, TRAINING, 0.0).flops,
    )
