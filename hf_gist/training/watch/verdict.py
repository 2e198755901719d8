"""What the series of the target loss says at the end of a training: one sentence, and a warning if the loss rose."""

import math
import warnings

from hf_gist.errors import NoEffectWarning
from hf_gist.functional.target_losses import START, WARMED_UP, TargetLoss, TargetSeries, difference, rose


def best_point(series: TargetSeries, restarted: bool) -> TargetLoss | None:
    """The point with the lowest loss from which the training could have continued; the first one of several.

    That is the point from which the passes over the selection started (the end of the warm-up, or with
    `after_selection="restart"` the beginning), or the end of a pass. The untrained adapter is not among them when the
    warmed-up one is trained on: a target that is better off without training gets the [`TargetLossWarning`].

    Args:
        series (`TargetSeries`): so far.
        restarted (`bool`): whether the passes start from the initial adapter.
    """
    base = series.at(START if restarted else WARMED_UP)
    points = [*([] if base is None else [base]), *series.of_passes()]
    return min(points, key=lambda point: point.loss, default=None)


def sentence(series: TargetSeries, final: TargetLoss) -> str:
    """The target loss of a run in words.

    Args:
        series (`TargetSeries`): of the run, with at least one point.
        final (`TargetLoss`): the point whose adapter the run ends with: the last one, or an earlier one that was restored.
    """
    start = series.points[0]
    warmed = series.at(WARMED_UP)
    between = "" if warmed is None or warmed is final else f" (after the warm-up {warmed.loss:.3f})"
    count = len(start.losses)
    rows = f"mean of {count:,} {'held-out ' if series.held_out else ''}target row{'' if count == 1 else 's'}"
    text = f"target loss {start.loss:.3f} to {final.loss:.3f}{between}, {rows}."
    last = series.points[-1]
    if final is not last:
        text += f" It was {last.loss:.3f} {last.event}, so the adapter {_when(final)} was restored."
    return text


def _when(point: TargetLoss) -> str:
    return "from before the first step" if point.event == START else f"from {point.event}"


def rise(series: TargetSeries, final: TargetLoss, restarted: bool) -> str | None:
    """The text of the [`TargetLossWarning`]; `None` if the loss did not rise.

    It rose if the loss of the final adapter is above that before the first step, or above that from which the passes over
    the selection started, by more than the noise (see [`hf_gist.functional.target_losses.rose`]). The final adapter is
    that of the last step, or the one that was restored or loaded.

    Args:
        series (`TargetSeries`): of the whole run.
        final (`TargetLoss`): the point whose adapter the run ends with.
        restarted (`bool`): see [`best_point`].
    """
    start = series.at(START)
    warmed = None if restarted else series.at(WARMED_UP)
    before = [point for point in (start, warmed) if point is not None and point is not final and rose(point, final)]
    if not before:
        return None
    rises = " and ".join(_from(point, final) for point in before)
    ways = ["a lower learning rate", "fewer passes", "mixing in general rows (`source_shares`)"]
    best = best_point(series, restarted)
    hint = ""
    if start is not None and best is not None and start.loss <= best.loss:
        hint = " At no point of the training was it below that before the first step."
        ways.append("not training for this target")
    elif best is not None and best is not final:
        hint = f" The lowest was {best.loss:.4f} {best.event}, which `stop_when_target_rises=True` restores."
        ways[1] = f"fewer passes, or {'none' if best is warmed else 'an end there'}"
    ways = [*ways[:-1], f"or {ways[-1]}"]
    return f"The target loss rose to {final.loss:.4f} {final.event}: {rises}.{hint} Try {', '.join(ways)}."


def _from(before: TargetLoss, after: TargetLoss) -> str:
    change, error = difference(before, after)
    known = f"{change:+.4f}, standard error {error:.4f}" if math.isfinite(change) else "not finite"
    return f"from {before.loss:.4f} {before.event} ({known}, {len(before.losses):,} rows)"


def check_warmup(series: TargetSeries, learning_rate: float) -> None:
    """Check that the warm-up has changed the model, and that the loss is still finite.

    Args:
        series (`TargetSeries`): up to the end of the warm-up; empty if nothing is measured.
        learning_rate (`float`): of the trainer's arguments, for the message.

    Raises:
        RuntimeError: if it was finite before the first step and is not now, so that no row has a finite gradient.

    Warns:
        NoEffectWarning: if the loss of every target row is what it was before the first step.
    """
    if len(series.points) < 2:
        return
    if series.points[0].losses == series.points[-1].losses:
        warnings.warn(
            f"The warm-up changed nothing: after step {series.points[-1].step}, the loss of every target row is what it was "
            "before the first step. Its steps may have a learning rate of 0, as the first step of a schedule with "
            "`warmup_steps` has. Raise `warmup_ratio` or `warmup_steps` of the GISTConfig.",
            NoEffectWarning,
            stacklevel=6,
        )
    if not math.isfinite(series.points[0].loss) or math.isfinite(series.points[-1].loss):
        return
    raise RuntimeError(
        f"The warm-up diverged: the loss of the target rows was {series.points[0].loss:.3f} before the first step and is not "
        f"finite after step {series.points[-1].step}, so rows cannot be scored. Lower `learning_rate`, which is "
        f"{learning_rate:g}, or set `max_grad_norm`."
    )
