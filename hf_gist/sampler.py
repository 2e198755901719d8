"""The train dataloader's order: the warm-up, then passes over the selection, and the learning-rate schedule to match.

This is the only module that knows how `Trainer` and accelerate drive a loader (checked on transformers 5.6 to 5.23 and
accelerate 1.12 to 1.15). Every order is a function of the optimizer step, so that a resumed run goes on as if never stopped.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler
from transformers import TrainingArguments, get_scheduler

from hf_gist.errors import ResumedStepWarning


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps a run has, and where its passes end.

    Args:
        pool_size (`int`): rows of the candidate pool.
        samples_per_step (`int`): rows in one optimizer step, over all processes and accumulation.
        warmup_steps (`int`): steps of the warm-up, which is the first epoch.
        steps_per_pass (`int`): steps of one pass over the selection; every later epoch is one pass.
        total_steps (`int`): steps of the whole run.
        epoch_limit (`int`): the most whole steps one epoch of the `Trainer` can take: without a last one that it would
            cut short, because the batches of the pool are no multiple of the gradient accumulation.
        whole_passes (`bool`): end an epoch at the end of each pass; otherwise (`max_steps` given) passes follow one
            another until `epoch_limit`.
    """

    pool_size: int
    samples_per_step: int
    warmup_steps: int
    steps_per_pass: int
    total_steps: int
    epoch_limit: int
    whole_passes: bool = True

    def epoch_end(self, step: int) -> int:
        """The step at which the epoch that starts at `step` ends."""
        if step < self.warmup_steps:
            return self.warmup_steps
        if self.whole_passes:
            passes = (step - self.warmup_steps) // self.steps_per_pass + 1
            return min(self.warmup_steps + passes * self.steps_per_pass, self.total_steps)
        return min(step + self.epoch_limit, self.total_steps)

    def epoch(self, step: int) -> float:
        """The epoch to show in logs after `step` steps: the warm-up is the first, each pass one more."""
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        return 1 + (step - self.warmup_steps) / self.steps_per_pass


def warmup_steps_of(
    ratio: float, steps: int | None, pool_size: int, samples_per_step: int, steps_in_epoch: int
) -> int:
    """Optimizer steps of the warm-up: `steps`, or enough for `ratio` of the pool.

    Raises:
        ValueError: if the warm-up would take a whole pass over the pool or more.
    """
    wanted = steps if steps is not None else max(1, math.ceil(ratio * pool_size / samples_per_step))
    if wanted >= steps_in_epoch:
        name = f"warmup_steps={steps}" if steps is not None else f"warmup_ratio={ratio}"
        raise ValueError(
            f"`{name}` makes a warm-up of {wanted} optimizer steps, but one pass over the {pool_size} rows has only "
            f"{steps_in_epoch}; lower it, or the batch size."
        )
    return wanted


def plan_run(
    pool_size: int,
    samples_per_step: int,
    steps_in_epoch: int,
    warmup_steps: int,
    selected_rows: int,
    num_train_epochs: float,
    max_steps: int,
) -> Plan:
    """Lay out a run: `num_train_epochs = 1 + passes over the selection`.

    Args:
        pool_size (`int`): rows of the pool.
        samples_per_step (`int`): rows in one optimizer step.
        steps_in_epoch (`int`): whole optimizer steps in one pass over the whole pool, which `Trainer` believes in.
        warmup_steps (`int`): steps of the warm-up.
        selected_rows (`int`): rows of the selection.
        num_train_epochs (`float`): of the `TrainingArguments`.
        max_steps (`int`): of the `TrainingArguments`; -1 for none.

    Raises:
        ValueError: if nothing would be trained on the selection.
    """
    # with `dataloader_drop_last` an epoch of the Trainer may be a step shorter than the whole pool
    steps_per_pass = min(math.ceil(selected_rows / samples_per_step), steps_in_epoch)
    if max_steps <= 0:
        if num_train_epochs <= 1:
            raise ValueError(
                f"`num_train_epochs={num_train_epochs}` leaves no epoch for the selected rows: the first epoch is the "
                "warm-up, and each further one is a pass over the selection. Set `num_train_epochs` to 1 + the number "
                "of passes, for instance 4."
            )
        total = warmup_steps + math.ceil((num_train_epochs - 1) * steps_per_pass - 1e-9)
        return Plan(pool_size, samples_per_step, warmup_steps, steps_per_pass, total, steps_in_epoch)
    epochs = math.ceil(max_steps / steps_in_epoch)
    reachable = warmup_steps + (epochs - 1) * steps_in_epoch
    if max_steps <= warmup_steps or max_steps > reachable:
        passes = max(1, math.ceil((max_steps - warmup_steps) / steps_per_pass))
        raise ValueError(
            f"`max_steps={max_steps}` cannot be kept: Trainer turns it into {epochs} epoch(s) of the whole pool, the "
            f"first of which is the warm-up of {warmup_steps} steps. Leave `max_steps` out and set "
            f"`num_train_epochs={1 + passes}`, which makes {warmup_steps + passes * steps_per_pass} steps."
        )
    return Plan(pool_size, samples_per_step, warmup_steps, steps_per_pass, max_steps, steps_in_epoch, False)


class GISTSampler(Sampler[int]):
    """Yields the rows of one epoch at a time: the warm-up sample, then passes over the selection.

    Args:
        plan (`Plan`): the layout of the run.
        seed (`int`): seed of the warm-up sample and of the order of each pass.
        barred (`Tensor`, *optional*): `[N]` bool, rows that the warm-up must not see either.

    Raises:
        ValueError: if all rows are barred.
    """

    def __init__(self, plan: Plan, seed: int, barred: Tensor | None = None) -> None:
        self.plan, self.seed, self.barred = plan, seed, barred
        if barred is not None and bool(barred.all()):
            raise ValueError(
                "Every row of the pool is in `target_dataset` or `eval_dataset` too; nothing is left to train on."
            )
        self.selection: list[int] | None = None
        self._first_step, self._skipped, self.epoch_end = 0, 0, plan.epoch_end(0)
        self._drawn: tuple[tuple[int, int], list[int]] = ((0, -1), [])

    def _permutation(self, size: int, offset: int) -> list[int]:
        if self._drawn[0] != (size, offset):
            generator = torch.Generator().manual_seed(self.seed + offset)
            self._drawn = (size, offset), torch.randperm(size, generator=generator).tolist()
        return self._drawn[1]

    @cached_property
    def _warmup_order(self) -> list[int]:
        order = self._permutation(self.plan.pool_size, 0)
        return order if self.barred is None else [row for row in order if not self.barred[row]]

    def rows_of_step(self, step: int) -> list[int]:
        """The rows of one optimizer step, over all processes; a pass is filled up from its own start."""
        size = self.plan.samples_per_step
        if step < self.plan.warmup_steps:
            order = self._warmup_order
            return [order[at % len(order)] for at in range(step * size, (step + 1) * size)]
        number, within = divmod(step - self.plan.warmup_steps, self.plan.steps_per_pass)
        order = self._permutation(len(self.selection), 1 + number)
        return [self.selection[order[at % len(order)]] for at in range(within * size, (within + 1) * size)]

    def start_epoch(self, step: int, skipped_steps: int = 0) -> None:
        """Say where the next epoch starts.

        Args:
            step (`int`): optimizer steps done.
            skipped_steps (`int`): steps that a resuming `Trainer` will skip at the head of this epoch; they are
                filled with a row that is never read.
        """
        self._first_step, self._skipped = step, skipped_steps
        left = self.plan.epoch_limit - skipped_steps
        if left < 1:
            warnings.warn(
                f"The first step after resuming at step {step} has fewer batches than the others: `Trainer` cuts the last "
                "step of a pass over the whole pool short, and takes this one for it.",
                ResumedStepWarning,
                stacklevel=2,
            )
        self.epoch_end = min(self.plan.epoch_end(step), step + max(1, left))

    def __iter__(self) -> Iterator[int]:
        for _ in range(self._skipped * self.plan.samples_per_step):
            yield 0
        for step in range(self._first_step, self.epoch_end):
            yield from self.rows_of_step(step)

    def __len__(self) -> int:
        # Trainer and accelerate size progress bars and shards by the pool; epochs end by themselves before that.
        return self.plan.pool_size


# ---- Learning rate ----


def _lambdas(args: TrainingArguments, like: LambdaLR, steps: int) -> list[Callable[[int], float]] | None:
    """The learning-rate factors that `Trainer` would use for a run of `steps` steps; `None` if they ignore the length."""
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(()))]} for _ in like.lr_lambdas]
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        # schedules that end at a given rate read the one that they start from
        optimizer=torch.optim.SGD(parameters, lr=like.optimizer.defaults["lr"]),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return scheduler.lr_lambdas if isinstance(scheduler, LambdaLR) else None


def _then(first: Callable[[int], float], second: Callable[[int], float], at: int) -> Callable[[int], float]:
    return lambda step: first(step) if step < at else second(step - at)


def is_trainers_own(args: TrainingArguments, scheduler: LRScheduler, horizon: int) -> bool:
    """Whether the scheduler is the one `Trainer` makes from its arguments for `horizon` steps."""
    if not isinstance(scheduler, LambdaLR):
        return False
    own = _lambdas(args, scheduler, horizon)
    steps = range(0, horizon + 1, max(1, horizon // 16))
    return own is not None and all(
        math.isclose(a(step), b(step), abs_tol=1e-12)
        for a, b in zip(own, scheduler.lr_lambdas, strict=True)
        for step in steps
    )


def retime(args: TrainingArguments, scheduler: LambdaLR, plan: Plan, restart: bool) -> None:
    """Give a scheduler the horizon of the plan and set the learning rate of the current step.

    Args:
        args (`TrainingArguments`): of the run.
        scheduler (`LambdaLR`): the scheduler of the `Trainer`, changed in place.
        plan (`Plan`): the layout of the run.
        restart (`bool`): one schedule over the warm-up and a fresh one after it, instead of one over both.
    """
    warm = plan.warmup_steps
    if restart:
        first, second = _lambdas(args, scheduler, warm), _lambdas(args, scheduler, plan.total_steps - warm)
        scheduler.lr_lambdas = [_then(a, b, warm) for a, b in zip(first, second, strict=True)]
    else:
        scheduler.lr_lambdas = _lambdas(args, scheduler, plan.total_steps)
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


# ---- Proof ----


class StepWitness:
    """Watches the token rows that reach the model during one optimizer step.

    Args:
        model (`nn.Module`): the model whose forward receives `input_ids`.
        batches (`int`): batches of a step; behind them it goes by itself, should an error have ended the step.
    """

    def __init__(self, model: torch.nn.Module, batches: int) -> None:
        self.rows: list[tuple[int, ...]] = []
        self._left = batches
        self._handle = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training and isinstance(kwargs.get("input_ids"), torch.Tensor):
            self.rows += token_rows(kwargs)
            self._left -= 1
            if not self._left:
                self.close()

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()


def token_rows(batch: dict) -> list[tuple[int, ...]]:
    """The rows of a batch as tuples of token ids without padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None or mask.shape != ids.shape:
        return [tuple(row) for row in ids.tolist()]
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]


def is_one_of(row: tuple[int, ...], allowed: set[tuple[int, ...]]) -> bool:
    """Whether a token row is one of `allowed`, or one of them with padding that no attention mask told of."""
    if row in allowed:
        return True
    return any(
        len(known) < len(row)
        and (
            (row[: len(known)] == known and len(set(row[len(known) :])) == 1)
            or (row[-len(known) :] == known and len(set(row[: -len(known)])) == 1)
        )
        for known in allowed
    )


def rows_as_collated(rows: Sequence[dict], collator: Callable) -> set[tuple[int, ...]] | None:
    """The token rows a collator makes of dataset rows; `None` if it makes others the second time (random masking)."""
    first = [token_rows(collator([dict(row)]))[0] for row in rows]
    second = [token_rows(collator([dict(row)]))[0] for row in rows[:8]]
    return set(first) if first[: len(second)] == second else None
