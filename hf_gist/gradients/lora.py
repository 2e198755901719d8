"""Finds the trainable parameters that peft added to a model, with the module and block of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_gist.utils.guides import guide


OUTSIDE_BLOCKS = ""
"""Block key of trainable modules that are not inside a repeated block, such as a classification head."""


@dataclass(frozen=True, eq=False)
class TrackedModule:
    """A module whose per-sample parameter gradients can be computed with hooks.

    Args:
        name (`str`): full name of the module.
        module (`nn.Module`): the module.
        kind (`str`): `"linear"` or `"scale"` (a DoRA magnitude).
        block (`str`): name of the repeated block it is in, or `OUTSIDE_BLOCKS`.
        parameters (`dict[str, str]`): attribute of the module (`weight`, `bias`) to full parameter name.
        layer (`nn.Module`, *optional*): for an `A` matrix, its LoRA layer, if that layer, apart from dropout, only
            casts the input of this matrix.
    """

    name: str
    module: nn.Module
    kind: str
    block: str
    parameters: dict[str, str]
    layer: nn.Module | None = None

    @property
    def adapter(self) -> str:
        """Name of the adapter that a LoRA matrix belongs to."""
        return self.name.rpartition(".")[2]

    def numel(self) -> int:
        """Number of trainable values."""
        return sum(getattr(self.module, attribute).numel() for attribute in self.parameters)


def block_of(model: nn.Module, name: str) -> str:
    """The repeated block a module is in: its name up to the index in the outermost `nn.ModuleList`."""
    parts = name.split(".")
    parent = model
    for depth, part in enumerate(parts):
        if isinstance(parent, nn.ModuleList):
            return ".".join(parts[: depth + 1])
        parent = getattr(parent, part)
    return OUTSIDE_BLOCKS


def _kind_of(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return "linear"
    # subclasses, for embeddings and convolutions, scale other outputs
    if type(module) is DoraLinearLayer:
        return "scale"
    return None


def _layer_of(model: nn.Module, name: str) -> nn.Module | None:
    """The LoRA layer of the `A` or `B` matrix with this name."""
    owner, found, _ = re.sub(r"\.lora_[AB]\.", "\n", name).rpartition("\n")
    return model.get_submodule(owner) if found else None


def _casting_layer(model: nn.Module, name: str) -> nn.Module | None:
    """See `TrackedModule.layer`; `None` for variants like DoRA, or if several adapters use the input."""
    adapter = name.rpartition(".")[2]
    layer = _layer_of(model, name) if ".lora_A." in name else None
    if not isinstance(layer, LoraLayer) or layer.active_adapters != [adapter] or adapter in layer.lora_variant:
        return None
    return layer


def _inactive_adapters(model: nn.Module) -> Iterator[str]:
    """Names of the modules and parameters of adapters that are loaded but not active."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            for layer_name in module.adapter_layer_names:
                for adapter in getattr(module, layer_name, {}):
                    if adapter not in module.active_adapters:
                        yield f"{name}.{layer_name}.{adapter}"


def _check_active(model: nn.Module) -> None:
    """Check that the forward pass uses the adapter, so that gradients reach it.

    Raises:
        ValueError: if the adapter is merged or disabled, naming the method to call.
    """
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if module.merged:
            raise ValueError(
                f"The adapter is merged into {name}, so it has no gradient; call `model.unmerge_adapter()` first."
            )
        if module.disable_adapters:
            raise ValueError(
                f"The adapter is disabled on {name}, so it has no gradient; call `model.enable_adapter_layers()` first."
            )


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


# ---- Refusals ----


EXACT_VARIANTS = ("DoraLinearVariant", "MiCALinearVariant")
"""Classes of peft's LoRA variants that call their matrices on the samples, as plain LoRA does."""

VARIANT_SETTINGS = {
    "ALoraLinearVariant": "aLoRA (`alora_invocation_tokens`)",
    "ArrowLinearVariant": "Arrow (`arrow_config`)",
    "BdLoraLinearVariant": "BD-LoRA (`use_bdlora`)",
    "KasaLinearVariant": "KaSA (`kasa_config`)",
    "MontecloraLinearVariant": "MonteCLoRA (`monteclora_config`)",
    "QALoraLinearVariant": "QA-LoRA (`use_qalora`)",
    "VeloraLinearVariant": "VeLoRA (`velora_config`)",
}
"""Classes of the other variants to their names and settings of `LoraConfig`."""

BASE_LAYERS = {
    (nn.Embedding,): "embedding",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): "convolution",
    (nn.MultiheadAttention,): "attention",
}
"""Base layers on which LoRA has no per-sample gradients, to the key of their sentence in `REFUSALS`."""

REFUSALS = {
    "parameter": "LoRA on parameters of experts or routers ({found}) has no per-sample gradients, because its matrices "
    "are multiplied with the parameter instead of being called; set {attention}.",
    "expert": "LoRA on experts ({found}) has no per-sample gradients, because an expert gets some tokens of every "
    "sample; set {attention}.",
    "embedding": "LoRA on embeddings ({found}) has no per-sample gradients, because it looks its matrices up instead of "
    "calling them; leave {last} out of `target_modules`.",
    "convolution": "LoRA on convolutions ({found}) has no per-sample gradients here; leave {last} out of "
    "`target_modules`.",
    "attention": "LoRA on `nn.MultiheadAttention` ({found}) has no per-sample gradients, because its matrices are added "
    "to the weights instead of being called; leave {last} out of `target_modules`.",
    "token": "Single trained tokens ({found}) have no per-sample gradients here; leave `trainable_token_indices` out of "
    "the `LoraConfig`.",
    "saved": "Only the linear layers of `modules_to_save` have per-sample gradients here; leave {last} out of it "
    "({found}).",
    "variant": "The adapter is {variant} (on {found}), a variant of LoRA without exact per-sample gradients; leave "
    "the setting out of the `LoraConfig`.",
    "other": "These parameters are trained and are no LoRA on linear layers, so they have no per-sample gradients: "
    "{found}; freeze them (`requires_grad_(False)`, and `bias='none'` in the `LoraConfig`).",
}
"""From what is trained to the sentence with the reason and the way out, in the order in which they are checked."""


def _check_method(model: nn.Module) -> None:
    """Check that the active adapters of a peft model are LoRA.

    Raises:
        ValueError: naming the other method.
    """
    configs = getattr(model, "peft_config", None)
    # older versions of peft leave the configuration on a model whose adapter was unloaded
    adapted = isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules())
    if not isinstance(configs, dict) or not adapted:
        return
    active: Any = getattr(model, "active_adapters", list(configs))
    for adapter in active() if callable(active) else active:
        config = configs[adapter]
        if config.peft_type != PeftType.LORA:
            raise ValueError(
                f"The adapter {adapter!r} is {PeftType(config.peft_type).value} (`{type(config).__name__}`), and "
                "per-sample gradients are computed for LoRA adapters only. Wrap the base model with "
                "`peft.get_peft_model(model, LoraConfig(...))` instead."
            )


def _check_has_lora(model: nn.Module, trained: list[str]) -> None:
    """Check that a LoRA parameter is among the trained parameters.

    Raises:
        ValueError: distinguishing full fine-tuning from an adapter that is frozen.
    """
    if any(".lora_" in name for name in trained):
        return
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError(
            "The model has no trainable LoRA parameter: its adapter is frozen. Load it with `is_trainable=True`, as in "
            "`PeftModel.from_pretrained(model, folder, is_trainable=True)`."
        )
    raise ValueError(
        f"{type(model).__name__} has no trainable LoRA parameter: per-sample gradients are computed for LoRA only, not "
        "for full fine-tuning. Wrap the model with `peft.get_peft_model(model, LoraConfig(task_type=...))`, or pass "
        "`peft_config=LoraConfig(...)` to TRL's trainer."
    )


def _attention_linears(model: nn.Module) -> list[str]:
    """Names for `target_modules`: the linear layers of the attention, in the order of the model."""
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        *path, last = name.removesuffix(".base_layer").split(".")
        in_attention = any("attn" in part.lower() or "attention" in part.lower() for part in path)
        if in_attention and isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            names[last] = None
    return list(names)


def _is_in_experts(model: nn.Module, name: str) -> bool:
    """Whether a module is in a list of experts that are modules of their own."""
    return any(
        "expert" in path.rpartition(".")[2] and isinstance(model.get_submodule(path), nn.ModuleList)
        for path in _prefixes(name)
    )


def _obstacle(model: nn.Module, owner: str) -> str | None:
    """Why a module with a trainable parameter has no per-sample gradients: a key of `REFUSALS`; `None` if it has."""
    name = owner.partition(".lora_")[0]
    layer = model.get_submodule(name)
    if isinstance(layer, ParamWrapper):
        return "parameter"
    if isinstance(layer, LoraLayer):
        for kinds, key in BASE_LAYERS.items():
            if isinstance(layer.get_base_layer(), kinds):
                return key
        if _inexact_variant(layer):
            return "variant"
    if any(isinstance(model.get_submodule(path), nn.MultiheadAttention) for path in _prefixes(name)):
        return "attention"
    if _is_in_experts(model, name):
        return "expert"
    if "trainable_tokens" in owner:
        return "token"
    if _kind_of(model.get_submodule(owner)) is None:
        return "saved" if ".modules_to_save." in owner else "other"
    return None


def _inexact_variant(layer: Any) -> str | None:
    """The class of the variant of an active adapter, if its gradients are not exact."""
    variants = (type(layer.lora_variant[a]).__name__ for a in layer.active_adapters if a in layer.lora_variant)
    return next((name for name in variants if name not in EXACT_VARIANTS), None)


def _refusal(model: nn.Module, key: str, refused: list[str]) -> str:
    """The sentence about the trainable parameters `refused`."""
    parts = r"\.lora_|\.modules_to_save\.|\.token_adapter|\.base_layer\b"
    names = list(dict.fromkeys(re.split(parts, name)[0] for name in refused))
    shown = names
    if key == "other":
        shown = [f"{name} (in {type(model.get_submodule(name.rpartition('.')[0])).__name__})" for name in refused]
    linears = _attention_linears(model)
    attention = f"`target_modules={linears}` without `target_parameters`" if linears else "other `target_modules`"
    variant = str(_inexact_variant(model.get_submodule(names[0]))) if key == "variant" else ""
    return REFUSALS[key].format(
        found=", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else ""),
        last=", ".join(dict.fromkeys(f"'{name.rpartition('.')[2]}'" for name in names)),
        attention=attention,
        variant=VARIANT_SETTINGS.get(variant, variant),
    )


def _check_supported(model: nn.Module, trained: list[str]) -> None:
    """Check that all trainable parameters have per-sample gradients.

    Args:
        model (`nn.Module`): a peft model.
        trained (`list[str]`): names of its trainable parameters.

    Raises:
        ValueError: with one sentence for each kind of those that have none.
    """
    refused: dict[str, list[str]] = {}
    for name in trained:
        key = _obstacle(model, name.rpartition(".")[0])
        if key is not None:
            refused.setdefault(key, []).append(name)
    if refused:
        sentences = [_refusal(model, key, refused[key]) for key in REFUSALS if key in refused]
        raise ValueError(" ".join([*sentences, f"See {guide('frameworks', 'models-and-adapters')}."]))


def find_tracked(model: nn.Module) -> list[TrackedModule]:
    """The modules of all trainable parameters of the active adapter.

    Args:
        model (`nn.Module`): a peft model with LoRA layers.

    Returns:
        `list[TrackedModule]`: in the order of the model.

    Raises:
        ValueError: for an adapter of another method than LoRA, if no LoRA parameter is trainable, if the adapter is
            merged or disabled, or if a trainable parameter belongs to a module whose per-sample gradients are not
            supported, naming each with the way out.
    """
    _check_method(model)
    _check_active(model)
    inactive = set(_inactive_adapters(model))
    trained = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not inactive.intersection(_prefixes(name))
    ]
    _check_has_lora(model, trained)
    _check_supported(model, trained)
    owners: dict[str, dict[str, str]] = {}
    for name in trained:
        owner, _, attribute = name.rpartition(".")
        owners.setdefault(owner, {})[attribute] = name
    return [
        TrackedModule(
            name,
            model.get_submodule(name),
            str(_kind_of(model.get_submodule(name))),
            block_of(model, name),
            attributes,
            _casting_layer(model, name),
        )
        for name, attributes in owners.items()
    ]


def in_last_blocks(tracked: list[TrackedModule], blocks: int) -> list[TrackedModule]:
    """The modules in the last `blocks` adapted blocks and outside of blocks, in the order of the model.

    Raises:
        ValueError: if fewer blocks are adapted.
    """
    names = list(dict.fromkeys(module.block for module in tracked if module.block != OUTSIDE_BLOCKS))
    if blocks > len(names):
        raise ValueError(f"`score_layers={blocks}`: the adapter is on {len(names)} blocks only; lower it.")
    kept = {*names[-blocks:], OUTSIDE_BLOCKS}
    return [module for module in tracked if module.block in kept]
