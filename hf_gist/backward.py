"""One forward and one backward outside the Trainer that give every sample's own gradient, and the slow oracle."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hf_gist import persample
from hf_gist.hooks import reporting
from hf_gist.lora import TrackedModule, find_tracked, in_last_blocks, unwrapped
from hf_gist.losses import loss_kind, sample_losses
from hf_gist.rows import IGNORE_INDEX, Collator


Gradients = Callable[[str, Tensor], None]
"""Receives a parameter name and its per-sample gradients `[B, numel]`."""


# ---- One pass ----


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; training flags and every random state are as before on exit, also after an error."""
    flags = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model that has activation checkpointing on; in eval mode it rests."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def _without_dropout(block: nn.Module, checkpoint: Callable) -> Callable:
    """The checkpointing function of a block, with the block in eval mode inside, also when it is computed again."""

    def run(forward: Callable, *args: Any, **kwargs: Any) -> Any:
        def calm(*inner: Any, **named: Any) -> Any:
            block.training = False
            try:
                return forward(*inner, **named)
            finally:
                block.training = True

        return checkpoint(calm, *args, **kwargs)

    return run


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Activation checkpointing inside [`scoring_mode`], for the blocks that have it on.

    A block's own flag decides about its checkpointing, from outside; inside, some blocks drop out by the same flag, so
    there it is off. Their children stay in eval mode throughout.
    """
    blocks = [(block, getattr(block, "_gradient_checkpointing_func", None)) for block in checkpointed_blocks(model)]
    try:
        for block, function in blocks:
            block.training = True
            if function is not None:
                block._gradient_checkpointing_func = _without_dropout(block, function)
        yield
    finally:
        for block, function in blocks:
            block.training = False
            if function is not None:
                block._gradient_checkpointing_func = function


def compute_dtype_context(scoring_dtype: str, device: torch.device):
    """Autocast for `"bfloat16"`, explicitly none for `"float32"`, the surrounding state for `"auto"`."""
    if scoring_dtype == "auto":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=scoring_dtype == "bfloat16")


class _Reporter:
    """Turns the `(a, d)` reports of one backward into per-parameter gradients, and checks that each came once."""

    def __init__(self, tracked: Sequence[TrackedModule], gradients: Gradients) -> None:
        self.tracked, self.gradients = tracked, gradients
        self.seen: set[TrackedModule] = set()
        self.batch_size = 0

    def start(self, batch_size: int) -> None:
        self.seen.clear()
        self.batch_size = batch_size

    def __call__(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        if len(d) != self.batch_size or tracked in self.seen:
            why = (
                "is used more than once in a forward pass"
                if tracked in self.seen
                else (f"sees {len(d)} rows for a batch of {self.batch_size} samples (flattened tokens or experts)")
            )
            raise ValueError(f"{tracked.name} {why}, so its per-sample gradients cannot be taken; remove its adapter.")
        self.seen.add(tracked)
        for attribute, name in tracked.parameters.items():
            if tracked.kind == "scale":
                gradient = persample.scale_gradients(a, d)
            elif attribute == "bias":
                gradient = persample.bias_gradients(d)
            else:
                gradient = persample.weight_gradients(a, d)
            self.gradients(name, gradient.flatten(1).float())

    def finish(self) -> None:
        missing = [tracked.name for tracked in self.tracked if tracked not in self.seen]
        if missing:
            raise ValueError(
                f"No gradient reached {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}: the module is "
                "not used by the loss, or its output is detached. Remove its adapter or freeze it."
            )


def per_sample_backward(
    model: nn.Module, batch: dict[str, Any], tracked: Sequence[TrackedModule], gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """One forward and one backward that hand every sample's own gradient of each tracked parameter to `gradients`.

    Args:
        model (`nn.Module`): in eval mode; `p.grad` is left alone.
        batch (`dict`): a collated batch of `B` samples on the model's device.
        tracked (`Sequence[TrackedModule]`): see [`hf_gist.lora.find_tracked`].
        gradients (`Gradients`): called with a parameter name and `[B, numel]` fp32, once per parameter.

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`.

    Raises:
        ValueError: if a tracked module did not report exactly once.
    """
    reporter = _Reporter(tracked, gradients)
    reporter.start(len(batch["labels"]))
    with reporting(tracked, reporter):
        losses, counts = sample_losses(model, batch)
        # The sum over samples keeps every sample's gradient its own: no division by the batch's tokens.
        losses.sum().backward()
    reporter.finish()
    return losses.detach(), counts


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch as a plain dict with its tensors on `device`."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def check_dtype(model: nn.Module, scoring_dtype: str) -> None:
    """Refuse to call fp32 what is not.

    Raises:
        ValueError: for `scoring_dtype="float32"` on weights of another floating dtype.
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    if scoring_dtype == "float32" and dtypes != {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(
            f"`scoring_dtype='float32'`, but the model's weights are {names}. Load it with `dtype=torch.float32`, or set "
            "`scoring_dtype='auto'`."
        )


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


# ---- What stands for a row ----


class Vectors(Protocol):
    """Turns a batch into one vector per sample, in named parts: a gradient has a part for every parameter."""

    sizes: dict[str, int]
    """Part to its number of values."""

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """Hand every part `[B, n]` to `gradients` once; returns losses `[B]` and labelled tokens `[B]`."""


class GradientVectors:
    """Each sample's gradient of its own mean token loss, for all tracked parameters (paper GIST).

    Args:
        model (`nn.Module`): a peft model.
        last_blocks (`int`, *optional*): leave out the adapters of all but the last blocks; the backward ends there.
    """

    def __init__(self, model: nn.Module, last_blocks: int | None = None) -> None:
        self.model, self.tracked = model, find_tracked(model)
        self._left_out: list[nn.Parameter] = []
        if last_blocks is not None:
            kept = in_last_blocks(self.tracked, last_blocks)
            names = {name for tracked in kept for name in tracked.parameters.values()}
            self._left_out = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
            self.tracked = kept
        self.sizes = {
            name: getattr(tracked.module, attribute).numel()
            for tracked in self.tracked
            for attribute, name in tracked.parameters.items()
        }

    def __call__(self, batch: dict[str, Any], gradients: Gradients) -> tuple[Tensor, Tensor]:
        """See [`Vectors`]."""
        for parameter in self._left_out:
            parameter.requires_grad_(False)
        try:
            return per_sample_backward(self.model, batch, self.tracked, gradients)
        finally:
            for parameter in self._left_out:
                parameter.requires_grad_(True)


# ---- The oracle ----


def per_sample_gradients_reference(
    model: nn.Module, dataset: Any, data_collator: Collator
) -> list[dict[str, Tensor] | None]:
    """Per-sample gradients by the slow, obvious way: one forward and backward for every row, with the model's own loss.

    For anyone to check the fast path on their own model. The model is put in eval mode for the duration.

    Args:
        model (`nn.Module`): a model with trainable parameters.
        dataset: tokenised rows.
        data_collator (`Callable`): rows to a batch; called with one row at a time.

    Returns:
        `list[dict[str, Tensor] | None]`: for each row, parameter name to its gradient in the parameter's shape, as
        fp32 on the CPU; `None` for a row without a labelled token.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    results: list[dict[str, Tensor] | None] = []
    with scoring_mode(model):
        for index in range(len(dataset)):
            batch = to_device(data_collator([dataset[index]]), model_device(model))
            labels = batch["labels"]
            shifted = labels[:, 1:] if labels.dim() == 2 and loss_kind(model) == "causal" else labels
            if labels.dim() == 2 and not (shifted != IGNORE_INDEX).any():
                results.append(None)
                continue
            loss = unwrapped(model)(**batch).loss
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            results.append(
                {
                    name: (torch.zeros_like(p) if g is None else g).detach().float().cpu()
                    for (name, p), g in zip(parameters.items(), gradients, strict=True)
                }
            )
    return results
