"""Hooks that put every group of adapter matrices behind a gate for as long as a `with` block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hf_gist.gate import BatchMasks, Gate, PassGate, check_rows, summed_gradient
from hf_gist.hooks import scale_derivative, shadow_scale, unshadow_scale
from hf_gist.lora import OUTSIDE_BLOCKS, TrackedModule, block_of, find_tracked
from hf_gist.persample import Sink, TrackedLinear, TrackedScale


OUTSIDE_NAME = "outside blocks"


@dataclass(frozen=True, eq=False)
class Group:
    """Matrices that share a mask.

    Args:
        name (`str`): for messages and reports.
        index (`int`): position among the groups.
        owner (`nn.Module`): the module whose forward call encloses those of all its matrices.
        tracked (`tuple[TrackedModule, ...]`): the modules that own the matrices.
    """

    name: str
    index: int
    owner: nn.Module
    tracked: tuple[TrackedModule, ...]

    def parameters(self) -> dict[str, Tensor]:
        """Full name to parameter, as the modules hold them right now."""
        return {
            name: getattr(tracked.module, attribute)
            for tracked in self.tracked
            for attribute, name in tracked.parameters.items()
        }


# ---- Finding the groups ----


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _outside_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and block_of(model, name.rpartition(".")[0]) == OUTSIDE_BLOCKS
    }


def _adapted_module(name: str) -> str:
    """`...q_proj` for `...q_proj.lora_A.default`; a module that is trained itself is its own group."""
    return name.partition(".lora_")[0]


def find_groups(model: nn.Module, group_by: str, outside_blocks: str) -> tuple[list[Group], list[str]]:
    """The groups of matrices to mask, by the structure of the model.

    Args:
        model (`nn.Module`): a peft model, without the wrappers of a trainer.
        group_by (`str`): `"block"` or `"module"`.
        outside_blocks (`str`): `"masked"` or `"unmasked"`.

    Returns:
        `tuple[list[Group], list[str]]`: the groups in the order of the model, and the names of the trainable
        parameters that stay unmasked.

    Raises:
        ValueError: see [`hf_gist.lora.find_tracked`].
    """
    unmasked = _outside_parameters(model) if outside_blocks == "unmasked" else {}
    with _frozen(list(unmasked.values())):
        tracked_modules = find_tracked(model)
    members: dict[str, list[TrackedModule]] = {}
    for tracked in tracked_modules:
        if tracked.block == OUTSIDE_BLOCKS:
            name = OUTSIDE_NAME
        else:
            name = tracked.block if group_by == "block" else _adapted_module(tracked.name)
        members.setdefault(name, []).append(tracked)
    groups = []
    for index, (name, tracked) in enumerate(members.items()):
        # Only the whole model encloses a head and an embedding, and peft does not `__call__` the model it wraps.
        owner = model if name == OUTSIDE_NAME else model.get_submodule(name)
        groups.append(Group(name, index, owner, tuple(tracked)))
    return groups, list(unmasked)


def summarise_groups(groups: Sequence[Group], unmasked: Sequence[str]) -> str:
    """The start-up message in one line: how much is masked together, and what is not masked at all."""
    names = [group.name for group in groups]
    span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    line = f"GAST masks {sum(len(g.parameters()) for g in groups)} matrices in {len(groups)} groups: {span}"
    return f"{line}; trained on the whole batch: {', '.join(unmasked)}." if unmasked else f"{line}."


def describe_groups(groups: Sequence[Group], unmasked: Sequence[str]) -> str:
    """The start-up message: every group with its matrices, one line each."""
    lines = [f"GAST masks {sum(len(g.parameters()) for g in groups)} matrices in {len(groups)} groups:"]
    for group in groups:
        prefix = f"{group.name}."
        shapes = (f"{name.removeprefix(prefix)} {list(p.shape)}" for name, p in group.parameters().items())
        lines.append(f"  {group.name}: {', '.join(shapes)}")
    if unmasked:
        lines.append(f"  trained on the whole batch: {', '.join(unmasked)}")
    return "\n".join(lines)


# ---- The hooks ----


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
