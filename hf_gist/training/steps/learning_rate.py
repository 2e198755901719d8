"""The learning-rate schedule of a run whose length the callback sets."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import Trainer, get_scheduler

from hf_gist.errors import ScheduleLengthWarning
from hf_gist.training.parts import TrainerParts
from hf_gist.training.steps.plan import StepPlan


Factor = Callable[[int], float]
"""From optimizer step to a factor of the learning rate."""

WITHOUT_LENGTH = ("ReduceLROnPlateau", "GreedyLR")
"""Schedulers that follow a metric."""


class StandIn(Optimizer):
    """Has the groups and options of another optimizer at its first step, and one parameter in each group.

    Args:
        optimizer (`Optimizer`): the optimizer of the run; it is not changed.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        groups = []
        for group in optimizer.param_groups:
            options = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
            rate = group.get("initial_lr", group["lr"])
            groups.append(options | {"params": [torch.nn.Parameter(torch.zeros(()))], "lr": rate})
        super().__init__(groups, dict(optimizer.defaults))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


class ScheduleMaker:
    """Makes the schedule that the Trainer creates for any number of steps, by its own `create_scheduler`.

    It is asked on copies of the trainer and its arguments, with a [`StandIn`] for the optimizer, so nothing of the run
    is changed.

    Args:
        parts (`TrainerParts`): the trainer's objects.
        horizon (`int`): optimizer steps that the trainer's own scheduler was created for.
    """

    def __init__(self, parts: TrainerParts, horizon: int) -> None:
        self.args = parts.args
        self.trainer = parts.trainer
        self.optimizer = parts.optimizer
        given: dict[str, Any] = dict(parts.args.lr_scheduler_kwargs or {})  # type: ignore[arg-type]
        lengths = {name for name, value in given.items() if "steps" in name and isinstance(value, int)}
        filled = self._filled(horizon, {name: value for name, value in given.items() if name not in lengths})
        self.fixed = {name: given[name] for name in sorted(lengths) if filled.get(name) != given[name]}
        """Numbers of steps in `lr_scheduler_kwargs` that do not depend on the number of steps of the run."""
        self._kwargs = {name: value for name, value in given.items() if name not in lengths or name in self.fixed}

    def _filled(self, steps: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The `lr_scheduler_kwargs` after `create_scheduler` of a subclass may have filled in numbers of steps."""
        if self.trainer is None or type(self.trainer).create_scheduler is Trainer.create_scheduler:
            return {}
        asked = self._copy(self.trainer, kwargs)
        try:
            asked.create_scheduler(num_training_steps=steps)
        except (TypeError, ValueError):
            # it needs the numbers of steps that were left out, so it does not fill them in itself
            return {}
        return asked.args.lr_scheduler_kwargs or {}  # type: ignore[return-value]

    def _copy(self, trainer: Trainer, kwargs: dict[str, Any]) -> Trainer:
        asked = copy.copy(trainer)
        asked.args = copy.copy(trainer.args)
        asked.args.lr_scheduler_kwargs = copy.deepcopy(kwargs)
        asked.optimizer = StandIn(self.optimizer)
        asked.lr_scheduler = None
        return asked

    def make(self, steps: int) -> tuple[LRScheduler, dict[str, Any]]:
        """The schedule for a run of `steps` steps, and the `lr_scheduler_kwargs` that it was made with."""
        if self.trainer is None:
            scheduler = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer=StandIn(self.optimizer),
                num_warmup_steps=self.args.get_warmup_steps(steps),
                num_training_steps=steps,
                scheduler_specific_kwargs=self._kwargs,
            )
            return scheduler, self._kwargs
        asked = self._copy(self.trainer, self._kwargs)
        made = asked.create_scheduler(num_training_steps=steps)
        # an override may set the attribute without returning it
        return made or asked.lr_scheduler, asked.args.lr_scheduler_kwargs or {}  # type: ignore[return-value]


def _then(first: Factor, second: Factor, at: int) -> Factor:
    return lambda step: first(step) if step < at else second(step - at)


def _same_rates(one: LambdaLR, other: LambdaLR, horizon: int) -> bool:
    """Whether two schedules have the same factors, at up to 17 of the steps."""
    steps = range(0, horizon + 1, max(1, horizon // 16))
    return all(
        math.isclose(a(step), b(step), abs_tol=1e-12)
        for a, b in zip(one.lr_lambdas, other.lr_lambdas, strict=True)
        for step in steps
    )


class Schedule:
    """The learning-rate scheduler of a run, whose length follows the step plan.

    Args:
        parts (`TrainerParts`): the trainer's objects.
        horizon (`int`): optimizer steps that the trainer's own scheduler was created for.
    """

    def __init__(self, parts: TrainerParts, horizon: int) -> None:
        self.parts = parts
        self.horizon = horizon
        self.scheduler = parts.scheduler
        self.maker = ScheduleMaker(parts, horizon)
        self.adjustable = self._is_made_by_trainer()

    def _is_made_by_trainer(self) -> bool:
        """Whether the scheduler can be made again, by the trainer or by `get_scheduler`, so that its length may change."""
        scheduler: Any = self.scheduler
        if type(scheduler).__name__ in WITHOUT_LENGTH:
            return False
        if self._is_made_by_maker():
            return True
        if isinstance(scheduler, LambdaLR) and self.maker.trainer is not None:
            # a `create_scheduler` that asks an object with a reference to the trainer returns the scheduler in use
            self.maker.trainer = None
            if self._is_made_by_maker():
                return True
        warnings.warn(
            f"The learning-rate scheduler ({type(scheduler).__name__}) was not made by the Trainer's "
            "`create_scheduler`, so its length was not changed. Create it for the number of steps in the log, or "
            "override `create_scheduler` in a subclass of the Trainer, which is called with that number.",
            ScheduleLengthWarning,
            stacklevel=5,
        )
        return False

    def _is_made_by_maker(self) -> bool:
        scheduler: Any = self.scheduler
        made: Any = self.maker.make(self.horizon)[0]
        if type(made) is not type(scheduler) or made is scheduler:
            return False
        return not isinstance(scheduler, LambdaLR) or _same_rates(made, scheduler, self.horizon)

    def set_length(self, plan: StepPlan, restart: bool, step: int) -> None:
        """Set the length of the schedule to that of the plan, and the learning rate of the current step.

        Args:
            plan (`StepPlan`): the step plan of the run.
            restart (`bool`): one schedule over the warm-up and a new one after it, instead of one over both.
            step (`int`): optimizer steps done.
        """
        if not self.adjustable:
            return
        start = plan.warmup_steps if restart else 0
        length = plan.total_steps - start
        made, kwargs = self.maker.make(length)
        if self.maker.fixed:
            self._warn_of_fixed_lengths(kwargs, length)
        if isinstance(made, LambdaLR):
            before = self.maker.make(start)[0].lr_lambdas if restart else made.lr_lambdas  # type: ignore[attr-defined]
            self._set_factors([_then(a, b, start) for a, b in zip(before, made.lr_lambdas, strict=True)])
        elif step < start:
            self._become(self.maker.make(start)[0], step)
        else:
            self._become(made, step - start)

    def _set_factors(self, factors: list[Factor]) -> None:
        scheduler = self.scheduler
        scheduler.lr_lambdas = factors
        rates = [base * f(scheduler.last_epoch) for base, f in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def _become(self, made: LRScheduler, step: int) -> None:
        """Take over the state that another scheduler has after `step` steps, with the options that it sets."""
        # a scheduler warns if it is stepped before its optimizer
        made.optimizer.step()
        for _ in range(step):
            made.step()
        optimizer = self.scheduler.optimizer
        for group, options in zip(optimizer.param_groups, made.optimizer.param_groups, strict=True):
            group.update({name: value for name, value in options.items() if name != "params"})
        _attach(made, optimizer)
        # not `load_state_dict`, which leaves out functions such as those of a LambdaLR inside a SequentialLR
        vars(self.scheduler).update(vars(made))

    def _warn_of_fixed_lengths(self, kwargs: dict[str, Any], length: int) -> None:
        """Warn if numbers of steps that the user fixed do not fit a schedule of `length` steps."""
        problem = None
        if self.parts.args.lr_scheduler_type == "warmup_stable_decay":
            problem = _misfit(self.parts.args.get_warmup_steps(length), kwargs, length)
        elif length != self.horizon:
            problem = f"the schedule has {length} steps instead of {self.horizon}"
        if problem is not None:
            fixed = ", ".join(f"{name}={value}" for name, value in self.maker.fixed.items())
            warnings.warn(
                f"`lr_scheduler_kwargs` fixes {fixed}, but {problem}. Set them to numbers of steps that fit.",
                ScheduleLengthWarning,
                stacklevel=5,
            )


def _attach(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    """Attach a scheduler, and those that it is made of, to another optimizer."""
    scheduler.optimizer = optimizer
    for value in list(vars(scheduler).values()):
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, LRScheduler):
                _attach(part, optimizer)


def _misfit(warmup: int, kwargs: dict[str, Any], length: int) -> str | None:
    """How the parts of a warmup-stable-decay schedule do not fit `length` steps; `None` if they do."""
    decay = kwargs["num_decay_steps"]
    stable = kwargs.get("num_stable_steps")
    start = length - decay if stable is None else warmup + stable
    if start < warmup:
        return f"the schedule has {length} steps, fewer than {warmup} of warm-up and {decay} of decay"
    if start >= length:
        return f"the schedule has {length} steps, so the learning rate never decays: the decay starts after {start}"
    if start + decay > length:
        return f"the schedule has {length} steps, so only {length - start} of {decay} steps of decay are done"
    if start + decay < length:
        return f"the schedule has {length} steps, the last {length - start - decay} of them after the decay"
    return None
