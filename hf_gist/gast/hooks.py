"""Hooks that pass every group of adapter matrices through a gate within a `with` block."""

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
    """The gate of each group in the current forward pass, and the gated parameters by name."""

    def __init__(self, groups: Sequence[Group], batch: BatchMasks) -> None:
        self.batch = batch
        self.group_of = {tracked: group for group in groups for tracked in group.tracked}
        self.gates: dict[int, Gate] = {}
        self.gated: dict[str, Tensor] = {}

    def open(self, group: Group, module: nn.Module, args: tuple) -> None:
        """A forward pre-hook of the group's owner: pass the group's parameters through a new gate."""
        if not torch.is_grad_enabled():
            return
        gate = Gate(group.name, group.index, self.batch, group.by_block())
        parameters = group.parameters()
        self.gates[group.index] = gate
        self.gated.update(zip(parameters, PassGate.apply(gate, *parameters.values()), strict=True))

    def weights(self, tracked: TrackedModule) -> tuple[Tensor, Tensor | None]:
        """The weight and bias of a linear module: gated if trainable, otherwise those of the module."""
        names = tracked.parameters
        own = {attribute: getattr(tracked.module, attribute) for attribute in ("weight", "bias")}
        own.update({attribute: self.gated[name] for attribute, name in names.items()})
        return own["weight"], own["bias"]

    def sink(self, tracked: TrackedModule) -> Sink:
        # Bound in the forward pass: checkpoint recomputation creates gates that are not part of the graph.
        return partial(self.gates[self.group_of[tracked].index].receive, tracked)


@contextmanager
def masking(groups: Sequence[Group], batch: BatchMasks) -> Iterator[None]:
    """While active, a backward pass uses only the samples kept by each group's mask for the group's gradients.

    Args:
        groups (`Sequence[Group]`): from [`hf_gist.gast.groups.find_groups`].
        batch (`BatchMasks`): of the batch that is trained on inside; the masks are stored in it.
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
