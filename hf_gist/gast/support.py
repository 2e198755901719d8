"""Sources of GAST's support gradient: a seeded sequence of support batches, or the optimizer's state."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_gist.config.gast import SUPPORTS
from hf_gist.data.rows import Collator, fetch_rows
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.masking import support_rows
from hf_gist.gast.groups import Group
from hf_gist.gradients.modes import checkpointing, scoring_mode
from hf_gist.utils.disk import read, write


SUPPORT_FILE = "gast_support.safetensors"

SAME_ADAPTER = "Compute the gradient with the adapter that is trained."

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""State keys of the running mean of the gradient: of Adam and Lion, and of SGD."""


class SupportSet:
    """The support samples, in an order that depends only on the seed and on how many were already used.

    Args:
        dataset: tokenised rows with a length.
        collator (`Collator`): rows to a batch.
        batch_size (`int`): rows per process in one support batch.
        seed (`int`): seed of the order.

    Raises:
        ValueError: if the dataset has no length or no rows.
    """

    def __init__(self, dataset: Any, collator: Collator, batch_size: int, seed: int) -> None:
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise ValueError(
                "The support set must have a known length and at least one row. Pass a `support_dataset`, or set "
                "`support='momentum'`."
            )
        self.dataset = dataset
        self.collator = collator
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, counter: int, rank: int, world_size: int) -> dict[str, Any]:
        """The `counter`-th support batch of a process; consecutive rows are divided over the processes."""
        start = (counter * world_size + rank) * self.batch_size
        rows = support_rows(self.seed, len(self.dataset), start, self.batch_size)
        return self.collator(fetch_rows(self.dataset, rows))


@contextmanager
def support_mode(model: nn.Module, untracked: Sequence[nn.Parameter]) -> Iterator[None]:
    """No dropout, random states restored, configured activation checkpointing; gradients of `untracked` are discarded.

    Args:
        model (`nn.Module`): the model, with its wrappers.
        untracked (`Sequence[nn.Parameter]`): trainable parameters whose gradient is not taken by a hook.
    """
    gradients = [parameter.grad for parameter in untracked]
    with scoring_mode(model), checkpointing(model):
        for parameter in untracked:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in zip(untracked, gradients, strict=True):
                parameter.grad = gradient


def average_over_ranks(gradients: dict[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The gradients averaged over all processes, in one collective call.

    Args:
        gradients (`dict[str, Tensor]`): the same names and shapes on every process.
        reduce (`Callable`): the mean of a tensor over processes.
    """
    names = sorted(gradients)
    flat = reduce(torch.cat([gradients[name].flatten().float() for name in names]))
    parts = flat.split([gradients[name].numel() for name in names])
    return {
        name: part.view(gradients[name].shape).to(gradients[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }


def first_moments(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], stepped: bool
) -> dict[str, Tensor] | None:
    """The optimizer's first moment of every masked matrix; `None` before its first step.

    Args:
        optimizer (`torch.optim.Optimizer`): the trainer's optimizer.
        groups (`Sequence[Group]`): from [`hf_gist.gast.groups.find_groups`].
        stepped (`bool`): whether the optimizer must have taken a step by now.

    Raises:
        ValueError: if the optimizer has no first moment in full precision.
    """
    moments = {}
    for name, parameter in (item for group in groups for item in group.parameters().items()):
        state = optimizer.state.get(parameter) or {}
        if not state and not stepped:
            return None
        moments[name] = _first_moment(optimizer, state, name, parameter)
    return moments


def _first_moment(optimizer: torch.optim.Optimizer, state: dict[str, Any], name: str, parameter: Tensor) -> Tensor:
    moment = next((state[key] for key in FIRST_MOMENTS if isinstance(state.get(key), Tensor)), None)
    if moment is None or not moment.is_floating_point() or moment.shape != parameter.shape:
        inner = getattr(optimizer, "optimizer", optimizer)
        raise ValueError(
            f"`support='momentum'` needs an optimizer that keeps the first moment of the gradient, and "
            f"{type(inner).__name__} keeps none of {name}. Use AdamW or SGD with momentum, or set "
            "`support='dataset'`."
        )
    # A sharded moment is gathered, because every process aligns its samples with the full moment.
    return moment.full_tensor() if isinstance(moment, DTensor) else moment


def warn_if_zero(support: dict[str, Tensor], mode: str) -> None:
    """Warn if the support gradient is zero, because it then says nothing about the samples."""
    if not any(bool(gradient.any()) for gradient in support.values()):
        effect = "no sample is kept" if mode == "positive" else "the samples are drawn uniformly"
        warnings.warn(
            f"GAST: the support gradient is zero, so {effect}. Check that the rows of the "
            "support set have labelled tokens (labels other than -100) after truncation.",
            NoEffectWarning,
            stacklevel=2,
        )


def save_support(folder: str | os.PathLike, support: dict[str, Tensor]) -> None:
    """Write the current support gradient into a checkpoint folder."""
    tensors = {name: value.contiguous().cpu() for name, value in support.items()}
    write(Path(folder) / SUPPORT_FILE, lambda path: save_file(tensors, path))


def read_saved(path: str, model: nn.Module, masked: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Read a saved support gradient.

    Args:
        path (`str`): a file with a tensor for each trainable parameter, by its name in `model.named_parameters()`.
        model (`nn.Module`): the model in training, without wrappers.
        masked (`Sequence[str]`): names of the masked parameters, which the file must have.
        device (`torch.device`): of the result.

    Returns:
        `dict[str, Tensor]`: of the masked parameters.

    Raises:
        ValueError: if the file cannot be read, or naming the first tensor that does not fit the model.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"`support={path!r}` is not a file. Write one with `hf_gist.save_support_gradient(trainer, dataset, file)`, or "
            f"set `support` to {' or '.join(map(repr, SUPPORTS))}."
        )
    saved = read(Path(path), lambda file: load_file(file, device=str(device)))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := [name for name in masked if name not in saved]:
        raise ValueError(f"`support={path!r}` has no tensor for the trained parameter {missing[0]}. {SAME_ADAPTER}")
    for name, value in saved.items():
        if name not in trained:
            raise ValueError(
                f"`support={path!r}` has a tensor {name}, which is not a trained parameter. {SAME_ADAPTER}"
            )
        if value.shape != trained[name].shape:
            raise ValueError(
                f"`support={path!r}` has {name} with the shape {list(value.shape)}, and in the model it is "
                f"{list(trained[name].shape)}. {SAME_ADAPTER}"
            )
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise ValueError(f"`support={path!r}`: not all values of {name} are finite numbers. Compute it again.")
    return {name: saved[name] for name in masked}


def load_support(folder: str | os.PathLike, device: torch.device) -> dict[str, Tensor] | None:
    """Read the support gradient of a checkpoint folder; `None` if it has none."""
    path = Path(folder) / SUPPORT_FILE
    return load_file(path, device=str(device)) if path.is_file() else None
