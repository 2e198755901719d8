"""Rows scored by a loss of whole batches, such as a trainer's, that is a weighted sum of the rows' own losses.

The loss of a batch of one row is the row's own loss `ℓ_b`. With `L = Σ_b w_b ℓ_b`, the gradient that reaches a matrix
for row `b` is `w_b g_b`. Which `w_b` a loss has is found out on two rows, whose gradients in a batch of both must be
parallel to those of each alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.batches import check_batch
from hf_gist.data.rows import Collator
from hf_gist.gradients.lora import TrackedModule
from hf_gist.gradients.losses import count_labels, labelled_tokens, with_positions
from hf_gist.gradients.models import model_device, to_device, unwrapped
from hf_gist.gradients.modes import SIXTEEN_BITS
from hf_gist.gradients.row_losses.base import RowWeights
from hf_gist.gradients.vectors import per_sample_backward
from hf_gist.utils.guides import guide


WEIGHTS = "_row_weights"
"""Key of a prepared batch: its [`RowWeights`]."""

TOLERANCE = 5e-3
TOLERANCE_IN_SIXTEEN_BITS = 0.1
"""Largest difference between a row's gradients in a batch and alone, relative to their norm."""


# ---- Weights of the rows in the loss of a batch ----


def _share(counts: Tensor) -> Tensor:
    return counts.float() / counts.sum().clamp(min=1)


def _all_labels(batch: dict[str, Any], counts: Tensor) -> Tensor:
    labels = batch.get("labels")
    return _share(count_labels(labels) if isinstance(labels, Tensor) and labels.dim() > 1 else counts)


def _all_tokens(batch: dict[str, Any], counts: Tensor) -> Tensor:
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return torch.ones(len(counts)) / len(counts)
    return _share(mask.flatten(1).sum(1).unflatten(0, (-1, len(counts))).sum(0))


SUM = "sum over rows"
LABELLED_TOKENS = "mean over labelled tokens"

WEIGHTINGS: dict[str, Callable[[dict[str, Any], Tensor], Tensor]] = {
    LABELLED_TOKENS: lambda batch, counts: _share(counts),
    "mean over rows": lambda batch, counts: torch.ones(len(counts)) / len(counts),
    SUM: lambda batch, counts: torch.ones(len(counts)),
    "mean over labels": _all_labels,
    "mean over tokens": _all_tokens,
}
"""From a collated batch and the labelled tokens of its rows `[B]` to `w_b` `[B]`, which is 1 for a batch of one row."""


def row_counts(model: nn.Module, batch: dict[str, Any], sequences: int) -> Tensor:
    """Labelled tokens of each row `[B]` int64: of a preference pair those of both answers; 1 without token labels."""
    if isinstance(mask := batch.get("completion_mask"), Tensor):
        return mask[:, 1:].sum(1).unflatten(0, (sequences, -1)).sum(0)
    if isinstance(batch.get("labels"), Tensor):
        return labelled_tokens(model, batch)
    return torch.ones(len(batch["input_ids"]) // sequences, dtype=torch.long)


def _with_positions(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """See [`with_positions`]; the inputs of an encoder-decoder model are padded on the right."""
    base: Any = unwrapped(model)
    return batch if base.config.is_encoder_decoder else with_positions(base, batch)


@dataclass(frozen=True)
class WeightedLoss:
    """A loss of whole batches, for scoring by row; see [`hf_gist.gradients.row_losses.base.RowLoss`].

    Args:
        name (`str`): for manifest, report and card.
        model (`nn.Module`): the model that the loss is computed with.
        compute (`Callable`): from a batch on the device and its number of labelled tokens to the loss.
        sequences (`int`): sequences of the model's batch for each row.
        weighting (`str`): key of `WEIGHTINGS`.
    """

    name: str
    model: nn.Module
    compute: Callable[[dict[str, Any], int], Tensor]
    sequences: int = 1
    weighting: str = SUM

    def rows(self, batch: dict[str, Any]) -> int:
        """See [`RowLoss`]."""
        return len(batch[WEIGHTS].counts) if WEIGHTS in batch else len(self.counts(batch))

    def check(self, batch: dict[str, Any], rows: int, what: str) -> None:
        """See [`RowLoss`].

        Raises:
            ValueError: if the rows of the batch are not those of the dataset.
        """
        if self.sequences == 1:
            check_batch(batch, rows, what)
        elif len(batch["input_ids"]) != rows * self.sequences:
            raise ValueError(
                f"The collator made {len(batch['input_ids'])} sequences of {rows} rows of the {what}; {self.name} "
                f"needs {self.sequences} for each row, so gradients cannot be separated. Use the trainer's own collator."
            )

    def counts(self, batch: dict[str, Any]) -> Tensor:
        """See [`RowLoss`]."""
        return row_counts(self.model, batch, self.sequences)

    def prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See [`RowLoss`]."""
        counts = self.counts(batch)
        weights = WEIGHTINGS[self.weighting](batch, counts)
        scales = torch.where(weights > 0, 1 / weights, 0.0)
        return {**_with_positions(self.model, batch), WEIGHTS: RowWeights(counts, scales)}

    def scales(self, batch: dict[str, Any]) -> Tensor | None:
        """See [`RowLoss`]."""
        return None if self.weighting == SUM else batch[WEIGHTS].scales

    @torch.no_grad()
    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See [`RowLoss`]."""
        counts = batch[WEIGHTS].counts
        if len(counts) != 1:
            raise ValueError(f"{self.name} has one loss for a batch of {len(counts)} rows; give it one row at a time.")
        return self._of_batch(batch).detach().reshape(1), counts

    def _of_batch(self, batch: dict[str, Any]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != WEIGHTS}
        return self.compute(inputs, int(batch[WEIGHTS].counts.sum()))

    def backward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """See [`RowLoss`]; the losses of single rows are not known."""
        counts = batch[WEIGHTS].counts
        loss = self._of_batch(batch)
        loss.backward()
        return torch.full((len(counts),), math.nan, device=loss.device), counts


# ---- Verification ----


def _gradients(loss: WeightedLoss, batch: dict[str, Any], tracked: Sequence[TrackedModule]) -> Tensor:
    """The gradients of the rows of a collated batch as vectors `[B, n]`, weighted as in the loss of the batch."""
    parts: list[Tensor] = []
    batch = to_device(replace(loss, weighting=SUM).prepared(batch), model_device(loss.model))
    per_sample_backward(
        replace(loss, weighting=SUM), batch, tracked, lambda name, values: parts.append(values.clone())
    )
    return torch.cat(parts, dim=1)


def _weight(together: Tensor, alone: Tensor, tolerance: float) -> float | None:
    """`w_b` from a row's gradients in a batch and alone `[n]`; `None` if they are not parallel."""
    ratio = (together @ alone) / (alone @ alone)
    fits = (together - ratio * alone).norm() <= tolerance * together.norm()
    return float(ratio) if bool(fits) and ratio > 0 else None


def verified(
    loss: WeightedLoss,
    collator: Collator,
    rows: Sequence[dict[str, Any]],
    tracked: Sequence[TrackedModule],
    way_out: str,
) -> WeightedLoss:
    """The loss with the weighting that is found on some rows, each compared with a batch of one.

    Args:
        loss (`WeightedLoss`): its weighting is not used.
        collator (`Collator`): collates the rows.
        rows (`Sequence[dict]`): two rows of the pool, if possible with different numbers of labelled tokens.
        tracked (`Sequence[TrackedModule]`): modules whose gradients are compared.
        way_out (`str`): the last sentence of an error, what to do instead.

    Raises:
        ValueError: if a row's gradient depends on the other rows of its batch, or the weights follow no known rule.
    """
    sixteen = any(parameter.dtype in SIXTEEN_BITS for parameter in loss.model.parameters())
    autocast = torch.is_autocast_enabled(model_device(loss.model).type)
    tolerance = TOLERANCE_IN_SIXTEEN_BITS if sixteen or autocast else TOLERANCE
    batch = collator([dict(row) for row in rows])
    together = _gradients(loss, batch, tracked)
    found = []
    for number, row in enumerate(rows):
        alone = _gradients(loss, collator([dict(row)]), tracked)[0]
        if not alone.any():
            raise ValueError(f"{loss.name} has no gradient for a single row, so it cannot be split by row. {way_out}")
        found.append(_weight(together[number], alone, tolerance))
    if None in found:
        raise ValueError(
            f"{loss.name} mixes the rows of a batch: the gradient of a row depends on the other rows, or is random. "
            f"{way_out} See {guide('frameworks', 'a-loss-of-the-trainers-own')}."
        )
    weights = torch.tensor(found)
    counts = loss.counts(batch)
    for name, weighting in WEIGHTINGS.items():
        if torch.allclose(weights, weighting(batch, counts).float().cpu(), rtol=tolerance):
            return replace(loss, weighting=name)
    raise ValueError(
        f"{loss.name} weights the rows of a batch by a rule that is not known: {weights.tolist()} for rows with "
        f"{counts.tolist()} labelled tokens. {way_out}"
    )
