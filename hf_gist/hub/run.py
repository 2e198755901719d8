"""The run that a card is about, found in its output folder."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_gist.config.files import FOLDER
from hf_gist.config.gast import GASTConfig
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_metrics import evaluation_results
from hf_gist.utils.disk import read_json


README = "README.md"

GAST_MANIFEST = "gast_manifest.json"

WARMUP_ADAPTER, ADAPTER_CONFIG, TRAINER_STATE = "warmup_adapter", "adapter_config.json", "trainer_state.json"


@dataclass(frozen=True)
class Run:
    """What a model card is about.

    Args:
        folder (`Path`): where the card lies, beside the adapter.
        selection (`Selection`, *optional*): if rows were selected.
        artifacts (`Path`, *optional*): where the selection lies; the folder itself if nothing was trained on it.
        gast (`GASTConfig`, *optional*): if layers were masked.
        repo_id (`str`, *optional*): where the model is or will be.
        results (`list[EvalResult]`): what was measured.
        gast_manifest (`dict`): model, data sets and versions of a training with masked layers.
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
        """Whether a training used the selection; `hf-gist select` trains nothing on it."""
        return self.selection is None or self.artifacts != self.folder

    @property
    def manifest(self) -> dict[str, Any]:
        """Where model and data came from: of the selection, if there is one."""
        return self.gast_manifest if self.selection is None else self.selection.manifest

    @property
    def address(self) -> str:
        """Where the model is on the Hub, or a stand-in for it."""
        return self.repo_id or "user/model"


def find_run(folder: str | Path, repo_id: str | None = None) -> Run:
    """The run in the output folder of a training or of `hf-gist select`.

    Raises:
        ValueError: if there is none.
    """
    folder = Path(folder)
    artifacts = next((place for place in (folder / FOLDER, folder) if (place / MANIFEST).is_file()), None)
    gast = GASTConfig.from_pretrained(folder) if (folder / GASTConfig.FILE).is_file() else None
    if artifacts is None and gast is None:
        raise ValueError(
            f"{folder} holds no run of hf_gist: no {MANIFEST} of a selection, in it or in {FOLDER}/, and no "
            f"{GASTConfig.FILE}."
        )
    selection = Selection.load(artifacts) if artifacts is not None else None
    gast_manifest = read_json(folder / GAST_MANIFEST) if (folder / GAST_MANIFEST).is_file() else {}
    run = Run(folder, selection, artifacts, gast, repo_id, gast_manifest=gast_manifest)
    return dataclasses.replace(run, results=_results_on_disk(run))


def _results_on_disk(run: Run) -> list[EvalResult]:
    """What the trainer's saved state says was measured; a card of the trainer itself knows the data sets better."""
    readme = run.folder / README
    if readme.is_file() and ModelCard.load(readme).data.eval_results:
        return ModelCard.load(readme).data.eval_results
    states = [run.folder / TRAINER_STATE, *run.folder.glob(f"checkpoint-*/{TRAINER_STATE}")]
    states = [read_json(path) for path in states if path.is_file()]
    adapter = run.folder / ADAPTER_CONFIG
    if not states or not adapter.is_file():
        return []
    last = max(states, key=lambda state: state["global_step"])
    if last.get("best_global_step") not in (None, last["global_step"]):
        # the adapter may be that of the best step or of the last, and nothing here says which
        return []
    return evaluation_results(last["log_history"], last["global_step"], read_json(adapter).get("task_type"))
