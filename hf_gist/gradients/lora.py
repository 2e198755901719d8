"""Finds the trainable parameters that peft added to a model, with the module and block of each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


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


def _kind_of(module: nn.Module, owner: nn.Module | None = None) -> str | None:
    if isinstance(owner, ParamWrapper):
        # it uses the weights of its linear modules without calling them, so hooks do not run
        return None
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


def _check_supported(owners: dict[str, dict[str, str]], refused: list[str]) -> None:
    """Check that there is a trainable LoRA parameter, and that all trainable parameters are supported.

    Args:
        owners (`dict`): name of each supported module to its trainable parameters.
        refused (`list[str]`): the other trainable parameters.
    """
    if not any(".lora_" in name for name in (*owners, *refused)):
        raise ValueError(
            "The model has no trainable LoRA parameter. Wrap it with `peft.get_peft_model(model, LoraConfig(...))`, or "
            "load the adapter with `is_trainable=True`."
        )
    if refused:
        raise ValueError(
            "Per-sample gradients are supported for LoRA, rsLoRA and DoRA on linear layers and for linear layers in "
            f"`modules_to_save`. These trainable parameters are neither: {', '.join(refused[:8])}"
            f"{' and more' if len(refused) > 8 else ''}. Freeze them (`requires_grad_(False)`) or leave them out of "
            "the adapter's `target_modules`, `modules_to_save` and `trainable_token_indices`."
        )


def find_tracked(model: nn.Module) -> list[TrackedModule]:
    """The modules of all trainable parameters of the active adapter.

    Args:
        model (`nn.Module`): a peft model with LoRA layers.

    Returns:
        `list[TrackedModule]`: in the order of the model.

    Raises:
        ValueError: if no LoRA parameter is trainable, if the adapter is merged or disabled, or if a trainable
            parameter belongs to a module whose per-sample gradients are not supported, naming each.
    """
    _check_active(model)
    inactive = set(_inactive_adapters(model))
    owners: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    refused = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or inactive.intersection(_prefixes(name)):
            continue
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        kind = _kind_of(module, _layer_of(model, owner))
        if kind is None:
            refused.append(f"{name} (in {type(module).__name__})")
        else:
            owners.setdefault(owner, {})[attribute] = name
            kinds[owner] = kind
    _check_supported(owners, refused)
    return [
        TrackedModule(
            name,
            model.get_submodule(name),
            kinds[name],
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
