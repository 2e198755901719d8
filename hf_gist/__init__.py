"""Gradient-aligned data selection (GIST) and per-layer sample masking (GAST) for LoRA fine-tuning."""

from hf_gist.artifacts import Selection
from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.collect import per_sample_gradients_reference
from hf_gist.config import GISTConfig
from hf_gist.pipeline import select
from hf_gist.version import __version__


__all__ = [
    "GISTConfig",
    "GISTDataSelectorCallback",
    "Selection",
    "__version__",
    "per_sample_gradients_reference",
    "select",
]
