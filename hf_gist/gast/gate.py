"""The gate of a group of matrices: draws their mask in the backward pass as soon as their gradients are complete.

The trainable matrices of a group (for example, of a transformer block) enter the graph through one identity autograd
Function. Autograd calls its backward once, after the backward of everything that uses its outputs. At that point, all
matrices of the group have reported their per-sample gradients to the gate. The gate draws the mask, returns the masked
sums as the gradients of the parameters, and frees the per-sample gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_gist.functional import masking
from hf_gist.functional.sample_gradients import SampleGradient, sample_gradient
from hf_gist.gradients.hooks import check_report
from hf_gist.gradients.lora import TrackedModule


@dataclass
class BatchMasks:
    """Inputs and results of the gates of one batch.

    Args:
        loss_weights (`Tensor`): `[B]`, proportional to the weight of each sample's own mean loss in the loss that is
            backpropagated; zero for a sample without a loss.
        noise (`Tensor`): `[L, B]` from [`hf_gist.functional.masking.gumbel_noise`].
        support (`dict[str, Tensor]`, *optional*): parameter name to support gradient; without it, every alignment is
            zero and `stochastic` draws uniformly.
        keep (`int`): `K`.
        mode (`str`): see [`hf_gist.functional.masking.draw`].
        temperature (`float`): see [`hf_gist.functional.masking.draw`].
        rescale (`bool`): see [`hf_gist.functional.masking.sample_scales`].
    """

    loss_weights: Tensor
    noise: Tensor
    support: dict[str, Tensor] | None
    keep: int
    mode: str
    temperature: float
    rescale: bool
    masks: dict[int, Tensor] = field(default_factory=dict)
    alignments: dict[int, Tensor] = field(default_factory=dict)
    cosines: dict[int, Tensor] = field(default_factory=dict)
    log_p: dict[int, Tensor] = field(default_factory=dict)
    reported: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.valid = self.loss_weights > 0
        self.inverse_weights = torch.where(self.valid, 1 / self.loss_weights.clamp(min=1e-30), 0.0)

    @property
    def batch_size(self) -> int:
        """`B`."""
        return len(self.loss_weights)

    def align(self, gradients: dict[str, SampleGradient]) -> tuple[Tensor, Tensor]:
        """Alignment `<g_i, s>` of each sample's own mean loss, up to a common factor, and its cosine; both `[B]`.

        A sample's gradient in the batch loss is its own gradient times its loss weight, so the weight is divided out.
        """
        dots = torch.zeros(self.batch_size, device=self.loss_weights.device)
        if self.support is None:
            return dots, dots
        squares = torch.zeros_like(dots)
        support_square = torch.zeros_like(dots[0])
        for name, gradient in gradients.items():
            support = self.support[name]
            dots += gradient.dot(support)
            squares += gradient.squares()
            support_square += support.float().square().sum()
        cosines = dots / (squares * support_square).sqrt().clamp(min=torch.finfo(dots.dtype).tiny)
        return dots * self.inverse_weights, cosines

    def draw(self, group: int, gradients: dict[str, SampleGradient]) -> Tensor:
        """Draw the mask of a group, record it, and return the factor of each sample's gradient `[B]` float32."""
        alignments, cosines = self.align(gradients)
        kept = masking.draw(
            alignments, self.noise[group], self.valid, keep=self.keep, mode=self.mode, temperature=self.temperature
        )
        self.masks[group] = kept
        self.alignments[group] = alignments
        self.cosines[group] = cosines
        self.log_p[group] = masking.sampling_logits(alignments, self.valid, self.mode, self.temperature)
        return masking.sample_scales(kept, self.valid, self.rescale)


class Gate:
    """Collects the per-sample gradients of one group in one backward pass and turns them into masked gradients.

    Args:
        name (`str`): name of the group for messages.
        index (`int`): position of the group among the `L` groups.
        batch (`BatchMasks`): shared state of the gates of this batch.
        parameters (`Sequence[str]`): parameter names, in the order of the inputs of [`PassGate`].
        dtypes (`Sequence[torch.dtype]`): their dtypes.
    """

    def __init__(
        self, name: str, index: int, batch: BatchMasks, parameters: Sequence[str], dtypes: Sequence[torch.dtype]
    ) -> None:
        self.name = name
        self.index = index
        self.batch = batch
        self.parameters = parameters
        self.dtypes = dtypes
        self.collected: dict[str, SampleGradient] = {}

    def receive(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        """Receive the `(a, d)` of one tracked module.

        Raises:
            ValueError: see [`hf_gist.gradients.hooks.check_report`].
        """
        repeated = not self.collected.keys().isdisjoint(tracked.parameters.values())
        check_report(tracked, d, self.batch.batch_size, repeated)
        for attribute, name in tracked.parameters.items():
            self.collected[name] = sample_gradient(tracked.kind, attribute, a, d).smaller()

    def gradients(self) -> list[Tensor | None]:
        """The masked gradient of each parameter, in order; `None` if nothing was reported for it.

        Raises:
            ValueError: if the gradients of the same group were already computed for this batch.
        """
        if self.index in self.batch.masks:
            raise ValueError(
                f"{self.name} was differentiated twice in one training step: the loss calls the model more than once. "
                "Compute it from a single forward pass."
            )
        collected = self.collected
        self.collected = {}
        if not collected:
            return [None] * len(self.parameters)
        scales = self.batch.draw(self.index, collected)
        self.batch.reported.update(collected)
        return [
            collected[name].weighted_sum(scales).to(dtype) if name in collected else None
            for name, dtype in zip(self.parameters, self.dtypes, strict=True)
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
