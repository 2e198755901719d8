"""The first three sentences of the page: what was selected, whether the target got better, and what it cost."""

from collections import Counter
from typing import Any

from hf_gist.config.gist import UNSCORED
from hf_gist.costs.ledger import CostLedger
from hf_gist.costs.stopwatch import TRAINING
from hf_gist.functional.target_losses import MANIFEST_KEY, noise
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.selection import Selection
from hf_gist.report.parts import Opening
from hf_gist.report.wording import count, percent, plural, seconds, short


OFTEN = 2
"""A source is named if its share of the selection is at least this many times its share of the pool ..."""

MUCH = 0.2
"""... and at least this share of the selection."""

YES = "Yes."

RANDOM_ROWS_TOO = "Training on random rows may lower it too: hf-gist compare measures that."


def target_sentence(manifest: dict[str, Any], trained: bool) -> str:
    """Whether the loss on the target rows fell. The one place that says so for selections and GAST runs.

    Args:
        manifest (`dict`): of the run, with the series of target losses if they were measured.
        trained (`bool`): whether the run trained on the selected rows.
    """
    found = manifest.get(MANIFEST_KEY)
    if isinstance(found, dict) and found.get("points"):
        verdict = _verdict(found)
        compared = f" {RANDOM_ROWS_TOO}" if verdict == YES else ""
        return f"{verdict} {_capitalised(short(found['sentence'], 400))}{compared}"
    if trained:
        return (
            "Not measured in this run. To measure it, give held-out rows like the targets as eval_dataset, and compare "
            "eval_loss before and after training."
        )
    return (
        "Not measured: nothing was trained on the selected rows. hf-gist compare trains on them and on random rows, and "
        "compares both on test rows."
    )


def _verdict(found: dict[str, Any]) -> str:
    """Yes, no or neither, from the change of the loss and its noise over the target rows."""
    # a model that was loaded at the end is measured again at the last step
    latest = reversed(found["points"])
    final = next((p for p in latest if p["step"] == found.get("final_step")), found["points"][-1])
    if final["change"] is None:
        return "No."
    if abs(final["change"]) <= noise(found["points"][0]["loss"], final["standard_error_of_change"]):
        return "Not clearly: the change is within the noise of these rows."
    return YES if final["change"] < 0 else "No."


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- A selection ----


def of_selection(selection: Selection, costs: CostLedger | None) -> Opening:
    """The opening for a selection.

    Args:
        selection (`Selection`): what was selected.
        costs (`CostLedger`, *optional*): its ledger on disk.
    """
    trained = costs is not None and any(phase.phase == TRAINING for phase in costs.phases)
    selected = f"{_selected(selection)}{_main_source(selection)}."
    return Opening(selected, target_sentence(selection.manifest, trained), _cost(costs))


def _selected(selection: Selection) -> str:
    """How many rows were selected, and which, as a clause."""
    config = selection.config
    kept = len(selection.indices)
    size = len(selection.scores)
    rows = f"{count(kept)} of {plural(size, 'row')} ({percent(kept / size)})"
    if config.strategy in UNSCORED:
        return f"{rows}, drawn at random as a baseline"
    if config.score == "grad_norm":
        return f"{rows}, those with the largest gradients, as a baseline that does not use the target rows"
    targets = plural(len(selection.measurements.target_coordinates), "target row")
    if scorer_of(config).forward_only:
        return f"{rows}, chosen by {selection.method}: those that the model represents most like the {targets}"
    return (
        f"{rows}, chosen by {selection.method}: those that change the model in training most like the {targets} would"
    )


def _main_source(selection: Selection) -> str:
    """The source with the most selected rows, if the selection has far more of it than the pool."""
    names = selection.measurements.sources
    if names is None:
        return ""
    kept = Counter(names[i] for i in selection.indices)
    name, most = min(kept.items(), key=lambda item: (-item[1], item[0]))
    of_kept = most / kept.total()
    of_pool = names.count(name) / len(names)
    if of_kept < max(MUCH, OFTEN * of_pool):
        return ""
    return (
        f". Of these, {percent(of_kept)} come from the source {short(name)!r}, which is {percent(of_pool)} of all rows"
    )


def _cost(costs: CostLedger | None) -> str:
    if costs is None:
        return "Not recorded in this folder."
    totals = costs.totals()
    passes = costs.selection_passes()
    took = f"Selecting took {seconds(totals['selection_seconds'])}"
    if passes is not None:
        took += f", as much computation as {passes:.2f} epochs of training on all rows"
    after = sum(phase.seconds for phase in costs.phases if phase.phase == TRAINING)
    return f"{took}; training on the selected rows then took {seconds(after)}." if after else f"{took}."


# ---- A GAST run ----


GAST_HEADINGS = ("Which samples updated each layer", "Did the target get better?", "Cost")


def of_gast(layers: int, share: float, run: tuple[str, int, int] | None, whole_model: bool = False) -> Opening:
    """The opening for a GAST training run without a selection.

    Args:
        layers (`int`): groups of matrices that were masked.
        share (`float`): share of the samples that a layer kept.
        run (`tuple`, *optional*): mode, optimizer steps and support gradients; `None` if they were not recorded.
        whole_model (`bool`): whether the only group is the whole model.
    """
    updated = "the whole model" if whole_model else f"each of {plural(layers, 'layer')}"
    selected = f"In every batch, {updated} was updated by {percent(share)} of the samples"
    cost = "Not recorded in this folder."
    if run is not None:
        mode, steps, supports = run
        selected += f", chosen in mode {mode!r}"
        cost = f"{plural(supports, 'extra gradient')} of the support rows in {plural(steps, 'optimizer step')}."
    return Opening(f"{selected}.", target_sentence({}, trained=True), cost, GAST_HEADINGS)
