"""The manifest of a run: versions, model and datasets."""

import platform
from importlib.metadata import version
from typing import Any

from accelerate import PartialState
from torch import nn

from hf_gist.config.gist import GISTConfig
from hf_gist.data.provenance import describe_dataset
from hf_gist.gradients.models import model_identity
from hf_gist.version import __version__


def package_versions() -> dict[str, str]:
    """Versions of the packages that a run depends on."""
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def training_manifest(model: nn.Module, **datasets: Any) -> dict[str, Any]:
    """Manifest of a training run without a selection: versions, model, and datasets by role."""
    sized = {role: dataset for role, dataset in datasets.items() if hasattr(dataset, "__len__")}
    return {"hf_gist": __version__, "versions": package_versions(), "model": model_identity(model)} | {
        role: describe_dataset(dataset) for role, dataset in sized.items()
    }


def run_manifest(model: nn.Module, pool: Any, targets: Any, config: GISTConfig) -> dict[str, Any]:
    """Everything needed to reproduce a selection."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "hf_gist": __version__,
        "versions": package_versions(),
        "model": model_identity(model) | {"trainable_parameters": trainable},
        "train_dataset": describe_dataset(pool),
        "target_dataset": describe_dataset(targets),
        "seed": config.seed,
        "processes": PartialState().num_processes,
    }
