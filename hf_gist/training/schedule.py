"""How many steps a run has, where its passes end, and the learning-rate schedule to match."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments, get_scheduler


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
