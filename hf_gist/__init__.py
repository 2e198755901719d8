"""Gradient-aligned data selection (GIST) and per-layer sample masking (GAST) for LoRA fine-tuning."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hf_gist.version import __version__


if TYPE_CHECKING:
    from hf_gist.callback import GISTDataSelectorCallback
    from hf_gist.config import GASTConfig, GISTConfig
    from hf_gist.gist.selection import Selection
    from hf_gist.gist.stream import StreamSelection, select_stream
    from hf_gist.gradients.reference import per_sample_gradients_reference
    from hf_gist.hub.dataset_card import export_dataset
    from hf_gist.hub.push import push_to_hub
    from hf_gist.offline import select
    from hf_gist.trainer import GASTMixin, GASTTrainer
    from hf_gist.training.gast.saved import save_support_gradient

__all__ = [
    "GASTConfig",
    "GASTMixin",
    "GASTTrainer",
    "GISTConfig",
    "GISTDataSelectorCallback",
    "Selection",
    "StreamSelection",
    "__version__",
    "export_dataset",
    "per_sample_gradients_reference",
    "push_to_hub",
    "save_support_gradient",
    "select",
    "select_stream",
]
if find_spec("trl") is not None:
    __all__ += ["GASTSFTTrainer"]

# Lazy imports: importing only a configuration must not load transformers, peft and datasets, which takes seconds.
_MODULES = {
    "GASTConfig": "hf_gist.config",
    "GASTMixin": "hf_gist.trainer",
    "GASTSFTTrainer": "hf_gist.trainer",
    "GASTTrainer": "hf_gist.trainer",
    "GISTConfig": "hf_gist.config",
    "GISTDataSelectorCallback": "hf_gist.callback",
    "Selection": "hf_gist.gist.selection",
    "StreamSelection": "hf_gist.gist.stream",
    "export_dataset": "hf_gist.hub.dataset_card",
    "per_sample_gradients_reference": "hf_gist.gradients.reference",
    "push_to_hub": "hf_gist.hub.push",
    "save_support_gradient": "hf_gist.training.gast.saved",
    "select": "hf_gist.offline",
    "select_stream": "hf_gist.gist.stream",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
