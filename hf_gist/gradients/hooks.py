"""Hooks that turn tracked modules into reporting ones for as long as a `with` block lasts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn

from hf_gist.functional.per_sample import TrackedLinear, TrackedScale
from hf_gist.gradients.lora import TrackedModule


Report = Callable[[TrackedModule, Tensor, Tensor], None]
"""Receives the tracked module and the `(a, d)` of [`hf_gist.functional.per_sample`]."""


def _linear_hook(tracked: TrackedModule, report: Report, uncast: dict[TrackedModule, Tensor]):
    def hook(module: nn.Linear, args: tuple, output: Tensor) -> Tensor | None:
        a = uncast.pop(tracked, args[0])
        if not torch.is_grad_enabled():
            return None
        # A leaf of our own, so that hooks on the parameter's gradient (DDP's, DeepSpeed's) do not hear of this backward.
        weight = module.weight.detach().requires_grad_()
        return TrackedLinear.apply(a, weight, None, output.detach(), partial(report, tracked))

    return hook


@contextmanager
def _casting_here(tracked: TrackedModule, uncast: dict[TrackedModule, Tensor]) -> Iterator[None]:
    """Cast the input of an `A` matrix at its door, where its LoRA layer would, so that what is kept is the input itself.

    With a 16-bit model and a 32-bit adapter every LoRA layer makes a 32-bit copy of its input. Queries, keys and values
    read the same input, and an output projection's is kept by the attention anyway, so that keeping the copies for the
    backward pass would cost a third more memory than keeping the inputs; the values are the same.
    """
    layer = tracked.layer
    before = layer.cast_input_dtype_enabled

    def cast(module: nn.Linear, args: tuple) -> tuple | None:
        if args[0].dtype == module.weight.dtype:
            return None
        uncast[tracked] = args[0]
        return (args[0].to(module.weight.dtype), *args[1:])

    if not before:
        yield
        return
    handle = tracked.module.register_forward_pre_hook(cast)
    layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        layer.cast_input_dtype_enabled = before
        handle.remove()


def scale_derivative(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """`∂y/∂m` `[B, T, o]` of a DoRA layer `y = (s - 1) base + s lora` with `s = m / ‖W + BA‖`: `(base + lora) / ‖·‖`.

    Computed from its parts, because recovering it as `(y + base) / m` loses digits where `m` is small.
    """
    x, lora_a, lora_b, scaling = args[0], kwargs["lora_A"], kwargs["lora_B"], kwargs["scaling"]
    weight = dequantize_module_weight(kwargs["base_layer"]).to(x.dtype)
    base = kwargs["base_result"]
    if base is None:
        base = nn.functional.linear(x, transpose(weight, module.fan_in_fan_out))
    elif kwargs["base_layer"].bias is not None:
        base = base - kwargs["base_layer"].bias
    delta = module.get_lora_weight(lora_A=lora_a, lora_B=lora_b).to(x.dtype)
    norm = module.get_weight_norm(weight=weight, lora_weight=delta, scaling=scaling)
    return (base + lora_b(lora_a(x)) * scaling) / norm


def shadow_scale(module: nn.Module, args: tuple) -> None:
    """A forward pre-hook that hides a magnitude from the graph of its module's output."""
    # The graph of the output must not reach the magnitude, whose gradient is reported per sample. An instance attribute
    # hides the registered parameter without touching it: a change of `requires_grad` would outlive a checkpointed
    # forward that is stopped early, and be seen by the wrappers that shard parameters.
    module.__dict__["weight"] = module._parameters["weight"].detach()


def unshadow_scale(module: nn.Module) -> None:
    """Show it again."""
    module.__dict__.pop("weight", None)


def _scale_hook(tracked: TrackedModule, report: Report):
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | None) -> Tensor | None:
        unshadow_scale(module)
        if output is None or not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            z = scale_derivative(module, args, kwargs)
        return TrackedScale.apply(output, z, partial(report, tracked))

    return hook


@contextmanager
def reporting(tracked_modules: Sequence[TrackedModule], report: Report) -> Iterator[None]:
    """While active, every backward hands `(a, d)` of each tracked module to `report` and adds nothing to `p.grad`.

    Args:
        tracked_modules (`Sequence[TrackedModule]`): from [`hf_gist.gradients.lora.find_tracked`].
        report (`Report`): called once per module and backward, from the last module to the first.
    """
    uncast: dict[TrackedModule, Tensor] = {}
    with ExitStack() as stack:
        for tracked in tracked_modules:
            if tracked.layer is not None:
                stack.enter_context(_casting_here(tracked, uncast))
            if tracked.kind == "linear":
                handle = tracked.module.register_forward_hook(_linear_hook(tracked, report, uncast))
            else:
                stack.callback(unshadow_scale, tracked.module)
                stack.callback(tracked.module.register_forward_pre_hook(shadow_scale).remove)
                handle = tracked.module.register_forward_hook(
                    _scale_hook(tracked, report), with_kwargs=True, always_call=True
                )
            stack.callback(handle.remove)
        yield
