"""Model modes for scoring: eval mode with gradients, activation checkpointing in eval mode, compute dtype."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn


PACKS_IN_EVAL_MODE = "support_avx512bf16_for_cpu"
"""Set by bitsandbytes on a CPU that multiplies in bfloat16.

Its 4-bit layers then repack their weights in eval mode, for good. Repacked weights pass no gradient on to their input,
so a training after it would be wrong.
"""


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; training flags and random states are restored on exit, also after an error."""
    flags = {module: module.training for module in model.modules()}
    packing = [module for module in model.modules() if getattr(module, PACKS_IN_EVAL_MODE, False)]
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            for module in packing:
                setattr(module, PACKS_IN_EVAL_MODE, False)
            yield
    finally:
        for module in packing:
            setattr(module, PACKS_IN_EVAL_MODE, True)
        for module, training in flags.items():
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks with activation checkpointing turned on; it is inactive in eval mode."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def _in_eval_mode(function: Callable, block: nn.Module) -> Callable:
    """A function that computes with the block in eval mode, of the kind that the given one is.

    Checkpointing functions inspect theirs: LLaMA-Factory and axolotl read the module from `function.__self__` of a
    bound method, or from `function.func.__self__` of a `functools.partial`, others its signature. So a partial stays a
    partial with the same arguments, and a bound method stays bound to the same object.
    """
    if isinstance(function, partial):
        return partial(_in_eval_mode(function.func, block), *function.args, **function.keywords)
    if isinstance(function, MethodType):
        return MethodType(_in_eval_mode(function.__func__, block), function.__self__)

    @wraps(function)
    def in_eval_mode(*args: Any, **kwargs: Any) -> Any:
        block.training = False
        try:
            return function(*args, **kwargs)
        finally:
            block.training = True

    return in_eval_mode


def _without_dropout(block: nn.Module, checkpoint: Callable) -> Callable:
    """The checkpointing function of a block, with the block in eval mode in the forward pass and the recomputation."""

    @wraps(checkpoint)
    def run(function: Callable, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(_in_eval_mode(function, block), *args, **kwargs)

    return run


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Activation checkpointing inside [`scoring_mode`], for the blocks that have it enabled.

    A block is checkpointed only if its own training flag is set. Some blocks also apply dropout if it is set, so it is
    cleared while the block computes. The children of the blocks stay in eval mode throughout.
    """
    blocks: list[tuple[Any, Callable | None]] = [
        (block, getattr(block, "_gradient_checkpointing_func", None)) for block in checkpointed_blocks(model)
    ]
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


SIXTEEN_BITS = (torch.float16, torch.bfloat16)


@contextmanager
def scoring_precision(model: nn.Module, scoring_dtype: str) -> Iterator[None]:
    """Autocast on for `"bfloat16"`, off for `"float32"`, unchanged for `"auto"`.

    A model that computes in 16 bits multiplies its 32-bit matrices (those of the adapter, the gradients, the basis) in
    TF32 on a GPU that has it: TF32 holds 16-bit inputs without rounding, is several times as fast as fp32, and its
    rounding of the other factor (3e-4 of the result) is far below that of the 16-bit activations. Models in 32 bits
    multiply as the user has set PyTorch.
    """
    device = next(model.parameters()).device.type
    autocast: AbstractContextManager[Any] = nullcontext()
    if scoring_dtype != "auto":
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=scoring_dtype == "bfloat16")
    in_sixteen_bits = scoring_dtype == "bfloat16" or any(p.dtype in SIXTEEN_BITS for p in model.parameters())
    with autocast, _tf32() if in_sixteen_bits and device == "cuda" else nullcontext():
        yield


@contextmanager
def _tf32() -> Iterator[None]:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9; it only saves time
        yield
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
