"""The order of the train dataloader: the warm-up, then passes over each selection."""

import warnings
from collections.abc import Iterator
from functools import cached_property

from torch import Tensor
from torch.utils.data import Sampler

from hf_gist.data.leaks import check_rows_left
from hf_gist.errors import ResumedStepWarning
from hf_gist.training.steps.order import RowOrder
from hf_gist.training.steps.plan import StepPlan


class GISTSampler(Sampler[int]):
    """Yields the rows of one epoch at a time: the warm-up sample, then passes over each selection.

    Args:
        plan (`StepPlan`): the step plan of the run; its `segments` say which of `selections` a step is taken on.
        seed (`int`): seed of the warm-up sample and of the order of each pass.
        excluded (`Tensor`, *optional*): `[N]` bool, rows that are not used for the warm-up either.
        order (`RowOrder`): the order of the rows inside the warm-up sample, which is random, and inside each pass.

    Raises:
        ValueError: if all rows are excluded.
    """

    def __init__(
        self, plan: StepPlan, seed: int, excluded: Tensor | None = None, order: RowOrder | None = None
    ) -> None:
        check_rows_left(excluded)
        self.plan = plan
        self.seed = seed
        self.excluded = excluded
        self.order = order or RowOrder()
        self.selections: list[list[int]] = []
        self.epoch_end = plan.epoch_end(0)
        self._first_step = 0
        self._skipped_steps = 0
        self._drawn: tuple[tuple[int, int], list[int]] = ((0, -1), [])

    @cached_property
    def _warmup_order(self) -> list[int]:
        order = RowOrder("random").arrange(range(self.plan.pool_size), self.seed, self.plan.samples_per_step)
        if self.excluded is not None:
            order = [row for row in order if not self.excluded[row]]
        if self.order.kind == "random":
            return order
        needed = self.plan.warmup_steps * self.plan.samples_per_step
        sample = [order[at % len(order)] for at in range(needed)]
        return self.order.arrange(sample, self.seed, self.plan.samples_per_step)

    def _pass_order(self, selection: int, number: int) -> list[int]:
        """The rows of a pass, counted over all selections, in their order."""
        drawn = (selection, number)
        if self._drawn[0] != drawn:
            rows = self.selections[selection]
            order = self.order.arrange(rows, self.seed + 1 + number, self.plan.samples_per_step)
            self._drawn = (drawn, order)
        return self._drawn[1]

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of one optimizer step, over all processes; a pass's last step is padded with its first rows."""
        size = self.plan.samples_per_step
        if step < self.plan.warmup_steps:
            within = step
            order = self._warmup_order
        else:
            selection = self.plan.selection_of(step)
            number, within = self.plan.segments[selection].pass_at(step)
            order = self._pass_order(selection, number)
        return [order[at % len(order)] for at in range(within * size, (within + 1) * size)]

    def start_epoch(self, step: int, skipped_steps: int = 0) -> None:
        """Set the start of the next epoch.

        Args:
            step (`int`): optimizer steps done.
            skipped_steps (`int`): steps that a resuming `Trainer` skips at the start of this epoch; they are
                filled with a row that is not trained on.
        """
        self._first_step = step
        self._skipped_steps = skipped_steps
        left = self.plan.epoch_limit - skipped_steps
        if left < 1:
            warnings.warn(
                f"The first step after resuming at step {step} has fewer batches than the others: `Trainer` shortens "
                "the last step of a pass over the whole pool, and treats this step as the last one.",
                ResumedStepWarning,
                stacklevel=2,
            )
        self.epoch_end = min(self.plan.epoch_end(step), step + max(1, left))

    def __iter__(self) -> Iterator[int]:
        for _ in range(self._skipped_steps * self.plan.samples_per_step):
            yield 0
        for step in range(self._first_step, self.epoch_end):
            yield from self.rows_of_step(step)

    def __len__(self) -> int:
        # Trainer and accelerate size progress bars and shards by the pool; the sampler ends each epoch earlier.
        return self.plan.pool_size
