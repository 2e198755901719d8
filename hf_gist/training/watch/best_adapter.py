"""The adapter with the lowest target loss, in host memory and on disk, for `stop_when_target_rises`."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from hf_gist.config.gist import GISTConfig
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.utils.disk import read, write


BEST_ADAPTER_FILE = "best_adapter.safetensors"

STEP = "step"
"""Key of the step in the metadata of the file."""


class BestAdapter:
    """Values of an adapter.

    Args:
        step (`int`): the optimizer step after which the adapter had them.
        values (`dict[str, Tensor]`): parameter name to value, on the CPU.
    """

    def __init__(self, step: int, values: dict[str, Tensor]) -> None:
        self.step = step
        self.values = values

    @classmethod
    def of(cls, model: nn.Module, step: int) -> "BestAdapter":
        """Copy the adapter; a collective call if it is sharded."""
        values = {name: whole(parameter).cpu().clone() for name, parameter in adapter_parameters(model).items()}
        return cls(step, values)

    def restore(self, model: nn.Module) -> None:
        """Set the adapter of the model to these values; a collective call if it is sharded."""
        for name, parameter in adapter_parameters(model).items():
            assign(parameter, self.values[name])

    def save(self, folder: Path) -> None:
        """Write the values, atomically."""
        write(
            folder / BEST_ADAPTER_FILE,
            lambda name: save_file(self.values, name, metadata={STEP: str(self.step)}),
        )

    @classmethod
    def load(cls, folder: Path) -> "BestAdapter":
        """Read the values.

        Raises:
            ValueError: if the file is missing or damaged.
        """
        return read(folder / BEST_ADAPTER_FILE, cls._read)

    @classmethod
    def _read(cls, name: str) -> "BestAdapter":
        with safe_open(name, framework="pt") as file:
            return cls(int(file.metadata()[STEP]), {key: file.get_tensor(key) for key in file.keys()})


def check_stopping(args: TrainingArguments, config: GISTConfig) -> None:
    """Check that only one of two settings chooses the adapter that the run ends with.

    Raises:
        ValueError: for `stop_when_target_rises` together with `load_best_model_at_end`.
    """
    if config.stop_when_target_rises and args.load_best_model_at_end:
        raise ValueError(
            "`stop_when_target_rises=True` and `load_best_model_at_end=True` would each choose the final adapter: the one "
            "by the target loss, the other by an evaluation. Set one of them to False."
        )
