"""Hooks that put every group of adapter matrices behind a gate for as long as a `with` block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hf_gist.functional.per_sample import Sink, TrackedLinear, TrackedScale
from hf_gist.functional.sample_gradients import summed_gradient
from hf_gist.gast.gate import BatchMasks, Gate, PassGate, check_rows
from hf_gist.gast.groups import Group
from hf_gist.gradients.hooks import scale_derivative, shadow_scale, unshadow_scale
from hf_gist.gradients.lora import TrackedModule


class _Hooks:
    """Reports the `(a, d)` of every tracked module; subclasses say to whom, and with which weights in the graph."""

    def sink(self, group: Group, tracked: TrackedModule) -> Sink:
        raise NotImplementedError

    def value(self, tracked: TrackedModule, attribute: str) -> Tensor | None:
        return getattr(tracked.module, attribute)

    def linear(self, group: Group, tracked: TrackedModule, module: nn.Linear, args: tuple, output: Tensor):
        if not torch.is_grad_enabled():
            return None
        weight, bias = self.value(tracked, "weight"), self.value(tracked, "bias")
        return TrackedLinear.apply(args[0], weight, bias, output.detach(), self.sink(group, tracked))

    def scale(self, group: Group, tracked: TrackedModule, module: nn.Module, args: tuple, kwargs: dict, output):
        unshadow_scale(module)
        if output is None or not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            z = scale_derivative(module, args, kwargs)
        return TrackedScale.apply(output, z, self.sink(group, tracked))


class _Gates(_Hooks):
    """The gate of each group for the forward pass that is running, and the gated parameters by name."""

    def __init__(self, batch: BatchMasks) -> None:
        self.batch = batch
        self.gates: dict[int, Gate] = {}
        self.gated: dict[str, Tensor] = {}

    def open(self, group: Group, module: nn.Module, args: tuple) -> None:
        if not torch.is_grad_enabled():
            return
        parameters = group.parameters()
        gate = Gate(group.name, group.index, self.batch, list(parameters), [p.dtype for p in parameters.values()])
        self.gates[group.index] = gate
        self.gated.update(zip(parameters, PassGate.apply(gate, *parameters.values()), strict=True))

    def value(self, tracked: TrackedModule, attribute: str) -> Tensor | None:
        name = tracked.parameters.get(attribute)
        return super().value(tracked, attribute) if name is None else self.gated[name]

    def sink(self, group: Group, tracked: TrackedModule) -> Sink:
        return partial(self.gates[group.index].receive, tracked.name, tracked.kind, tracked.parameters)


class _Sums(_Hooks):
    """Weighted sums over the batch of every parameter's per-sample gradients."""

    def __init__(self, scales: Tensor) -> None:
        self.scales = scales
        self.sums: dict[str, Tensor] = {}

    def receive(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        check_rows(tracked.name, len(d), len(self.scales))
        for attribute, name in tracked.parameters.items():
            total = summed_gradient(tracked.kind, attribute, a, d, self.scales)
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def sink(self, group: Group, tracked: TrackedModule) -> Sink:
        return partial(self.receive, tracked)


def _attach(stack: ExitStack, groups: Sequence[Group], hooks: _Hooks) -> None:
    for group in groups:
        for tracked in group.tracked:
            if tracked.kind == "linear":
                handle = tracked.module.register_forward_hook(partial(hooks.linear, group, tracked))
            else:
                stack.callback(unshadow_scale, tracked.module)
                stack.callback(tracked.module.register_forward_pre_hook(shadow_scale).remove)
                # Also called when the forward raises, as a checkpoint's recomputation does to stop early.
                handle = tracked.module.register_forward_hook(
                    partial(hooks.scale, group, tracked), with_kwargs=True, always_call=True
                )
            stack.callback(handle.remove)


@contextmanager
def masking(groups: Sequence[Group], batch: BatchMasks) -> Iterator[None]:
    """While active, a backward pass gives the matrices of `groups` the gradients of the samples their masks keep.

    Args:
        groups (`Sequence[Group]`): from [`find_groups`].
        batch (`BatchMasks`): of the one batch that is trained on inside; receives the masks.
    """
    gates = _Gates(batch)
    with ExitStack() as stack:
        for group in groups:
            stack.callback(group.owner.register_forward_pre_hook(partial(gates.open, group)).remove)
        _attach(stack, groups, gates)
        yield


@contextmanager
def summing(groups: Sequence[Group], scales: Tensor) -> Iterator[dict[str, Tensor]]:
    """While active, a backward pass sums `scales_b G_b` of every matrix into the mapping and leaves `p.grad` alone.

    Args:
        groups (`Sequence[Group]`): from [`find_groups`].
        scales (`Tensor`): `[B]`.
    """
    sums = _Sums(scales)
    with ExitStack() as stack:
        _attach(stack, groups, sums)
        yield sums.sums
