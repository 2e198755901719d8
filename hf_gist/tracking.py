"""What a selection tells the trackers: values in Trainer's log history, scalars and figures in TensorBoard."""

import os
import tempfile
from pathlib import Path

import torch
from transformers import TrainerState, TrainingArguments

from hf_gist.artifacts import Selection
from hf_gist.manifest import SCORING
from hf_gist.report import save_selection_figures


def selection_metrics(selection: Selection) -> dict[str, float]:
    """The numbers of a selection, under the names that trackers show.

    Returns:
        `dict[str, float]`: `gist_rows`, `gist_share` of the pool, `gist_label_tokens`, `gist_score_cut` (the lowest
        selected score), and where gradients were scored `gist_rank`, `gist_explained_variance`, `gist_energy` (median
        of the selected rows) and `gist_scoring_seconds`.
    """
    m, kept = selection.measurements, torch.tensor(selection.indices)
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
    phases = {p.phase: p.seconds for p in selection.costs.phases} if selection.costs else {}
    return metrics | ({"gist_scoring_seconds": phases[SCORING]} if SCORING in phases else {})


def track_selection(args: TrainingArguments, state: TrainerState, selection: Selection) -> None:
    """Put the numbers into `state.log_history` and, with `report_to="tensorboard"`, into the run's TensorBoard folder.

    A callback cannot reach `Trainer.log`, so other trackers do not get them; [`selection_metrics`] has them for those.
    """
    metrics = selection_metrics(selection)
    state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})
    if "tensorboard" in args.report_to:
        _to_tensorboard(_tensorboard_folder(args), state.global_step, metrics, selection)


def _tensorboard_folder(args: TrainingArguments) -> Path:
    """Where Trainer's own callback writes: the folder asked for, or the newest of its default place."""
    asked = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if asked:
        return Path(asked).expanduser()
    folder = Path(args.output_dir) / "runs"
    events = sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime)
    return events[-1].parent if events else folder


def _to_tensorboard(folder: Path, step: int, metrics: dict[str, float], selection: Selection) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), filename_suffix=".gist") as writer:
        for name, value in metrics.items():
            writer.add_scalar(f"train/{name}", value, step)
        try:
            from matplotlib.image import imread
        except ImportError:
            return
        with tempfile.TemporaryDirectory() as scratch:
            for path in save_selection_figures(selection, scratch):
                writer.add_image(f"gist/{path.stem}", imread(path)[..., :3], step, dataformats="HWC")
