"""Hooks that pass every group of adapter matrices through a gate for as long as a `with` block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from hf_gist.functional.per_sample import Sink
from hf_gist.gast.gate import BatchMasks, Gate, PassGate
from hf_gist.gast.groups import Group
from hf_gist.gradients import hooks
from hf_gist.gradients.lora import TrackedModule


class _Gates:
    """The gate of each group for the forward pass that is running, and the gated parameters by name."""

    def __init__(self, groups: Sequence[Group], batch: BatchMasks) -> None:
        self.batch = batch
        self.group_of = {tracked: group for group in groups for tracked in group.tracked}
        self.gates: dict[int, Gate] = {}
        self.gated: dict[str, Tensor] = {}

    def open(self, group: Group, module: nn.Module, args: tuple) -> None:
        """A forward pre-hook of the group's owner: a new gate, and the group's parameters through it."""
        if not torch.is_grad_enabled():
            return
        parameters = group.parameters()
        gate = Gate(group.name, group.index, self.batch, list(parameters), [p.dtype for p in parameters.values()])
        self.gates[group.index] = gate
        self.gated.update(zip(parameters, PassGate.apply(gate, *parameters.values()), strict=True))

    def weights(self, tracked: TrackedModule) -> tuple[Tensor, Tensor | None]:
        """The gated weight and bias of a linear module; one that is not trained is as the module holds it."""
        names = tracked.parameters
        own = {attribute: getattr(tracked.module, attribute) for attribute in ("weight", "bias")}
        own.update({attribute: self.gated[name] for attribute, name in names.items()})
        return own["weight"], own["bias"]

    def sink(self, tracked: TrackedModule) -> Sink:
        # Bound in the forward pass: a checkpoint's recomputation opens gates that are not part of the graph.
        return partial(self.gates[self.group_of[tracked].index].receive, tracked)


@contextmanager
def masking(groups: Sequence[Group], batch: BatchMasks) -> Iterator[None]:
    """While active, a backward pass gives the matrices of `groups` the gradients of the samples their masks keep.

    Args:
        groups (`Sequence[Group]`): from [`hf_gist.gast.groups.find_groups`].
        batch (`BatchMasks`): of the one batch that is trained on inside; receives the masks.
    """
    gates = _Gates(groups, batch)
    with ExitStack() as stack:
        for group in groups:
            stack.callback(group.owner.register_forward_pre_hook(partial(gates.open, group)).remove)
        stack.enter_context(hooks.attached(gates.group_of, gates.sink, gates.weights))
        yield


def summing(groups: Sequence[Group], scales: Tensor) -> AbstractContextManager[dict[str, Tensor]]:
    """[`hf_gist.gradients.hooks.summing`] over the matrices of `groups`, for the support pass."""
    return hooks.summing([tracked for group in groups for tracked in group.tracked], scales)
