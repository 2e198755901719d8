"""Batches of rows of similar length, and the check that their samples can be told apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


ROWS_PER_BATCH_WITHOUT_LENGTHS = 8


class Batches(Sequence[list[int]]):
    """Batches of row numbers, kept as two arrays: millions of rows would be gigabytes of lists.

    Args:
        order (`np.ndarray`): row numbers, batch after batch `[N]`.
        starts (`np.ndarray`): where in it each batch starts.
    """

    def __init__(self, order: np.ndarray, starts: np.ndarray) -> None:
        self.order, self.starts = order, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> list[int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        end = self.starts[number + 1] if number + 1 < len(self) else len(self.order)
        return self.order[self.starts[number] : end].tolist()


def plan_batches(lengths: np.ndarray | None, size: int, tokens_per_batch: int) -> Batches:
    """Batches of rows of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths (`np.ndarray`, *optional*): tokens of every row; without them, rows are taken in order, a few at a time.
        size (`int`): number of rows.
        tokens_per_batch (`int`): padded tokens a batch may have; a longer row is a batch of its own.

    Returns:
        `Batches`: every row exactly once.
    """
    if lengths is None:
        return Batches(np.arange(size), np.arange(0, size, ROWS_PER_BATCH_WITHOUT_LENGTHS))
    # stable: rows of equal length stay in order
    order = np.argsort(-np.asarray(lengths), kind="stable")
    starts, start = [], 0
    while start < size:
        starts.append(start)
        start += max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
    return Batches(order, np.array(starts))


def check_batch(batch: dict[str, Any], rows: int, what: str) -> None:
    """Refuse batches whose samples cannot be told apart.

    Raises:
        ValueError: for packed, padding-free or unlabelled batches, saying what to change.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"The collated batches of the {what} have no `labels` tensor, so they have no loss. Add a `labels` column "
            "(-100 where no loss is wanted) or use a collator that makes one, such as `DataCollatorForSeq2Seq`."
        )
    ids = batch.get("input_ids", labels)
    positions = batch.get("position_ids")
    mask = batch.get("attention_mask")
    restarts = False
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1:
        steps = positions[:, 1:] <= positions[:, :-1]
        restarts = bool((steps & mask[:, 1:].bool() & mask[:, :-1].bool() if mask is not None else steps).any())
    if len(ids) != rows or "cu_seq_lens_q" in batch or "seq_lengths" in batch or (restarts and mask is None):
        raise ValueError(
            f"The {what} is packed or padding-free: several examples share one row of a batch, and their gradients "
            "cannot be told apart. Set `packing=False` and `padding_free=False` (or use a padding collator)."
        )
