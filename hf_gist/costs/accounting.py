"""Compute the cost ledger of a run from its rows and seconds."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_gist.config.gist import GISTConfig
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.costs.stopwatch import SCORING, SUBSPACE, TARGETS, TRAINING, Stopwatch
from hf_gist.functional.measurements import Measurements


@dataclass(frozen=True)
class Sizes:
    """Token counts of some rows.

    Args:
        lengths (`np.ndarray`): tokens of each row `[n]`.
        labelled (`int`): total labelled tokens.
    """

    lengths: np.ndarray
    labelled: int

    def take(self, rows: Any, label_tokens: torch.Tensor) -> "Sizes":
        """The counts of some of the rows."""
        rows = torch.as_tensor(rows)
        return Sizes(self.lengths[rows.numpy()], int(label_tokens[rows].sum()))

    def cost(self, phase: str, seconds: float, **more: Any) -> PhaseCost:
        """Cost of a phase that processes these rows once."""
        return PhaseCost(phase, seconds, len(self.lengths), int(self.lengths.sum()), **more)


def training_cost(work: ModelWork, sizes: Sizes, phase: str, seconds: float, **more: Any) -> PhaseCost:
    """Cost of training on rows: logits at every token, plus the gradients of the adapters."""
    tokens = float(sizes.lengths.sum())
    forward = work.forward(sizes.lengths, tokens)
    return sizes.cost(
        phase, seconds, forward_flops=forward, backward_flops=forward + work.weight_gradients(tokens), **more
    )


def scoring_phase(
    work: ModelWork,
    sizes: Sizes,
    config: GISTConfig,
    rank: int,
    phase: str,
    seconds: float,
    forward_only: bool = False,
    **more: Any,
) -> PhaseCost:
    """Cost of scoring rows: logits at labelled tokens only; unless `forward_only`, also gradients and coordinates."""
    forward = work.forward(sizes.lengths, sizes.labelled)
    if forward_only:
        return sizes.cost(phase, seconds, forward_flops=forward, **more)
    share = work.share_of_blocks(config.score_layers)
    backward = share * (forward + work.weight_gradients(float(sizes.lengths.sum())))
    other = share * work.projection(len(sizes.lengths), rank)
    return sizes.cost(phase, seconds, forward_flops=forward, backward_flops=backward, other_flops=other, **more)


def times(phase: PhaseCost, passes: int) -> PhaseCost:
    """The cost of `passes` passes over the same rows; `seconds` already covers all of them."""
    counts = ("rows", "tokens", "forward_flops", "backward_flops", "other_flops")
    return dataclasses.replace(phase, **{name: getattr(phase, name) * passes for name in counts})


def expected_seconds(
    work: ModelWork, config: GISTConfig, targets: Sizes, candidates: Sizes, seconds: float, forward_only: bool = False
) -> float:
    """Forecast of the scoring time from the `seconds` taken by the targets, which are scored in the same way."""
    known = scoring_phase(work, targets, config, 0, TARGETS, seconds, forward_only)
    expected = scoring_phase(work, candidates, config, len(targets.lengths), SCORING, 0.0, forward_only)
    return seconds * expected.flops / known.flops


@dataclass(frozen=True)
class ScoringRun:
    """How the rows of a selection were scored, for the cost ledger.

    Args:
        work (`ModelWork`): of the scoring model.
        config (`GISTConfig`): the configuration of the selection.
        forward_only (`bool`): no backward pass was needed.
        passes (`int`): number of checkpoints used for scoring.
    """

    work: ModelWork
    config: GISTConfig
    forward_only: bool = False
    passes: int = 1

    def cost(self, phase: str, seconds: float, sizes: dict[str, Sizes], rank: int, **more: Any) -> PhaseCost:
        """Cost of a phase; `sizes` has the token counts of the phases that score rows."""
        if phase == SUBSPACE:
            return PhaseCost(phase, seconds, other_flops=self.work.basis(len(sizes[TARGETS].lengths)), **more)
        if phase not in sizes:
            return PhaseCost(phase, seconds, **more)
        once = scoring_phase(self.work, sizes[phase], self.config, rank, phase, seconds, self.forward_only, **more)
        return times(once, self.passes)

    def flops_by_row(self, lengths: np.ndarray, labelled: np.ndarray, rank: int) -> np.ndarray:
        """Operations of scoring each row `[n]`; their sum is what [`ScoringRun.cost`] has for all of them.

        Args:
            lengths (`np.ndarray`): tokens of each row `[n]`.
            labelled (`np.ndarray`): labelled tokens of each row `[n]`.
            rank (`int`): directions of the basis.
        """
        forward = self.work.forward_by_row(lengths, labelled)
        if self.forward_only:
            return self.passes * forward
        share = self.work.share_of_blocks(self.config.score_layers)
        backward = forward + self.work.weight_gradients(1) * lengths
        return self.passes * (forward + share * (backward + self.work.projection(1, rank)))


def selection_ledger(
    run: ScoringRun,
    pool: np.ndarray | None,
    targets: np.ndarray | None,
    measured: Measurements,
    kept: list[int],
    watch: Stopwatch,
    warmup: PhaseCost | None = None,
) -> CostLedger:
    """The ledger of a selection.

    Args:
        run (`ScoringRun`): how the rows were scored.
        pool (`np.ndarray`, *optional*): tokens of each candidate `[N]`; `None` if they are not known.
        targets (`np.ndarray`, *optional*): tokens of each target row `[M]`.
        measured (`Measurements`): the result of the scoring.
        kept (`list[int]`): the selected rows.
        watch (`Stopwatch`): seconds and peaks of the phases.
        warmup (`PhaseCost`, *optional*): of the warm-up before.
    """
    before = () if warmup is None else (warmup,)
    if pool is None or targets is None:
        phases = [PhaseCost(p, s, peak_memory_bytes=b) for p, s, b in watch.phases()]
        return CostLedger((*before, *phases), 0.0, 0.0)
    label_tokens = measured.label_tokens
    everything = Sizes(pool, int(label_tokens.sum()))
    scored = everything if measured.scored is None else everything.take(measured.scored.nonzero()[:, 0], label_tokens)
    wanted = Sizes(targets, int(measured.target_label_tokens.sum()))
    sizes = {TARGETS: wanted, SCORING: scored}
    rank = len(measured.singular_values)
    phases = [
        run.cost(name, seconds, sizes, rank, peak_memory_bytes=peak, forecast_seconds=watch.forecasts.get(name))
        for name, seconds, peak in watch.phases()
    ]
    return CostLedger(
        (*before, *phases),
        training_cost(run.work, everything, TRAINING, 0.0).flops,
        training_cost(run.work, everything.take(kept, label_tokens), TRAINING, 0.0).flops,
    )
