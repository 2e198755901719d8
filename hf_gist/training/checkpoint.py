"""Files needed to resume a run: the initial adapter, and the selection of each checkpoint."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_gist.config.files import FOLDER
from hf_gist.config.gist import GISTConfig
from hf_gist.costs.ledger import COSTS
from hf_gist.gist.artifacts import ARTIFACTS, MANIFEST, withhold_target_columns
from hf_gist.gist.history import HISTORY
from hf_gist.gist.selection import Selection
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.utils.disk import read, read_json, write, write_json


SELECTED_FILE = "selected.json"
INITIAL_ADAPTER_FILE = "initial_adapter.safetensors"

OF_SELECTION = (*ARTIFACTS, COSTS, HISTORY, MANIFEST)
"""Files of a selection that a later one replaces; the manifest is the last to be written."""


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """The artifact folder in the checkpoint of an optimizer step."""
    return output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}" / FOLDER


class InitialAdapter:
    """The adapter values before the first step, for `after_selection="restart"`.

    Args:
        values (`dict[str, Tensor]`): parameter name to value, on the CPU.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    @classmethod
    def of(cls, model: nn.Module, output_dir: Path, state: TrainerState) -> "InitialAdapter":
        """Copy the adapter before the first step, and save it to disk; a resumed run reads it from there.

        Raises:
            ValueError: if the file is missing when resuming.
        """
        path = output_dir / FOLDER / INITIAL_ADAPTER_FILE
        if state.global_step > 0:
            return cls(read(path, load_file, "before the first step of a run with `after_selection='restart'`"))
        values = {name: whole(parameter).cpu().clone() for name, parameter in adapter_parameters(model).items()}
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, lambda name: save_file(values, name))
        return cls(values)

    def restore(self, model: nn.Module) -> None:
        """Set the adapter of the model to these values."""
        for name, parameter in adapter_parameters(model).items():
            assign(parameter, self.values[name])


# ---- The selection of a checkpoint ----


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, atomically; copies it where the file system has no hard links.

    Artifacts are replaced and never changed in place, so what is linked stays as it is.
    """

    def link(name: str) -> None:
        try:
            os.link(source, name)
        except OSError:
            shutil.copyfile(source, name)

    write(target, link)


def _link_all(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        if (source / name).exists():
            _link(source / name, target / name)


def save_selected(folder: Path, selection: Selection, artifacts: Path, uploaded: bool) -> None:
    """Write the selected rows into a checkpoint, and with `reselect_every` all files of the selection.

    A later selection replaces the files in the output folder, and a run that is resumed before it needs those of the
    selection at the checkpoint. They take no space while both exist, and go with the checkpoint.

    Args:
        folder (`Path`): artifact folder of the checkpoint.
        selection (`Selection`): the latest selection.
        artifacts (`Path`): artifact folder of the run, with the files of this selection.
        uploaded (`bool`): leave out text of the data, because the Trainer may upload the checkpoint.
    """
    if selection.config.reselect_every is not None:
        _link_all(artifacts, folder, OF_SELECTION)
        if uploaded:
            withhold_target_columns(folder)
    # the last file: without it, those before it may be incomplete
    write_json(folder / SELECTED_FILE, {"indices": selection.indices})


def restore_selected(folder: Path, artifacts: Path) -> None:
    """Make the selection of a checkpoint that of the run again, after later selections of an interrupted run."""
    if folder != artifacts:
        _link_all(folder, artifacts, OF_SELECTION)


def selection_folder(output_dir: Path, step: int, config: GISTConfig) -> Path:
    """The folder with the selection that a run was trained on at a checkpoint.

    Args:
        output_dir (`Path`): the trainer's output folder.
        step (`int`): optimizer step of the checkpoint.
        config (`GISTConfig`): the callback's configuration.
    """
    folder = checkpoint_folder(output_dir, step)
    # Trainer writes a checkpoint before its callbacks add to it: a run killed in between has made no later selection
    found = all((folder / name).exists() for name in (MANIFEST, SELECTED_FILE))
    return folder if config.reselect_every is not None and found else output_dir / FOLDER


def load_selection(output_dir: Path, step: int, config: GISTConfig, pool: Any) -> Selection:
    """Load the selection of an interrupted run, and check that it matches the checkpoint.

    Args:
        output_dir (`Path`): the trainer's output folder.
        step (`int`): optimizer step of the checkpoint.
        config (`GISTConfig`): the callback's configuration.
        pool: the train dataset.

    Raises:
        ValueError: if the output folder is another one, or the selection was made with another configuration or from
            another train dataset.
    """
    folder = checkpoint_folder(output_dir, step)
    artifacts = selection_folder(output_dir, step, config)
    if not (artifacts / MANIFEST).exists():
        raise ValueError(
            f"`resume_from_checkpoint` names a checkpoint of step {step}, after the selection, and `output_dir={output_dir}` "
            f"has no selection (`{artifacts / MANIFEST}`). A run is resumed in its own `output_dir`: give the "
            "one of the interrupted run, or copy it as a whole."
        )
    selection = Selection.load(artifacts)
    indices = selection.indices
    if (folder / SELECTED_FILE).exists():
        indices = read_json(folder / SELECTED_FILE)["indices"]
    if selection.config != config:
        raise ValueError(
            f"The selection in {folder} was made with another GISTConfig ({selection.config}). Resume with that one "
            "or start a new run in another output folder."
        )
    if indices != selection.indices or len(selection.scores) != len(pool):
        raise ValueError(
            f"The selection in {folder} is not the one in {artifacts}, or was made from another train dataset. Resume "
            "with the output folder and dataset of the interrupted run."
        )
    return selection
