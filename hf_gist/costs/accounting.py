"""From the rows and seconds of a run to its cost ledger."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_gist.config.gist import GISTConfig
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.costs.stopwatch import PREFILTER, SCORING, SUBSPACE, TARGETS, TRAINING, Stopwatch
from hf_gist.functional.measurements import Measurements


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
