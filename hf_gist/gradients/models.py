"""Helpers for models: unwrapping, device, dtype, adapter parameters and digests."""

import hashlib
import inspect
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_gist.data.provenance import public_name


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model, with the LoRA layers in place; other models are returned as is.

    Calling it directly bypasses the wrappers that a trainer added to the outer model, for example autocast.
    """
    return model.get_base_model() if isinstance(model, PeftModel) else model


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are sharded over processes (FSDP2), so every forward and backward pass is collective."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(parameter: Tensor) -> Tensor:
    """The values of a parameter, gathered from all processes if it is sharded; a collective call."""
    values = parameter.detach()
    return values.full_tensor() if isinstance(values, DTensor) else values


@torch.no_grad()
def assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Set a parameter, or this process's shard of it, to whole values."""
    values = values.to(parameter.device)
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name; `after_selection="restart"` resets these."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def model_identity(model: nn.Module) -> dict[str, str | None]:
    """The base model's id (for a local folder, the folder name only), revision and class, for a manifest."""
    base = unwrapped(model)
    config = getattr(base, "config", None)
    return {
        "name_or_path": public_name(getattr(config, "_name_or_path", None)),
        "revision": getattr(config, "_commit_hash", None),
        "class": type(base).__name__,
    }


def weights_digest(model: nn.Module, trainable: bool) -> str:
    """Digest of the adapter (every trainable value), or of the base model (a sample of every other tensor)."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad != trainable:
            continue
        values = whole(parameter).flatten()
        if not trainable:
            values = values[:: max(1, values.numel() // 64)]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values on `device`; a copy to a GPU is queued from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch as a plain dict with its tensors on `device`."""
    move = partial(send, device=device)
    sent: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            sent[name] = move(value)
        else:
            # what a loss derives from a batch on the host
            sent[name] = value.moved(move) if hasattr(value, "moved") else value
    return sent


def device_problem(model: nn.Module) -> str | None:
    """Why gradients cannot be compared on the devices of a model, and what to change; `None` if they can."""
    devices = sorted({str(parameter.device) for parameter in model.parameters()} - {"meta"})
    if len(devices) > 1:
        return (
            f"the model is spread over {', '.join(devices)} (`device_map`): load it on one device for each process "
            "(`device_map={'': local_rank}`), or use FSDP2"
        )
    if devices and devices[0].startswith("mps"):
        return "Apple's GPU (mps) has no 64-bit numbers: set `use_cpu=True` in the training arguments, or move the model to the CPU"
    return None


def check_device(model: nn.Module) -> None:
    """Check that the model is on one device, which has the numbers that scores are computed with.

    Raises:
        ValueError: naming the devices and what to change.
    """
    problem = device_problem(model)
    if problem is not None:
        raise ValueError(f"The rows cannot be scored: {problem}.")


def check_dtype(model: nn.Module, scoring_dtype: str) -> None:
    """Check that the weights have the configured dtype.

    Raises:
        ValueError: for `scoring_dtype="float32"` on weights of another floating dtype.
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    # a quantised layer computes in a dtype of its own
    computed = {getattr(module, "compute_dtype", None) for module in model.modules()} - {None}
    if scoring_dtype == "float32" and computed - {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in computed))
        raise ValueError(
            f"`scoring_dtype='float32'`, but the quantised layers compute in {names}. Load the model with "
            "`bnb_4bit_compute_dtype=torch.float32`, or set `scoring_dtype='auto'`."
        )
    if scoring_dtype == "float32" and dtypes != {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(
            f"`scoring_dtype='float32'`, but the model's weights are {names}. Load it with `dtype=torch.float32`, or "
            "set `scoring_dtype='auto'`."
        )


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def signature_columns(model: nn.Module) -> list[str]:
    """The columns that `Trainer` would pass to the collator: the arguments of the model's forward and the labels."""
    return [*inspect.signature(unwrapped(model).forward).parameters, "label", "label_ids", "labels"]


def reshard(model: nn.Module) -> None:
    """Free the whole weights that a forward pass without a backward pass leaves on every process of an FSDP2 model.

    A backward pass in eval mode that comes later could not free them ("Trying to resize storage that is not resizable").
    """
    if not is_sharded(model):
        return
    for module in model.modules():
        # `FSDPModule`, which is at another place in torch 2.5
        free = getattr(module, "reshard", None)
        if callable(free):
            free()
