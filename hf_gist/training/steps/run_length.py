"""The length of a run, from the trainer's arguments and the selections, and what the user is told about it."""

import math
import warnings
from collections.abc import Sequence

from tqdm.auto import tqdm
from transformers import TrainerState

from hf_gist.config.gist import GISTConfig
from hf_gist.errors import MaxStepsWarning
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.training.parts import TrainerParts
from hf_gist.training.steps.loader import total_batch_size
from hf_gist.training.steps.plan import StepPlan, plan_steps, warmup_steps_of
from hf_gist.utils.terminal import wrapped


BY_CONSTRUCTOR = "Pass the callback to the constructor, `Trainer(..., callbacks=[callback])`"


def expected_rows(config: GISTConfig, pool_size: int, excluded: int = 0) -> int:
    """Number of rows that will be selected; an estimate for a token budget, corrected at the swap.

    Args:
        config (`GISTConfig`): the budget.
        pool_size (`int`): rows of the pool.
        excluded (`int`): how many of them must not be trained on.
    """
    rows = rows_in_budget(config.budget, config.budget_unit, pool_size)
    if rows is not None:
        return max(1, min(rows, pool_size - excluded))
    if isinstance(config.budget, float):
        return max(1, int(config.budget * pool_size))
    return max(1, min(pool_size, config.budget // 64))


def step_plan(
    config: GISTConfig, parts: TrainerParts, rows: int, epochs: int, later: Sequence[tuple[int, int]] = ()
) -> StepPlan:
    """The step plan of a run with these selections.

    Args:
        config (`GISTConfig`): the warm-up.
        parts (`TrainerParts`): the trainer's objects.
        rows (`int`): rows of the first selection.
        epochs (`int`): epochs that the trainer will begin.
        later (`Sequence[tuple[int, int]]`): optimizer steps before each further selection, and its rows.

    Raises:
        ValueError: if the warm-up or the selection would have no steps.
    """
    args = parts.args
    loader = parts.loader
    pool_size = len(parts.pool)
    per_step = total_batch_size(loader) * args.gradient_accumulation_steps
    # only the full-size steps of Trainer
    in_epoch = max(1, len(loader) // args.gradient_accumulation_steps)
    warmup = warmup_steps_of(config.warmup_ratio, config.warmup_steps, pool_size, per_step, in_epoch)
    selections = [(warmup, rows), *later]
    return plan_steps(pool_size, per_step, in_epoch, selections, args.num_train_epochs, args.max_steps, epochs)


def check_chooses_again(plan: StepPlan, config: GISTConfig, parts: TrainerParts, epochs: int) -> None:
    """Check before the first step that `reselect_every` has an effect.

    Args:
        plan (`StepPlan`): the plan, with the expected rows of the first selection.
        config (`GISTConfig`): `reselect_every` and the budget.
        parts (`TrainerParts`): the trainer's objects.
        epochs (`int`): epochs that the trainer will begin.

    Raises:
        ValueError: with the numbers, if the run ends before rows would be chosen again, or has no epoch to end for it.
    """
    every = config.reselect_every
    if every is None:
        return
    args = parts.args
    if not plan.whole_passes:
        raise ValueError(
            f"`reselect_every={every}` needs an epoch of the Trainer for every pass, but with `max_steps={args.max_steps}` "
            f"and a callback that was added after the Trainer was made there are only {epochs}. {BY_CONSTRUCTOR}."
        )
    by_steps = args.max_steps > 0 and plan.total_steps == args.max_steps
    # the rows of a token budget, and so the steps of a pass, are not known yet
    if plan.next_selection(every) is not None or (by_steps and config.budget_unit == "tokens"):
        return
    again = "rows are chosen again only at the end of a pass that is not the last one"
    if by_steps:
        segment = plan.segments[0]
        needed = segment.start + every * segment.steps_per_pass + 1
        fits = math.ceil(segment.passes(plan.total_steps) - 1e-9) - 1
        lower = f"Set it to {fits} or less" if fits > 0 else "Leave it out"
        raise ValueError(
            f"`reselect_every={every}` never chooses again: `max_steps={args.max_steps}` ends after "
            f"{segment.passes(plan.total_steps):.3g} passes over the selection, of {segment.steps_per_pass} steps each "
            f"after a warm-up of {segment.start}, and {again}. {lower}, or set `max_steps` to {needed} or more."
        )
    passes = args.num_train_epochs - 1
    lower = f"Set it to {math.ceil(passes) - 1} or less" if passes > 1 else "Leave it out"
    raise ValueError(
        f"`reselect_every={every}` never chooses again: `num_train_epochs={args.num_train_epochs:g}` is the warm-up and "
        f"{passes:g} pass(es) over the selection, and {again}. {lower}, or set `num_train_epochs` to {every + 2} or more."
    )


def tell_length(plan: StepPlan, parts: TrainerParts, epochs: int, state: TrainerState) -> None:
    """Tell the user if a run with `max_steps` will have another number of steps.

    Args:
        plan (`StepPlan`): the plan of the run.
        parts (`TrainerParts`): the trainer's objects.
        epochs (`int`): epochs that the trainer will begin.
        state (`TrainerState`): the trainer's state.
    """
    args = parts.args
    total = plan.total_steps
    if args.max_steps <= 0 or total == args.max_steps:
        return
    if not plan.whole_passes:
        warnings.warn(
            f"`max_steps={args.max_steps}` cannot be reached: the callback was added after the Trainer was made, "
            f"and the {epochs} epochs that Trainer derived from it end after {total} steps. "
            f"{BY_CONSTRUCTOR}, for exactly that many.",
            MaxStepsWarning,
            stacklevel=5,
        )
    elif state.is_world_process_zero:
        text = (
            f"GIST: `max_steps={args.max_steps}` is the length of `num_train_epochs={args.num_train_epochs:g}` "
            "passes over the train dataset, so the run has these epochs: the warm-up, and passes over the "
            f"selected rows (about {total} steps). {BY_CONSTRUCTOR}, for exactly that many."
        )
        tqdm.write(wrapped(text))


def tell_selections(plan: StepPlan, config: GISTConfig, state: TrainerState) -> None:
    """Tell the user after which steps rows will be chosen, and what that may cost with `scoring_cost`.

    Args:
        plan (`StepPlan`): the plan of the run.
        config (`GISTConfig`): `reselect_every` and `scoring_cost`.
        state (`TrainerState`): the trainer's state.
    """
    if config.reselect_every is None or not state.is_world_process_zero:
        return
    each = (
        ""
        if config.scoring_cost is None
        else f"for at most {config.scoring_cost:g} training passes over the pool each"
    )
    if config.budget_unit == "tokens":
        # the rows of a token budget, and so the steps of a pass, are not known yet
        line = f"after the warm-up and after every {config.reselect_every} pass(es) but the last"
        cost = f", {each}" if each else ""
    else:
        steps = plan.selection_steps(config.reselect_every)
        shown = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
        line = f"{len(steps)} times, after step {shown}"
        cost = f", {each}, {len(steps) * (config.scoring_cost or 0):g} in all" if each else ""
    tqdm.write(wrapped(f"GIST: rows will be selected {line}{cost}."))
