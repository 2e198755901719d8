"""The learning-rate schedule of a run whose length the callback sets."""

import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments, get_scheduler

from hf_gist.training.steps.plan import StepPlan


Factor = Callable[[int], float]
"""From optimizer step to a factor of the learning rate."""


def _lambdas(args: TrainingArguments, like: LambdaLR, steps: int) -> list[Factor]:
    """The factors that `Trainer` would use for a run of `steps` steps; empty if they do not depend on the length."""
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(()))]} for _ in like.lr_lambdas]
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        # schedules with a given final rate read the initial rate
        optimizer=torch.optim.SGD(parameters, lr=like.optimizer.defaults["lr"]),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=cast(dict[str, Any] | None, args.lr_scheduler_kwargs),
    )
    return scheduler.lr_lambdas if isinstance(scheduler, LambdaLR) else []


def _then(first: Factor, second: Factor, at: int) -> Factor:
    return lambda step: first(step) if step < at else second(step - at)


def is_trainers_own(args: TrainingArguments, scheduler: LRScheduler, horizon: int) -> bool:
    """Whether the scheduler is the one that `Trainer` creates from its arguments for `horizon` steps."""
    if not isinstance(scheduler, LambdaLR):
        return False
    own = _lambdas(args, scheduler, horizon)
    steps = range(0, horizon + 1, max(1, horizon // 16))
    return bool(own) and all(
        math.isclose(a(step), b(step), abs_tol=1e-12)
        for a, b in zip(own, scheduler.lr_lambdas, strict=True)
        for step in steps
    )


def adjustable(args: TrainingArguments, scheduler: LRScheduler, horizon: int) -> LambdaLR | None:
    """The scheduler if `Trainer` created it, so that its length may be changed; otherwise `None`, with a warning.

    Args:
        args (`TrainingArguments`): the run's arguments.
        scheduler (`LRScheduler`): the run's scheduler.
        horizon (`int`): optimizer steps that it was created for.
    """
    if isinstance(scheduler, LambdaLR) and is_trainers_own(args, scheduler, horizon):
        return scheduler
    if type(scheduler).__name__ not in ("ReduceLROnPlateau", "GreedyLR"):
        warnings.warn(
            f"The learning-rate scheduler ({type(scheduler).__name__}) was not made by Trainer from its arguments, so "
            "its length was not changed. Create it for the number of steps in the log.",
            stacklevel=4,
        )
    return None


def set_length(args: TrainingArguments, scheduler: LambdaLR, plan: StepPlan, restart: bool) -> None:
    """Set the length of a scheduler to that of the plan, and set the learning rate of the current step.

    Args:
        args (`TrainingArguments`): the run's arguments.
        scheduler (`LambdaLR`): the scheduler of the `Trainer`, changed in place.
        plan (`StepPlan`): the step plan of the run.
        restart (`bool`): one schedule over the warm-up and a new one after it, instead of one over both.
    """
    if restart:
        warmup = _lambdas(args, scheduler, plan.warmup_steps)
        passes = _lambdas(args, scheduler, plan.total_steps - plan.warmup_steps)
        factors = [_then(a, b, plan.warmup_steps) for a, b in zip(warmup, passes, strict=True)]
    else:
        factors = _lambdas(args, scheduler, plan.total_steps)
    scheduler.lr_lambdas = factors
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
