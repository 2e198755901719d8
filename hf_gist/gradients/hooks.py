"""The hooks: within a `with` block, every backward pass reports `(a, d)` of each tracked module.

The caller provides the sink that receives the `(a, d)` of a module, and the weight that is used in the graph: a
detached leaf for passes that must not change `p.grad` (scoring, the support pass of GAST), or the gated weight (masked
steps of GAST).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn

from hf_gist.functional.per_sample import Sink, TrackedLinear, TrackedScale
from hf_gist.functional.sample_gradients import sample_gradient
from hf_gist.gradients.lora import TrackedModule
from hf_gist.utils.guides import guide


Report = Callable[[TrackedModule, Tensor, Tensor], None]
"""Receives the tracked module and the `(a, d)` of [`hf_gist.functional.per_sample`]."""

SinkOf = Callable[[TrackedModule], Sink]
"""Called in every forward pass of a module: returns the sink of this pass."""

WeightsOf = Callable[[TrackedModule], tuple[Tensor, Tensor | None]]
"""Called in every forward pass of a linear module: the weight and the bias that are used in the graph."""


def detached_weights(tracked: TrackedModule) -> tuple[Tensor, None]:
    """A leaf with the values of the weight `[o, i]`, so that the parameter and its gradient are not part of the graph.

    Hooks on the parameter's gradient (of DDP, of DeepSpeed) are therefore not called by the backward pass.
    """
    return tracked.module.get_parameter("weight").detach().requires_grad_(), None


def check_report(
    tracked: TrackedModule, d: Tensor, batch_size: int, repeated: bool = False, support_rows: int = 0
) -> None:
    """Check that a module reported one row per sample of the batch, and only once.

    Args:
        tracked (`TrackedModule`): the module.
        d (`Tensor`): the output gradient that it reported, `[B, T, o]` or `[B, o]`.
        batch_size (`int`): `B`.
        repeated (`bool`): whether the module has already reported in this backward pass.
        support_rows (`int`): rows of GAST's support batch that follow the samples.

    Raises:
        ValueError: naming the module, with what to change.
    """
    if repeated:
        raise ValueError(
            f"{tracked.name} is used more than once in a forward pass, so per-sample gradients cannot be computed. "
            "Leave it out of the adapter's `target_modules`."
        )
    if len(d) != batch_size + support_rows:
        samples = f"{batch_size} samples" + (f" and {support_rows} support samples" if support_rows else "")
        raise ValueError(
            f"{tracked.name} gets {len(d)} rows for a batch of {samples}, so per-sample gradients cannot be computed: "
            f"{_why_not_samples(tracked, d)}"
        )


def _why_not_samples(tracked: TrackedModule, d: Tensor) -> str:
    """Why the rows of an output gradient are not samples, and what to change."""
    adapted = tracked.name.partition(".lora_")[0].rpartition(".")[2]
    leave_out = f"leave '{adapted}' out of the adapter's `target_modules`."
    if d.dim() == 2:
        return (
            f"its rows are tokens of all samples (as in routers and experts, or if it flattens the batch); {leave_out}"
        )
    return f"the samples are packed into fewer rows, or split; turn packing off, or {leave_out}"


FUSED_KERNELS = (
    "Unsloth: set `lora_dropout` above 0, and `UNSLOTH_FUSED_LORA_DROPOUT=0` in the environment for releases that also "
    "fuse dropout; axolotl: set `lora_mlp_kernel`, `lora_qkv_kernel`, `lora_o_kernel` and `lora_embedding_kernel` to false"
)
"""How to turn off kernels that use the LoRA matrices without calling their modules."""


def unreached(parameters: Mapping[str, Tensor], otherwise: str = "") -> str:
    """The error message for parameters whose modules reported nothing in a forward and backward pass.

    A fused kernel takes the parameters themselves, so the backward pass has set their gradients, which the hooks keep
    it from doing for modules that are called.

    Args:
        parameters (`Mapping[str, Tensor]`): name to parameter, of those modules.
        otherwise (`str`): what else can be done about a fused kernel than to turn it off.
    """
    names = list(dict.fromkeys(name.partition(".lora_")[0] for name in parameters))
    found = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    heads = [name for name in names if ".modules_to_save." in name]
    if heads and any(parameters[name].grad is not None for name in parameters if ".modules_to_save." in name):
        return (
            f"The loss uses the weights of {heads[0].partition('.modules_to_save.')[0]} without calling the module, as TRL's "
            "fused head does, so there are no per-sample gradients of it. Leave it out of `modules_to_save`, or with GAST set "
            "`outside_blocks='unmasked'`."
        )
    if any(parameter.grad is not None for parameter in parameters.values()):
        return (
            f"A fused LoRA kernel uses the adapter of {found} without calling its modules, so there are no per-sample "
            f"gradients. Turn it off ({FUSED_KERNELS}){otherwise}. See {guide('errors', 'adapters')}."
        )
    return (
        f"No gradient reached the adapter of {found}: the module is not used by the loss, or its output is detached. "
        "Remove or freeze its adapter."
    )


# ---- Linear modules ----


def _only_casts(tracked: TrackedModule) -> bool:
    """Whether the LoRA layer of an `A` matrix only casts its input, because dropout is inactive."""
    if tracked.layer is None:
        return False
    dropout = tracked.layer.get_submodule(f"lora_dropout.{tracked.adapter}")
    return not (dropout.training and getattr(dropout, "p", 0.0) > 0)


@contextmanager
def _casting_late(tracked: TrackedModule, uncast: dict[TrackedModule, Tensor]) -> Iterator[None]:
    """Cast the input of an `A` matrix in a pre-hook instead of in its LoRA layer, so that the input itself is kept.

    With a 16-bit model and a 32-bit adapter every LoRA layer makes a 32-bit copy of its input. Queries, keys and
    values share the same input, and attention keeps the input of the output projection anyway, so keeping the copies
    for the backward pass would take a third more memory than keeping the inputs. Results are the same.

    Args:
        tracked (`TrackedModule`): the `A` matrix.
        uncast (`dict[TrackedModule, Tensor]`): receives the input before the cast.
    """
    layer: Any = tracked.layer
    before = layer.cast_input_dtype_enabled

    def cast(module: nn.Linear, args: tuple) -> tuple:
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


def _attach_linear(stack: ExitStack, tracked: TrackedModule, sink_of: SinkOf, weights_of: WeightsOf) -> None:
    uncast: dict[TrackedModule, Tensor] = {}

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        a = uncast.pop(tracked, args[0])
        if not torch.is_grad_enabled():
            return None
        weight, bias = weights_of(tracked)
        return TrackedLinear.apply(a, weight, bias, output.detach(), sink_of(tracked))

    if _only_casts(tracked):
        stack.enter_context(_casting_late(tracked, uncast))
    stack.callback(tracked.module.register_forward_hook(hook).remove)


# ---- Scales ----


def scale_derivative(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """`∂y/∂m` `[B, T, o]` of a DoRA layer `y = (s - 1) base + s lora` with `s = m / ‖W + BA‖`: `(base + lora) / ‖·‖`.

    Computed from its terms, because computing it as `(y + base) / m` loses precision where `m` is small.
    """
    layer = cast(DoraLinearLayer, module)
    x = args[0]
    lora_a, lora_b, scaling = kwargs["lora_A"], kwargs["lora_B"], kwargs["scaling"]
    weight = dequantize_module_weight(kwargs["base_layer"]).to(x.dtype)
    base = kwargs["base_result"]
    if base is None:
        base = nn.functional.linear(x, transpose(weight, layer.fan_in_fan_out))
    elif kwargs["base_layer"].bias is not None:
        base = base - kwargs["base_layer"].bias
    # as in DoRA's forward pass: calling the modules, instead of multiplying their weights, also works if they are sharded
    identity = torch.eye(lora_a.in_features, device=lora_a.weight.device, dtype=lora_a.weight.dtype)
    delta = lora_b(lora_a(identity)).T.to(x.dtype)
    norm = layer.get_weight_norm(weight=weight, lora_weight=delta, scaling=scaling)
    return (base + lora_b(lora_a(x)) * scaling) / norm


def _shadow_scale(module: nn.Module, args: tuple) -> None:
    """A forward pre-hook that hides a magnitude from the graph of its module's output."""
    # The magnitude must not be part of the output's graph, because its gradient is reported per sample. An instance
    # attribute hides the registered parameter without changing it: changing `requires_grad` would not be undone if a
    # checkpointed forward pass is stopped early, and would affect wrappers that shard parameters.
    _unshadow_scale(module)
    module.__dict__["weight"] = module.get_parameter("weight").detach()


def _unshadow_scale(module: nn.Module) -> None:
    """Undo `_shadow_scale`."""
    module.__dict__.pop("weight", None)


def _attach_scale(stack: ExitStack, tracked: TrackedModule, sink_of: SinkOf) -> None:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | None) -> Tensor | None:
        _unshadow_scale(module)
        if output is None or not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            z = scale_derivative(module, args, kwargs)
        return TrackedScale.apply(output, z, sink_of(tracked))

    stack.callback(_unshadow_scale, tracked.module)
    stack.callback(tracked.module.register_forward_pre_hook(_shadow_scale).remove)
    # also called if the forward pass raises: checkpoint recomputation stops early by raising
    stack.callback(tracked.module.register_forward_hook(hook, with_kwargs=True, always_call=True).remove)


# ---- Context managers ----


@contextmanager
def attached(
    tracked_modules: Iterable[TrackedModule], sink_of: SinkOf, weights_of: WeightsOf = detached_weights
) -> Iterator[None]:
    """While active, every backward pass passes `(a, d)` of each tracked module to a sink.

    Args:
        tracked_modules (`Iterable[TrackedModule]`): from [`hf_gist.gradients.lora.find_tracked`].
        sink_of (`SinkOf`): the sink of a module's forward pass; called once in its backward pass, the last module
            first.
        weights_of (`WeightsOf`): the weight and bias that a linear module uses in the graph; the graph
            computes no gradient for them.
    """
    with ExitStack() as stack:
        for tracked in tracked_modules:
            if tracked.kind == "linear":
                _attach_linear(stack, tracked, sink_of, weights_of)
            else:
                _attach_scale(stack, tracked, sink_of)
        yield


@contextmanager
def reporting(tracked_modules: Iterable[TrackedModule], report: Report) -> Iterator[None]:
    """While active, every backward pass passes `(a, d)` of each tracked module to `report`; `p.grad` is not changed.

    Args:
        tracked_modules (`Iterable[TrackedModule]`): from [`hf_gist.gradients.lora.find_tracked`].
        report (`Report`): called once per module and backward pass, the last module first.
    """
    with attached(tracked_modules, lambda tracked: partial(report, tracked)):
        yield


@contextmanager
def summing(tracked_modules: Iterable[TrackedModule], scales: Tensor) -> Iterator[dict[str, Tensor]]:
    """While active, a backward pass sums the samples' gradients `Σ_b scales_b G_b`; `p.grad` is not changed.

    Args:
        tracked_modules (`Iterable[TrackedModule]`): from [`hf_gist.gradients.lora.find_tracked`].
        scales (`Tensor`): `[B]`.

    Yields:
        `dict[str, Tensor]`: parameter name to its sum, in the parameter's shape; filled in by the backward pass.

    Raises:
        ValueError: see [`check_report`].
    """
    sums: dict[str, Tensor] = {}

    def add(tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        check_report(tracked, d, len(scales))
        for attribute, name in tracked.parameters.items():
            total = sample_gradient(tracked.kind, attribute, a, d).weighted_sum(scales)
            sums[name] = sums[name] + total if name in sums else total

    with reporting(tracked_modules, add):
        yield sums
