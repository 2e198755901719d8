"""Batches of rows of similar length, and the check that every sample is a separate row of the batch."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor


ROWS_PER_BATCH_WITHOUT_LENGTHS = 8


class Batches:
    """A sequence of batches of row numbers, stored as two arrays because lists of millions of rows need gigabytes.

    Args:
        order (`np.ndarray`): row numbers, batch after batch `[N]`.
        starts (`np.ndarray`): index in `order` at which each batch starts.
        lengths (`np.ndarray`, *optional*): tokens of every row `[N]`.
    """

    def __init__(self, order: np.ndarray, starts: np.ndarray, lengths: np.ndarray | None = None) -> None:
        self.order = order
        self.starts = starts
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> list[int]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        end = self.starts[number + 1] if number + 1 < len(self) else len(self.order)
        return self.order[self.starts[number] : end].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return (self[number] for number in range(len(self)))

    def work(self, numbers: Iterable[int]) -> int:
        """The tokens of some batches, or their rows if the lengths are not known.

        Rows are sorted by length, so the time that is left follows from the tokens, not from the rows.
        """
        if self.lengths is None:
            return sum(len(self[number]) for number in numbers)
        return sum(int(self.lengths[self[number]].sum()) for number in numbers)


def plan_batches(lengths: np.ndarray | None, size: int, tokens_per_batch: int) -> Batches:
    """Batches of rows of similar length, the longest first, so that an out-of-memory error occurs in the first batch.

    Args:
        lengths (`np.ndarray`, *optional*): tokens of every row `[N]`; without them, the rows stay in order, 8 in a batch.
        size (`int`): number of rows.
        tokens_per_batch (`int`): most tokens of a batch, padding included; a longer row is a batch by itself.

    Returns:
        `Batches`: every row exactly once.
    """
    if lengths is None:
        return Batches(np.arange(size), np.arange(0, size, ROWS_PER_BATCH_WITHOUT_LENGTHS))
    # stable: rows of equal length stay in order
    order = np.argsort(-np.asarray(lengths), kind="stable")
    starts = []
    start = 0
    while start < size:
        starts.append(start)
        start += max(1, tokens_per_batch // max(1, int(lengths[order[start]])))
    return Batches(order, np.array(starts), np.asarray(lengths))


def check_batch(batch: dict[str, Any], rows: int, what: str) -> None:
    """Check that every sample has a loss and is a separate row of the batch.

    Args:
        batch (`dict`): a collated batch.
        rows (`int`): number of samples that were collated.
        what (`str`): name of the dataset for messages.

    Raises:
        ValueError: for unlabelled, packed or padding-free batches; the message says what to change.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"The collated batches of the {what} have no `labels` tensor, so they have no loss. Add a `labels` column "
            "(-100 where no loss is wanted) or use a collator that makes one, such as `DataCollatorForSeq2Seq`."
        )
    packed = len(batch.get("input_ids", labels)) != rows or "cu_seq_lens_q" in batch or "seq_lengths" in batch
    # positions may also start again after left padding, which comes with an attention mask
    if packed or (batch.get("attention_mask") is None and _positions_restart(batch)):
        raise ValueError(
            f"The {what} is packed or padding-free: several examples share one row of a batch, so their gradients "
            "cannot be separated. Set `packing=False` and `padding_free=False` (or use a padding collator)."
        )


def _positions_restart(batch: dict[str, Any]) -> bool:
    """Whether the position ids `[B, T]` of some row start again in the middle."""
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return False
    return bool((positions[:, 1:] <= positions[:, :-1]).any())
