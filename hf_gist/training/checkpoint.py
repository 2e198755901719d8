"""Files needed to resume a run: the initial adapter, and the selection of each checkpoint."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_gist.config.files import FOLDER
from hf_gist.config.gist import GISTConfig
from hf_gist.gist.selection import Selection
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.utils.disk import read, read_json, write, write_json


SELECTED_FILE = "selected.json"
INITIAL_ADAPTER_FILE = "initial_adapter.safetensors"


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
            return cls(read(path, load_file))
        values = {name: whole(parameter).cpu().clone() for name, parameter in adapter_parameters(model).items()}
        if state.is_world_process_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, lambda name: save_file(values, name))
        return cls(values)

    def restore(self, model: nn.Module) -> None:
        """Set the adapter of the model to these values."""
        for name, parameter in adapter_parameters(model).items():
            assign(parameter, self.values[name])


def save_selected(folder: Path, selection: Selection) -> None:
    """Write the selected rows into a checkpoint."""
    write_json(folder / SELECTED_FILE, {"indices": selection.indices})


def load_selection(output_dir: Path, step: int, config: GISTConfig, pool: Any) -> Selection:
    """Load the selection of an interrupted run, and check that it matches the checkpoint.

    Args:
        output_dir (`Path`): the trainer's output folder.
        step (`int`): optimizer step of the checkpoint.
        config (`GISTConfig`): the callback's configuration.
        pool: the train dataset.

    Raises:
        ValueError: if it was made with another configuration or from another train dataset.
    """
    artifacts = output_dir / FOLDER
    folder = checkpoint_folder(output_dir, step)
    selection = Selection.load(artifacts)
    indices = selection.indices
    # Trainer writes a checkpoint before its callbacks add to it; this file is missing if the run was killed in between
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
