"""Definition of a scorer: its row representation, names and limits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from hf_gist.config.gist import GISTConfig
from hf_gist.gradients.models import adapter_parameters, assign, whole
from hf_gist.gradients.vectors import Vectors


@dataclass(frozen=True)
class AdamCheckpoint:
    """One checkpoint of the warm-up: adapter, Adam state and learning rate.

    Args:
        learning_rate (`float`): weight of the checkpoint in the sum over checkpoints.
        moments (`dict`): parameter name to Adam's first and second moment.
        steps (`int`): optimizer steps that produced the moments.
        betas (`tuple[float, float]`): Adam's `betas`.
        eps (`float`): Adam's `eps`.
        weights (`dict[str, Tensor]`, *optional*): the adapter; by default the model's current one.
    """

    learning_rate: float
    moments: dict[str, tuple[Tensor, Tensor]]
    steps: int
    betas: tuple[float, float]
    eps: float
    weights: dict[str, Tensor] | None = None
    _scaled: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def update(self, name: str, gradients: Tensor) -> Tensor:
        """The update direction of Adam for each gradient alone (LESS, Eq. 4): `[B, n]` to `[B, n]`.

        This is the update of torch's Adam. The code published with LESS omits the bias correction and adds epsilon
        inside the square root, which shrinks entries far below 1e-4.
        """
        if name not in self._scaled:
            self._scaled[name] = self._scaled_moments(name, gradients.device)
        first, second = self._scaled[name]
        b1, b2 = self.betas
        step = self.steps + 1
        mean = torch.add(first, gradients, alpha=(1 - b1) / (1 - b1**step))
        variance = torch.addcmul(second, gradients, gradients, value=(1 - b2) / (1 - b2**step))
        return mean.div_(variance.sqrt_().add_(self.eps))

    def _scaled_moments(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """The parts of both corrected moments that do not depend on the gradient `[n]`, on the device."""
        scales = [beta / (1 - beta ** (self.steps + 1)) for beta in self.betas]
        first, second = (
            moment.to(device).flatten() * scale for moment, scale in zip(self.moments[name], scales, strict=True)
        )
        return first, second

    def release(self) -> None:
        """Free the copies of the moments that a pass has made on the device."""
        self._scaled.clear()


class ModelVectors(Vectors, Protocol):
    """[`Vectors`] with a reference to their model."""

    model: nn.Module


@dataclass(frozen=True)
class CheckpointVectors:
    """The vectors of one checkpoint; a row's whole vector is the concatenation over the checkpoints.

    Args:
        targets (`ModelVectors`): row representation of a target.
        candidates (`ModelVectors`): row representation of a candidate.
        model (`nn.Module`): the model whose adapter is replaced.
        adam (`AdamCheckpoint`, *optional*): this checkpoint, if it has an adapter or an Adam state of its own.
    """

    targets: ModelVectors
    candidates: ModelVectors
    model: nn.Module
    adam: AdamCheckpoint | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Load the adapter of this checkpoint into the model; the original adapter is restored on exit."""
        if self.adam is None:
            yield
            return
        try:
            with self._weights_of(self.adam):
                yield
        finally:
            self.adam.release()

    @contextmanager
    def _weights_of(self, adam: AdamCheckpoint) -> Iterator[None]:
        if adam.weights is None:
            yield
            return
        own = adapter_parameters(self.model)
        before = {name: whole(parameter).clone() for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                assign(parameter, adam.weights[name])
            yield
        finally:
            for name, parameter in own.items():
                assign(parameter, before[name])


VectorFactory = Callable[[nn.Module, GISTConfig, Sequence[AdamCheckpoint]], list[CheckpointVectors]]
"""From model, configuration and warm-up checkpoints to the vectors of each checkpoint."""


@dataclass(frozen=True)
class Scorer:
    """A scorer: its row representation, and which settings it supports.

    Args:
        name (`str`): value of [`GISTConfig`]'s `scorer`.
        title (`str`): name in tables, figures and cards.
        sentence (`str`): description of the row representation, for the report and the card.
        vectors (`VectorFactory`): creates the representations of targets and candidates; raises `ValueError` for a
            model or configuration that it does not support.
        in_subspace (`bool`): rows may be compared inside the subspace of the targets, so that `score` applies. Other
            scorers use the plain cosine.
        large_basis (`bool`): vectors are as large as the gradient, so memory for the basis is planned.
        unit_directions (`bool`): the mean vector of a target group is normalised.
        forward_only (`bool`): needs no backward pass.
        needs_adam (`bool`): needs the Adam state of the warm-up at one or more checkpoints: works with torch's Adam or
            AdamW only, and neither under DeepSpeed nor for streams.
    """

    name: str
    title: str
    sentence: str
    vectors: VectorFactory
    in_subspace: bool = False
    large_basis: bool = False
    unit_directions: bool = True
    forward_only: bool = False
    needs_adam: bool = False
