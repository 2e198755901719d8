"""Gradient-aligned data selection (GIST) and per-layer sample masking (GAST) for LoRA fine-tuning."""

from importlib.util import find_spec

from hf_gist.artifacts import Selection
from hf_gist.backward import per_sample_gradients_reference
from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.config import GASTConfig, GISTConfig
from hf_gist.pipeline import select
from hf_gist.publish import push_to_hub
from hf_gist.stream import StreamSelection, select_stream
from hf_gist.trainer import GASTMixin, GASTTrainer
from hf_gist.version import __version__


__all__ = [
    "GASTConfig",
    "GASTMixin",
    "GASTTrainer",
    "GISTConfig",
    "GISTDataSelectorCallback",
    "Selection",
    "StreamSelection",
    "__version__",
    "per_sample_gradients_reference",
    "push_to_hub",
    "select",
    "select_stream",
]
if find_spec("trl") is not None:
    __all__ += ["GASTSFTTrainer"]


def __getattr__(name: str) -> type:
    # TRL takes seconds to import, and is optional.
    if name == "GASTSFTTrainer" and name in __all__:
        from hf_gist import trainer

        return trainer.GASTSFTTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
