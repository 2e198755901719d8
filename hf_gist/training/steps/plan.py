"""The step plan of a run: the number of optimizer steps, and where its passes over the selections end.

`Trainer` and accelerate fix the length of a run before the first event that a callback gets; only the modules of
this package depend on how they use a dataloader (checked with transformers 5.6 to 5.24 and accelerate 1.12 to 1.15).
Every row order is a function of the optimizer step, so a resumed run gives the same results as an uninterrupted run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_gist.utils.guides import guide


@dataclass(frozen=True)
class Segment:
    """The passes over one selection.

    Args:
        start (`int`): optimizer steps before its first pass.
        passes_before (`int`): passes over earlier selections.
        steps_per_pass (`int`): steps of one pass over this selection.
    """

    start: int
    passes_before: int
    steps_per_pass: int

    def passes(self, step: int) -> float:
        """Passes over all selections that end with this one, after `step` steps."""
        return self.passes_before + (step - self.start) / self.steps_per_pass

    def pass_at(self, step: int) -> tuple[int, int]:
        """The number of the pass that the step after `step` steps belongs to, from 0, and the steps before it in this pass."""
        number, within = divmod(step - self.start, self.steps_per_pass)
        return self.passes_before + number, within

    def end_of(self, passes: float) -> int:
        """The step at which as many passes over all selections are done."""
        return self.start + math.ceil((passes - self.passes_before) * self.steps_per_pass - 1e-9)


@dataclass(frozen=True)
class StepPlan:
    """The number of optimizer steps of a run, and where its passes end.

    Args:
        pool_size (`int`): rows of the candidate pool.
        samples_per_step (`int`): rows in one optimizer step, over all processes and accumulation.
        warmup_steps (`int`): steps of the warm-up, which is the first epoch.
        segments (`tuple[Segment, ...]`): the passes over each selection so far, in order; the first selection is planned
            before it is made. Every epoch after the warm-up is one pass.
        total_steps (`int`): steps of the whole run.
        epoch_limit (`int`): maximum number of full-size steps in one epoch of the `Trainer`, without a shorter last
            step if the number of batches is not a multiple of the gradient accumulation.
        whole_passes (`bool`): end an epoch at the end of each pass; otherwise (too few epochs for `max_steps`) passes
            follow one another until `epoch_limit`.
    """

    pool_size: int
    samples_per_step: int
    warmup_steps: int
    segments: tuple[Segment, ...]
    total_steps: int
    epoch_limit: int
    whole_passes: bool = True

    def selection_of(self, step: int) -> int:
        """Position in `segments` of the selection that the step after `step` steps is taken on."""
        return max(at for at, segment in enumerate(self.segments) if at == 0 or segment.start <= step)

    def _segment(self, step: int) -> Segment:
        return self.segments[self.selection_of(step)]

    def epoch_end(self, step: int) -> int:
        """The step at which the epoch that starts at `step` ends."""
        if step < self.warmup_steps:
            return self.warmup_steps
        if self.whole_passes:
            segment = self._segment(step)
            return min(segment.end_of(segment.pass_at(step)[0] + 1), self.total_steps)
        return min(step + self.epoch_limit, self.total_steps)

    def ends_pass(self, step: int) -> bool:
        """Whether the warm-up, a pass or the run ends after `step` steps."""
        if step <= self.warmup_steps:
            return step == self.warmup_steps
        return step >= self.total_steps or self._segment(step).pass_at(step)[1] == 0

    def epoch(self, step: int) -> float:
        """The epoch to show in logs after `step` steps: the warm-up is the first epoch, each pass is one more."""
        return step / self.warmup_steps if step <= self.warmup_steps else 1 + self._segment(step).passes(step)

    def next_selection(self, every: int | None) -> int | None:
        """The step after which rows are chosen again; `None` if they are not.

        Args:
            every (`int`, *optional*): passes over each selection; `None` if rows are selected once.
        """
        if every is None:
            return None
        last = self.segments[-1]
        step = last.start + every * last.steps_per_pass
        return step if step < self.total_steps else None

    def selection_steps(self, every: int | None) -> list[int]:
        """The steps after which rows are selected; later selections are planned to be as large as the latest."""
        steps = [segment.start for segment in self.segments]
        if every is not None:
            distance = every * self.segments[-1].steps_per_pass
            steps += range(steps[-1] + distance, self.total_steps, distance)
        return steps


def warmup_steps_of(
    ratio: float, steps: int | None, pool_size: int, samples_per_step: int, steps_in_epoch: int
) -> int:
    """Optimizer steps of the warm-up: `steps`, or enough for `ratio` of the pool.

    Raises:
        ValueError: if the warm-up would take at least a whole pass over the pool.
    """
    wanted = steps if steps is not None else max(1, math.ceil(ratio * pool_size / samples_per_step))
    if wanted >= steps_in_epoch:
        name = f"warmup_steps={steps}" if steps is not None else f"warmup_ratio={ratio}"
        raise ValueError(
            f"`{name}` gives a warm-up of {wanted} optimizer steps, but one pass over the {pool_size} rows has only "
            f"{steps_in_epoch}; lower it, or the batch size."
        )
    return wanted


def is_passes_over_pool(max_steps: int, num_train_epochs: float, pool_size: int, samples_per_step: int) -> bool:
    """Whether `max_steps` is the length of `num_train_epochs` passes over the pool, however its last step is rounded.

    Frameworks that compute it themselves round once for the whole run; `Trainer` rounds every pass up, and with
    `dataloader_drop_last` down.
    """
    shortest = math.floor(num_train_epochs * (pool_size // samples_per_step))
    longest = math.ceil(num_train_epochs * math.ceil(pool_size / samples_per_step))
    return shortest <= max_steps <= longest


def plan_segments(
    selections: Sequence[tuple[int, int]], samples_per_step: int, steps_in_epoch: int
) -> tuple[Segment, ...]:
    """The passes over each selection.

    Args:
        selections (`Sequence[tuple[int, int]]`): optimizer steps before each selection, and its rows.
        samples_per_step (`int`): rows in one optimizer step.
        steps_in_epoch (`int`): whole optimizer steps in one pass over the whole pool, as assumed by `Trainer`.
    """
    segments: list[Segment] = []
    for start, rows in selections:
        passes = round(segments[-1].passes(start)) if segments else 0
        # with `dataloader_drop_last` an epoch of the Trainer may be a step shorter than the whole pool
        segments.append(Segment(start, passes, min(math.ceil(rows / samples_per_step), steps_in_epoch)))
    return tuple(segments)


def plan_steps(
    pool_size: int,
    samples_per_step: int,
    steps_in_epoch: int,
    selections: Sequence[tuple[int, int]],
    num_train_epochs: float,
    max_steps: int,
    epochs: int,
) -> StepPlan:
    """Create the step plan of a run: `max_steps` in all, or `num_train_epochs = 1 + passes over the selections`.

    With fewer epochs than steps, `Trainer` derived them from `max_steps` and the size of the pool. If `max_steps` is
    the length of `num_train_epochs` passes over the pool, these epochs are what was asked for. Otherwise the run has
    `max_steps`, or as many steps as the epochs allow.

    Args:
        pool_size (`int`): rows of the pool.
        samples_per_step (`int`): rows in one optimizer step.
        steps_in_epoch (`int`): whole optimizer steps in one pass over the whole pool, as assumed by `Trainer`.
        selections (`Sequence[tuple[int, int]]`): optimizer steps before each selection so far (those of the warm-up
            before the first one), and its rows.
        num_train_epochs (`float`): from the `TrainingArguments`.
        max_steps (`int`): from the `TrainingArguments`; -1 if not set.
        epochs (`int`): epochs that the `Trainer` will begin; only read with `max_steps`.

    Raises:
        ValueError: if there would be no step on the selection.
    """
    warmup_steps = selections[0][0]
    segments = plan_segments(selections, samples_per_step, steps_in_epoch)
    plan = StepPlan(pool_size, samples_per_step, warmup_steps, segments, max_steps, steps_in_epoch)
    meant = epochs < max_steps and is_passes_over_pool(max_steps, num_train_epochs, pool_size, samples_per_step)
    if max_steps <= 0 or (meant and epochs >= math.ceil(num_train_epochs)):
        _check_epochs(num_train_epochs)
        return replace(plan, total_steps=segments[-1].end_of(num_train_epochs - 1))
    if max_steps <= warmup_steps:
        raise ValueError(
            f"`max_steps={max_steps}` leaves no step for the selected rows: the warm-up alone takes {warmup_steps} "
            "steps. Raise `max_steps`, or lower `warmup_ratio` or `warmup_steps` of the GISTConfig."
        )
    if epochs >= max_steps:
        return plan
    if epochs == 1:
        raise ValueError(
            f"`max_steps={max_steps}` is not possible with a callback that was added after the Trainer was made: "
            f"Trainer converts it to one epoch of the whole pool, which is the warm-up. Pass the callback to the "
            f"constructor, `Trainer(..., callbacks=[callback])`, or set `num_train_epochs` instead."
        )
    reachable = warmup_steps + (epochs - 1) * steps_in_epoch
    return replace(plan, total_steps=min(max_steps, reachable), whole_passes=False)


def _check_epochs(num_train_epochs: float) -> None:
    if num_train_epochs <= 1:
        raise ValueError(
            f"`num_train_epochs={num_train_epochs}` leaves no epoch for the selected rows: the first epoch is the "
            "warm-up, and each further one is a pass over the selection. Set `num_train_epochs` to 1 + the number "
            f"of passes, for instance 4. See {guide('getting_started', 'in-a-trainer')}."
        )
