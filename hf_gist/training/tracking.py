"""Logs a selection: metrics through Trainer's log, and figures to TensorBoard."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import TrainerState, TrainingArguments

from hf_gist.costs.stopwatch import SCORING
from hf_gist.gist.history import ENTRY
from hf_gist.gist.selection import Selection
from hf_gist.report import not_fatal, save_selection_figures
from hf_gist.training.losses.side_effects import empty_metrics, without_metrics
from hf_gist.training.parts import TrainerParts, output_folder


def selection_metrics(selection: Selection) -> dict[str, float]:
    """The metrics of a selection, under their names in trackers.

    Returns:
        `dict[str, float]`: `gist_rows`, `gist_share` of the pool, `gist_label_tokens`, `gist_score_cut` (the lowest
        selected score), and if gradients were scored `gist_rank`, `gist_explained_variance`, `gist_energy` (median
        of the selected rows), `gist_scoring_seconds` and `gist_selection_passes` (what selecting cost so far in training
        passes over the pool, warm-up included). Where rows are chosen again also `gist_selection`, the number of the
        selection from 1, and from the second on `gist_share_in_common` with the one before.
    """
    m = selection.measurements
    kept = torch.tensor(selection.indices)
    metrics = {
        "gist_rows": len(kept),
        "gist_share": len(kept) / len(selection.scores),
        "gist_label_tokens": int(m.label_tokens[kept].sum()),
        "gist_score_cut": float(selection.scores[kept].min()),
    }
    if selection.rank:
        metrics |= {
            "gist_rank": selection.rank,
            "gist_explained_variance": selection.explained_variance,
            "gist_energy": float(selection.energy[kept].median()),
        }
    records = selection.manifest.get(ENTRY) or []
    if records:
        metrics["gist_selection"] = selection.number
    if len(records) > 1:
        metrics["gist_share_in_common"] = records[-1]["share_in_common"]
    phases = {p.phase: p.seconds for p in selection.costs.phases} if selection.costs else {}
    if SCORING not in phases or selection.costs is None:
        return metrics
    passes = selection.costs.selection_passes()
    costs = {"gist_scoring_seconds": phases[SCORING]} | ({} if passes is None else {"gist_selection_passes": passes})
    return metrics | costs


def log_metrics(parts: TrainerParts, state: TrainerState, metrics: dict[str, float]) -> None:
    """Log metrics to all trackers of the Trainer; its own running metrics are neither logged nor reset.

    Call it on every process, from a callback event.
    """
    trainer = parts.trainer
    if trainer is None:
        state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
        return
    # `log` marks the step as logged, so the loss of the step would not be logged
    due = trainer.control.should_log
    with without_metrics(trainer):
        empty_metrics(trainer)
        trainer.log(dict(metrics))
    trainer.control.should_log = due


def track_selection(parts: TrainerParts, state: TrainerState, selection: Selection) -> None:
    """Log the metrics to all trackers of the Trainer, and the figures to TensorBoard if it is one of them.

    Call it on every process, from a callback event.
    """
    args = parts.args
    log_metrics(parts, state, selection_metrics(selection))
    if state.is_world_process_zero and "tensorboard" in (args.report_to or ()):
        with not_fatal("The figures for TensorBoard were", "Its numbers are there."):
            _figures_to_tensorboard(_tensorboard_folder(args), state.global_step, selection)


def _tensorboard_folder(args: TrainingArguments) -> Path:
    """The log folder of Trainer's TensorBoard callback: the user's, or the newest in its default folder."""
    asked = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if asked:
        return Path(asked).expanduser()
    folder = output_folder(args) / "runs"
    events = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    return events[-1].parent if events else folder


def _figures_to_tensorboard(folder: Path, step: int, selection: Selection) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as scratch:
        # called before importing matplotlib, because its error says how to install matplotlib
        files = save_selection_figures(selection, scratch)
        from matplotlib.image import imread

        with SummaryWriter(str(folder), filename_suffix=".gist") as writer:
            for path in files:
                writer.add_image(f"gist/{path.stem}", imread(path)[..., :3], step, dataformats="HWC")
