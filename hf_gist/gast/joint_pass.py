"""The support rows in the training batch, so that they need no forward and backward pass of their own.

A causal language model is a backbone (embeddings and blocks) and a head. The support rows are appended to the inputs
of the backbone and cut off from its output, so that the head, the loss and the metrics see the samples only. With the
hidden states of the support rows, the gradient of the mean of their own mean losses is computed at once, at labelled
positions only, and in the backward pass it enters the backbone together with the gradient of the samples.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.functional.token_losses import token_losses
from hf_gist.gradients.models import unwrapped


ROW_INPUTS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""Inputs `[B, T]` that may be padded with zeros on the right: the attention mask hides the padding."""


@dataclass(frozen=True)
class AppendedRows:
    """The `K` support rows that are appended to a batch of `B` samples with `T` tokens; `T'` is the larger width.

    Args:
        inputs (`dict[str, Tensor]`): `[K, T']` each.
        positions (`Tensor`): `[n]`, the positions with a labelled next token in the flattened rows `[K T']`.
        targets (`Tensor`): `[n]` token ids.
        weights (`Tensor`): `[n]` fp32, the weight of each token in the mean over rows of their mean losses.
        samples (`int`): `B`.
        tokens (`int`): `T`.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    targets: Tensor
    weights: Tensor
    samples: int
    tokens: int

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def shape(self) -> tuple[int, int]:
        """`(B + K, T')`."""
        return self.samples + len(self), self.inputs["input_ids"].shape[1]

    def join(self, name: str, values: Tensor) -> Tensor:
        """The samples' input `[B, T]` with the rows appended, `[B + K, T']`."""
        return torch.cat([_padded(values, self.shape[1]), self.inputs[name].to(values.dtype)])


def _padded(values: Tensor, width: int, fill: int = 0) -> Tensor:
    return nn.functional.pad(values, (0, width - values.shape[1]), value=fill)


def appended_rows(support: dict[str, Tensor], samples: Tensor) -> AppendedRows:
    """The rows of a support batch that is still on the CPU, so that finding the labels does not wait for the device.

    Args:
        support (`dict[str, Tensor]`): the inputs and the labels, `[K, S]` each.
        samples (`Tensor`): `input_ids` `[B, T]` of the training batch, on the device.
    """
    width = max(samples.shape[1], support["input_ids"].shape[1])
    # position t predicts token t + 1
    labels = _padded(support["labels"][:, 1:], width, IGNORE_INDEX).cpu().numpy()
    row, position = np.nonzero(labels != IGNORE_INDEX)
    counts = np.bincount(row, minlength=len(labels))
    with_loss = max(1, int(np.count_nonzero(counts)))
    weights = 1 / (counts * with_loss)[row]

    def move(values: Tensor) -> Tensor:
        # only a copy from pinned memory does not wait for the device
        pinned = values.pin_memory() if samples.is_cuda and not values.is_cuda else values
        return pinned.to(samples.device, non_blocking=True)

    return AppendedRows(
        inputs={name: move(_padded(support[name], width)) for name in ROW_INPUTS if name in support},
        positions=move(torch.from_numpy(row * width + position)),
        targets=move(torch.from_numpy(labels[row, position])),
        weights=move(torch.from_numpy(weights).float()),
        samples=len(samples),
        tokens=samples.shape[1],
    )


class _Part(torch.autograd.Function):
    """The samples' hidden states `[B, T, d]` of all rows' `[B + K, T', d]`; the gradient of the appended rows joins theirs."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gradient: Tensor, appended: AppendedRows) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.appended = appended
        ctx.shape = hidden.shape
        return hidden[: appended.samples, : appended.tokens]

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        appended = ctx.appended
        joined = d.new_zeros(ctx.shape)
        joined[: appended.samples, : appended.tokens] = d
        joined[appended.samples :].flatten(0, 1).index_copy_(0, appended.positions, gradient.to(d.dtype))
        return joined, None, None


class _JointPass:
    """The hooks of one training step."""

    def __init__(self, appended: AppendedRows, head: nn.Module, scale: Callable[[Tensor], Tensor]) -> None:
        self.appended = appended
        self.head = head
        self.scale = scale
        self.dropped: dict[nn.Module, Tensor] = {}

    def append(self, backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """A forward pre-hook of the backbone: append the rows to its inputs."""
        if not torch.is_grad_enabled():
            return None
        inputs = {**dict(zip(inspect.signature(backbone.forward).parameters, args, strict=False)), **kwargs}
        rows = [name for name in self.appended.inputs if isinstance(inputs.get(name), Tensor)]
        inputs.update({name: self.appended.join(name, inputs[name]) for name in rows})
        return (), inputs

    def split(self, backbone: nn.Module, args: tuple, output: Any) -> Any:
        """A forward hook of the backbone: cut off the rows from its output."""
        if not torch.is_grad_enabled():
            return None
        hidden = output["last_hidden_state"]
        gradient = self.hidden_gradient(hidden.detach()[self.appended.samples :])
        output["last_hidden_state"] = _Part.apply(hidden, gradient, self.appended)
        return output

    def hidden_gradient(self, hidden: Tensor) -> Tensor:
        """The gradient of the mean of the rows' mean losses at the labelled positions `[n, d]`.

        Args:
            hidden (`Tensor`): `[K, T', d]`, the rows' last hidden states.
        """
        chosen = hidden.flatten(0, 1).index_select(0, self.appended.positions).requires_grad_()
        losses = token_losses(self.head(chosen), self.appended.targets)
        # not a matrix product, which autocast would round to 16 bits before the loss is scaled
        loss = self.scale((losses * self.appended.weights).sum())
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.autograd.grad(loss, chosen)[0]

    def before_dropout(self, dropout: nn.Module, args: tuple) -> tuple | None:
        """A forward pre-hook: only the samples drop out, with the random numbers of a batch without appended rows."""
        appended = self.appended
        if not dropout.training or args[0].shape[:2] != appended.shape:
            return None
        first, self.dropped[dropout] = args[0].split([appended.samples, len(appended)])
        return (first[:, : appended.tokens] if first.shape[1] > appended.tokens else first,)

    def after_dropout(self, dropout: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """A forward hook: append the rows again, as they are."""
        rest = self.dropped.pop(dropout, None)
        if rest is None:
            return None
        padding = self.appended.shape[1] - self.appended.tokens
        padded = nn.functional.pad(output, (0, 0, 0, padding)) if padding else output
        return torch.cat([padded, rest])


def lora_dropouts(model: nn.Module) -> list[nn.Module]:
    """The dropout modules of all LoRA layers that may drop anything."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [module for layer in layers for module in layer.lora_dropout.values() if getattr(module, "p", 0.0) > 0]


def backbone_of(model: nn.Module) -> nn.Module:
    """The part of a transformers model below its head."""
    inner: Any = unwrapped(model)
    return inner.base_model


@contextmanager
def appending(model: nn.Module, appended: AppendedRows | None, scale: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While active, the appended rows pass through the blocks with every batch; does nothing for `None`.

    Args:
        model (`nn.Module`): a causal language model, without the trainer's wrappers.
        appended (`AppendedRows`, *optional*): the rows.
        scale (`Callable`): what is done to a loss before its backward pass, by a gradient scaler.
    """
    if appended is None:
        yield
        return
    inner: Any = unwrapped(model)
    joint = _JointPass(appended, inner.get_output_embeddings(), scale)
    backbone = backbone_of(model)
    with ExitStack() as stack:
        stack.callback(backbone.register_forward_pre_hook(joint.append, with_kwargs=True).remove)
        stack.callback(backbone.register_forward_hook(joint.split).remove)
        for dropout in lora_dropouts(model):
            stack.callback(dropout.register_forward_pre_hook(joint.before_dropout).remove)
            stack.callback(dropout.register_forward_hook(joint.after_dropout).remove)
        yield
