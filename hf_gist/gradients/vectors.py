"""Per-sample gradients from one forward and one backward pass, and the interface of row representations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_gist.functional.per_sample import flat_gradients, joined_sequences
from hf_gist.gradients.hooks import check_report, reporting, unreached
from hf_gist.gradients.lora import TrackedModule, find_tracked, in_last_blocks
from hf_gist.gradients.models import unwrapped
from hf_gist.gradients.modes import checkpointed_blocks
from hf_gist.gradients.row_losses.base import RowLoss


Gradients = Callable[[str, Tensor], None]
"""Receives a parameter name and its per-sample gradients `[B, numel]`."""


class _Reporter:
    """Turns the `(a, d)` of a backward pass into per-sample gradients; checks that every module reported once."""

    def __init__(
        self, tracked: Sequence[TrackedModule], gradients: Gradients, batch: dict[str, Any], loss: RowLoss
    ) -> None:
        self.tracked = tracked
        self.gradients = gradients
        self.sequences = loss.sequences
        self.scales = loss.scales(batch)
        self.expected = loss.rows(batch) * loss.sequences
        self.seen: set[TrackedModule] = set()

    def __call__(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        check_report(tracked, d, self.expected, repeated=tracked in self.seen)
        self.seen.add(tracked)
        a = joined_sequences(a, self.sequences)
        d = joined_sequences(d, self.sequences)
        for attribute, name in tracked.parameters.items():
            values = flat_gradients(tracked.kind, attribute, a, d)
            self.gradients(name, values if self.scales is None else values * self.scales[:, None])

    def finish(self) -> None:
        missing = {
            name: tracked.module.get_parameter(attribute)
            for tracked in self.tracked
            if tracked not in self.seen
            for attribute, name in tracked.parameters.items()
        }
        if missing:
            raise ValueError(
                unreached(
                    missing,
                    ", or select first with `hf-gist select`, which loads the model without such kernels, and train on "
                    "the selected rows",
                )
            )


def per_sample_backward(
    loss: RowLoss, batch: dict[str, Any], tracked: Sequence[TrackedModule], gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """One forward and one backward pass that pass each sample's gradient of every tracked parameter to `gradients`.

    Args:
        loss (`RowLoss`): of a model in eval mode; `p.grad` is not changed.
        batch (`dict`): a batch of `B` samples on the model's device, see [`RowLoss.backward`].
        tracked (`Sequence[TrackedModule]`): see [`hf_gist.gradients.lora.find_tracked`].
        gradients (`Gradients`): called with a parameter name and `[B, numel]` fp32, once per parameter.

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`, see [`RowLoss.backward`].

    Raises:
        ValueError: if a tracked module did not report exactly once.
    """
    reporter = _Reporter(tracked, gradients, batch, loss)
    with reporting(tracked, reporter):
        losses, counts = loss.backward(batch)
    reporter.finish()
    return losses, counts


class Vectors(Protocol):
    """Turns a batch into one vector per sample, in named parts: a gradient has one part per parameter."""

    sizes: dict[str, int]
    """From part name to number of values; without parts, the model is not run and batches stay on the host."""

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """Pass every part `[B, n]` fp32 to `gradients` once; returns losses `[B]` and labelled tokens `[B]`.

        Args:
            batch (`dict`): prepared by the loss, on the model's device.
            gradients (`Gradients`): receives the parts.
            loss (`RowLoss`): the loss of the pass.
        """


class GradientVectors:
    """Each sample's gradient of its own loss, for all tracked parameters (paper GIST).

    Args:
        model (`nn.Module`): a peft model.
        last_blocks (`int`, *optional*): only the adapters of the last blocks; the backward pass stops there.
    """

    def __init__(self, model: nn.Module, last_blocks: int | None = None) -> None:
        self.model = model
        self.tracked = find_tracked(model)
        self._left_out: list[nn.Parameter] = []
        if last_blocks is not None:
            kept = in_last_blocks(self.tracked, last_blocks)
            names = {name for tracked in kept for name in tracked.parameters.values()}
            self._left_out = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
            self.tracked = kept
        self.sizes = {
            name: getattr(tracked.module, attribute).numel()
            for tracked in self.tracked
            for attribute, name in tracked.parameters.items()
        }

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """See [`Vectors`]."""
        for parameter in self._left_out:
            parameter.requires_grad_(False)
        try:
            with self._without_input_gradients() if self._left_out else nullcontext():
                return per_sample_backward(loss, batch, self.tracked, gradients)
        finally:
            for parameter in self._left_out:
                parameter.requires_grad_(True)

    @contextmanager
    def _without_input_gradients(self) -> Iterator[None]:
        """Detach the input embeddings, through which the backward pass would go on to the first block.

        Checkpointing and quantisation let them require gradients (`enable_input_require_grads`). While blocks are
        checkpointed they do need them.
        """
        embeddings = cast(PreTrainedModel, unwrapped(self.model)).get_input_embeddings()
        if embeddings is None or any(block.training for block in checkpointed_blocks(self.model)):
            yield
            return
        hook = embeddings.register_forward_hook(lambda module, inputs, output: output.detach())
        try:
            yield
        finally:
            hook.remove()


class LossesOnly:
    """No vectors: a forward pass that computes the rows' losses."""

    def __init__(self) -> None:
        # with a part, although it is never passed on, the model is run on its device
        self.sizes = {"loss": 0}

    def __call__(self, batch: dict[str, Any], gradients: Gradients, loss: RowLoss) -> tuple[Tensor, Tensor]:
        """See [`Vectors`] and [`RowLoss.losses`]."""
        return loss.losses(batch)
