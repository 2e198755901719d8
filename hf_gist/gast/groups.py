"""The groups of adapter matrices that share a mask."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from hf_gist.gradients.lora import OUTSIDE_BLOCKS, TrackedModule, block_of, find_tracked


OUTSIDE_NAME = "outside blocks"
MODEL_NAME = "whole model"


@dataclass(frozen=True, eq=False)
class Group:
    """Matrices that share a mask.

    Args:
        name (`str`): for messages and reports.
        index (`int`): position among the groups.
        owner (`nn.Module`): the module whose forward pass contains those of all matrices of the group.
        tracked (`tuple[TrackedModule, ...]`): the modules that own the matrices.
    """

    name: str
    index: int
    owner: nn.Module
    tracked: tuple[TrackedModule, ...]

    def by_block(self) -> dict[str, dict[str, Tensor]]:
        """From the names of blocks, and full names, to the current parameters of the modules."""
        found: dict[str, dict[str, Tensor]] = {}
        for tracked in self.tracked:
            own = {name: getattr(tracked.module, attribute) for attribute, name in tracked.parameters.items()}
            found.setdefault(tracked.block, {}).update(own)
        return found

    def parameters(self) -> dict[str, Tensor]:
        """From full names to the current parameters of the modules, block by block."""
        return {name: parameter for block in self.by_block().values() for name, parameter in block.items()}


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
    """`...q_proj` for `...q_proj.lora_A.default`; a module that is trained directly is its own group."""
    return name.partition(".lora_")[0]


def find_groups(model: nn.Module, group_by: str, outside_blocks: str) -> tuple[list[Group], list[str]]:
    """The groups of matrices to mask, by the structure of the model.

    Args:
        model (`nn.Module`): a peft model, without the trainer's wrappers.
        group_by (`str`): `"block"`, `"module"` or `"model"`.
        outside_blocks (`str`): `"masked"` or `"unmasked"`.

    Returns:
        `tuple[list[Group], list[str]]`: the groups in the order of the model, and the names of the trainable
        parameters that are not masked.

    Raises:
        ValueError: see [`hf_gist.gradients.lora.find_tracked`].
    """
    unmasked = _outside_parameters(model) if outside_blocks == "unmasked" else {}
    with _frozen(list(unmasked.values())):
        tracked_modules = find_tracked(model)
    members: dict[str, list[TrackedModule]] = {}
    for tracked in tracked_modules:
        if group_by == "model":
            name = MODEL_NAME
        elif tracked.block == OUTSIDE_BLOCKS:
            name = OUTSIDE_NAME
        else:
            name = tracked.block if group_by == "block" else _adapted_module(tracked.name)
        members.setdefault(name, []).append(tracked)
    groups = []
    for index, (name, own) in enumerate(members.items()):
        # Only the whole model contains both head and embedding, and peft does not `__call__` the model it wraps.
        owner = model if name in (OUTSIDE_NAME, MODEL_NAME) else model.get_submodule(name)
        groups.append(Group(name, index, owner, tuple(own)))
    return groups, list(unmasked)


def summarise_groups(groups: Sequence[Group], unmasked: Sequence[str]) -> str:
    """One-line start-up message: the masked groups, and the parameters that are not masked."""
    names = [group.name for group in groups]
    span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    plural = "group" if len(names) == 1 else "groups"
    line = f"GAST masks {sum(len(g.parameters()) for g in groups)} matrices in {len(groups)} {plural}: {span}"
    return f"{line}; trained on the whole batch: {', '.join(unmasked)}." if unmasked else f"{line}."


def describe_groups(groups: Sequence[Group], unmasked: Sequence[str]) -> str:
    """Full start-up message: one line per group with its matrices."""
    lines = [f"GAST masks {sum(len(g.parameters()) for g in groups)} matrices in {len(groups)} groups:"]
    for group in groups:
        prefix = f"{group.name}."
        shapes = (f"{name.removeprefix(prefix)} {list(p.shape)}" for name, p in group.parameters().items())
        lines.append(f"  {group.name}: {', '.join(shapes)}")
    if unmasked:
        lines.append(f"  trained on the whole batch: {', '.join(unmasked)}")
    return "\n".join(lines)
