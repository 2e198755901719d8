"""The run that a model card describes, read from its output folder."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_gist.config.files import FOLDER
from hf_gist.config.gast import GASTConfig
from hf_gist.functional.target_losses import MANIFEST_KEY
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_metrics import evaluation_results
from hf_gist.utils.disk import read_json


README = "README.md"
"""The Hub's file name of a card."""

GAST_MANIFEST = "gast_manifest.json"

WARMUP_ADAPTER = "warmup_adapter"
"""Folder of the adapter that the rows were scored with, in the output folder of `hf-gist select`."""

ADAPTER_CONFIG = "adapter_config.json"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Run:
    """A run that a model card describes.

    Args:
        folder (`Path`): output folder of the run, where the card is written.
        selection (`Selection`, *optional*): the selection, if rows were selected.
        artifacts (`Path`, *optional*): folder of the selection's artifacts: `folder` itself for `hf-gist select`, a folder
            in it for a training run.
        gast (`GASTConfig`, *optional*): the configuration of GAST, if it was used.
        repo_id (`str`, *optional*): `user/name` of the model on the Hub, if known.
        results (`list[EvalResult]`): evaluation results of the model.
        gast_manifest (`dict`): model, datasets and versions of a training run with GAST.
    """

    folder: Path
    selection: Selection | None = None
    artifacts: Path | None = None
    gast: GASTConfig | None = None
    repo_id: str | None = None
    results: list[EvalResult] = field(default_factory=list)
    gast_manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether a model was trained; `hf-gist select` trains only the warm-up adapter."""
        return self.selection is None or self.artifacts != self.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """Model, datasets and versions: the manifest of the selection, or that of GAST if nothing was selected."""
        return self.gast_manifest if self.selection is None else self.selection.manifest

    @property
    def address(self) -> str:
        """`user/name` of the model on the Hub, or a placeholder."""
        return self.repo_id or "user/model"


def find_run(folder: str | os.PathLike, repo_id: str | None = None) -> Run:
    """Read the run in the output folder of a training run or of `hf-gist select`.

    Args:
        folder (`str` or `PathLike`): the output folder.
        repo_id (`str`, *optional*): `user/name` of the model on the Hub, for the card.

    Raises:
        ValueError: if the folder holds no run, or one of its files is damaged.
    """
    folder = Path(folder)
    artifacts = next((place for place in (folder / FOLDER, folder) if (place / MANIFEST).is_file()), None)
    gast = GASTConfig.from_pretrained(folder) if (folder / GASTConfig.FILE).is_file() else None
    if artifacts is None and gast is None:
        raise ValueError(
            f"{folder} holds no run of hf_gist: there is no {MANIFEST} (a selection) in it or in {FOLDER}/, and no "
            f"{GASTConfig.FILE} (a training run with GAST)."
        )
    selection = Selection.load(artifacts) if artifacts is not None else None
    gast_manifest = read_json(folder / GAST_MANIFEST) if (folder / GAST_MANIFEST).is_file() else {}
    run = Run(folder, selection, artifacts, gast, repo_id, gast_manifest=gast_manifest)
    return dataclasses.replace(run, results=_results_on_disk(run))


def _results_on_disk(run: Run) -> list[EvalResult]:
    """Evaluation results of a card that a trainer has written, or else from the trainer's saved state.

    The card is preferred because it lists the evaluation sets and the saved state does not.
    """
    readme = run.folder / README
    found = [run.folder / TRAINER_STATE, *run.folder.glob(f"checkpoint-*/{TRAINER_STATE}")]
    paths = [path for path in found if path.is_file()]
    newest = max((path.stat().st_mtime for path in paths), default=0.0)
    # training may have gone on since the card was written
    if readme.is_file() and readme.stat().st_mtime >= newest and ModelCard.load(readme).data.eval_results:
        return ModelCard.load(readme).data.eval_results
    states = [read_json(path) for path in paths]
    adapter = run.folder / ADAPTER_CONFIG
    if not states or not adapter.is_file():
        return []
    last = max(states, key=lambda state: state["global_step"])
    if last.get("best_global_step") not in (None, last["global_step"]):
        # the adapter may be that of the best or of the last step, and no file records which
        return []
    step = final_step(last["global_step"], run.selection)
    return evaluation_results(last["log_history"], step, read_json(adapter).get("task_type"))


def final_step(step: int, selection: Selection | None) -> int:
    """The step of the weights that a training ended with: `stop_when_target_rises` restores those of an earlier step.

    Args:
        step (`int`): the last step.
        selection (`Selection`, *optional*): what the model was trained on.
    """
    if selection is None or not selection.config.stop_when_target_rises:
        return step
    return selection.manifest.get(MANIFEST_KEY, {}).get("final_step", step)
