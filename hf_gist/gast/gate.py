"""The gate of a group of matrices: draws their mask in the backward pass as soon as their gradients are complete.

The trainable matrices of a group (for example, of a transformer block) enter the graph through one identity autograd
Function. Autograd calls its backward once, after the backward of everything that uses its outputs. At that point, all
matrices of the group have reported their per-sample gradients to the gate. The gate draws the mask, returns the masked
sums as the gradients of the parameters, and frees the per-sample gradients.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_gist.functional import masking
from hf_gist.functional.group_gradients import GroupGradients, JoinedGradients, SupportGradient
from hf_gist.functional.sample_gradients import sample_gradient
from hf_gist.gradients.hooks import check_report
from hf_gist.gradients.lora import TrackedModule


REENTRANT_TOO = (
    "; if it does so already, activation checkpointing is reentrant, which `group_by='model'` does not work with: set "
    "`use_reentrant=False`"
)
"""The end of an error message on a group of several blocks."""


@dataclass(frozen=True)
class Redundancy:
    """What the greedy choice of [`hf_gist.functional.masking.greedy`] needs to know of a step.

    Args:
        learning_rate (`float`): of the step.
        scale (`Tensor`): a scalar; the gradient that a gate gets for a sample is the gradient of the sample's own mean
            loss, times its loss weight, times this.
    """

    learning_rate: float
    scale: Tensor


@dataclass
class BatchMasks:
    """Inputs and results of the gates of one batch.

    Args:
        loss_weights (`Tensor`): `[B]`, proportional to the weight of each sample's own mean loss in the loss that is
            backpropagated; zero for a sample without a loss.
        noise (`Tensor`): `[L, B]` from [`hf_gist.functional.masking.gumbel_noise`].
        support (`SupportGradient`, *optional*): without it, every alignment is zero, `stochastic` draws uniformly and
            `positive` keeps every sample.
        keep (`int`): `K`.
        mode (`str`): see [`hf_gist.functional.masking.draw`].
        temperature (`float`): see [`hf_gist.functional.masking.draw`].
        rescale (`bool`): see [`hf_gist.functional.masking.sample_scales`].
        threshold (`float`): cosine with the support gradient that `positive` asks for.
        of_batch (`bool`): the support gradient is the mean gradient of the batch's own samples; `support` is not used.
        redundancy (`Redundancy`, *optional*): choose samples greedily instead of by `mode`.
        appended (`int`): support rows that follow the `B` samples in the batch of the model. The sum of their gradients
            is the support gradient; `support` is then empty, and the gates fill it in.
    """

    loss_weights: Tensor
    noise: Tensor
    support: SupportGradient | None
    keep: int
    mode: str
    temperature: float
    rescale: bool
    threshold: float = 0.0
    of_batch: bool = False
    redundancy: Redundancy | None = None
    appended: int = 0
    masks: dict[int, Tensor] = field(default_factory=dict)
    alignments: dict[int, Tensor] = field(default_factory=dict)
    squares: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.valid = self.loss_weights > 0
        self.inverse_weights = torch.where(self.valid, 1 / self.loss_weights.clamp(min=1e-30), 0.0)
        self.zeros = torch.zeros_like(self.loss_weights)

    @property
    def batch_size(self) -> int:
        """`B`."""
        return len(self.loss_weights)

    def _support_of(self, gradients: JoinedGradients) -> SupportGradient | None:
        """The support gradient that a group's gradients are aligned with."""
        if not self.of_batch:
            return self.support
        return gradients.weighted_sum(self.inverse_weights / self.valid.sum().clamp(min=1))

    def align(self, group: int, gradients: JoinedGradients) -> Tensor:
        """Alignment `<g_i, s>` `[B]` of each sample's own mean loss, up to a common factor.

        A sample's gradient in the batch loss is its own gradient times its loss weight, so the weight is divided out.
        """
        support = self._support_of(gradients)
        if support is None:
            return self.zeros
        self.squares[group] = gradients.squares(), gradients.square_of(support)
        return gradients.dot(support) * self.inverse_weights

    def draw(self, group: int, gradients: JoinedGradients) -> Tensor:
        """Draw the mask of a group, record it, and return the factor of each sample's gradient `[B]` float32."""
        alignments = self.align(group, gradients)
        if self.redundancy is not None and group in self.squares:
            kept = self._greedy(self.redundancy, group, alignments, gradients)
        elif self.mode == "positive" and group not in self.squares:
            kept = self.valid.clone()
        else:
            kept = masking.draw(
                alignments, self.noise[group], self.valid, keep=self.keep, mode=self.mode,
                temperature=self.temperature, above=self._least(group),
            )  # fmt: skip
        self.masks[group] = kept
        self.alignments[group] = alignments
        return masking.sample_scales(kept, self.valid, self.rescale)

    def _least(self, group: int) -> Tensor | float:
        """The alignments `[B]` at the threshold: the cosine times both norms; exactly 0 for a threshold of 0."""
        if self.threshold == 0:
            return 0.0
        squares, support_square = self.squares[group]
        return self.threshold * squares.sqrt() * support_square.sqrt() * self.inverse_weights

    def _greedy(self, redundancy: Redundancy, group: int, alignments: Tensor, gradients: JoinedGradients) -> Tensor:
        """The greedily chosen samples `[B]`."""
        own = self.inverse_weights / redundancy.scale
        if self.of_batch:
            # the mean gradient of the batch has the factor of its samples
            alignments = alignments / redundancy.scale
        return masking.greedy(
            alignments / redundancy.scale, gradients.overlaps() * own * own[:, None], self.noise[group], self.valid,
            keep=self.keep, learning_rate=redundancy.learning_rate,
        )  # fmt: skip

    def masked(self, group: int, gradients: JoinedGradients) -> dict[str, Tensor]:
        """The masked gradients of a group by parameter name, from those of the samples and then of the appended rows."""
        if self.appended and self.support is not None:
            gradients.rows(slice(self.batch_size, None)).add_sum_to(self.support)
            gradients = gradients.rows(slice(0, self.batch_size))
        return gradients.weighted_sum(self.draw(group, gradients))

    def drawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """Masks, cosines with the support gradient, and log-probabilities of the first draw; all `[L, B]`."""
        groups = range(len(self.noise))
        masks, alignments = (torch.stack([by[group] for group in groups]) for by in (self.masks, self.alignments))
        log_p = masking.sampling_logits(alignments, self.valid, self.mode, self.temperature)
        if not self.squares:
            return masks, torch.zeros_like(alignments), log_p
        squares = torch.stack([self.squares[group][0] for group in groups])
        support_squares = torch.stack([self.squares[group][1] for group in groups])
        norms = (squares * support_squares[:, None]).sqrt().clamp(min=torch.finfo(squares.dtype).tiny)
        return masks, alignments * self.loss_weights / norms, log_p


class Gate:
    """Collects the per-sample gradients of one group in one backward pass and turns them into masked gradients.

    Args:
        name (`str`): name of the group for messages.
        index (`int`): position of the group among the `L` groups.
        batch (`BatchMasks`): shared state of the gates of this batch.
        parameters (`dict[str, dict[str, Tensor]]`): the parameters by block and name, in the order of the inputs of
            [`PassGate`].
    """

    def __init__(self, name: str, index: int, batch: BatchMasks, parameters: dict[str, dict[str, Tensor]]) -> None:
        self.name = name
        self.index = index
        self.batch = batch
        own = {name: parameter for block in parameters.values() for name, parameter in block.items()}
        self.shapes = {name: parameter.shape for name, parameter in own.items()}
        self.dtypes = [parameter.dtype for parameter in own.values()]
        self.widths = {
            block: sum(self.shapes[name].numel() for name in inside) for block, inside in parameters.items()
        }
        self.collected = self._nothing()

    def _nothing(self) -> JoinedGradients:
        return JoinedGradients({block: GroupGradients(width) for block, width in self.widths.items()})

    def receive(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        """Receive the `(a, d)` of one tracked module.

        Raises:
            ValueError: see [`hf_gist.gradients.hooks.check_report`].
        """
        repeated = any(name in self.collected for name in tracked.parameters.values())
        check_report(tracked, d, self.batch.batch_size, repeated, self.batch.appended)
        for attribute, name in tracked.parameters.items():
            self.collected.add(tracked.block, name, sample_gradient(tracked.kind, attribute, a, d), self.shapes[name])

    def gradients(self) -> list[Tensor | None]:
        """The masked gradient of each parameter, in order; `None` if nothing was reported for it.

        Raises:
            ValueError: if the gradients of the same group were already computed for this batch.
        """
        if self.index in self.batch.masks:
            raise ValueError(
                f"{self.name} was differentiated twice in one training step: the loss calls the model more than once. "
                f"Compute it from a single forward pass{REENTRANT_TOO if len(self.widths) > 1 else ''}."
            )
        collected = self.collected
        self.collected = self._nothing()
        names = collected.names()
        if not names:
            return [None] * len(self.shapes)
        masked = self.batch.masked(self.index, collected)
        self.batch.reported.update(names)
        return [
            masked[name].to(dtype) if name in masked else None
            for name, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]


class PassGate(torch.autograd.Function):
    """Returns the parameters unchanged; their gradients come from the gate, not from the graph."""

    @staticmethod
    def forward(ctx: Any, gate: Gate, *parameters: Tensor) -> tuple[Tensor, ...]:
        # The incoming gradients are always undefined, because the tracked modules report to the gate instead.
        ctx.set_materialize_grads(False)
        ctx.gate = gate
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *ctx.gate.gradients()
