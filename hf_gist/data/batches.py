"""Batches of rows of similar length, and the check that every sample is a separate row of the batch."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.utils.guides import guide


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


def single_rows(lengths: np.ndarray | None, size: int) -> Batches:
    """Batches of one row each, in order; see [`plan_batches`]."""
    return Batches(np.arange(size), np.arange(size), lengths)


def check_batch(batch: dict[str, Any], rows: int, what: str) -> None:
    """Check that every sample has a loss and is a separate row of the batch, also by the values of a batch on the host.

    Args:
        batch (`dict`): a collated batch.
        rows (`int`): number of samples that were collated.
        what (`str`): name of the dataset for messages.

    Raises:
        ValueError: for unlabelled, packed or padding-free batches; the message says what to change.
    """
    check_shape(batch, rows, what)
    if batch["labels"].device.type == "cpu":
        check_packing(batch, what)


def check_shape(batch: dict[str, Any], rows: int, what: str) -> None:
    """The part of [`check_batch`] that reads no values."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"The collated batches of the {what} have no `labels` tensor, so they have no loss. Add a `labels` column "
            "(-100 where no loss is wanted) or use a collator that makes one, such as `DataCollatorForSeq2Seq`."
        )
    size = len(batch.get("input_ids", labels))
    if size != rows:
        raise packed_error(what, f"{size} rows for {rows} samples")
    key = next((key for key in PACKING_KEYS if batch.get(key) is not None), None)
    if key is not None:
        raise packed_error(what, f"the batch has `{key}`")


PACKING_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_lengths", "seq_idx")
"""Entries that collators add to a batch of packed rows."""


def packed_error(what: str, reason: str) -> ValueError:
    """The error for rows that hold several examples; `reason` is what shows it."""
    return ValueError(
        f"The {what} is packed or padding-free ({reason}): several examples share one row of a batch, so their "
        "gradients cannot be separated. Set `packing=False` and `padding_free=False` (or use a padding collator); to "
        "train on packed rows, select first with `hf-gist select`, and pack the selected rows (recipes/sft/packed.yaml). "
        f"See {guide('errors', 'packed-rows')}."
    )


def check_packing(batch: dict[str, Any], what: str) -> None:
    """Check by its values that no row of a batch holds several examples; on a GPU, this waits for the device.

    Args:
        batch (`dict`): a collated batch with labels.
        what (`str`): name of the dataset for messages.

    Raises:
        ValueError: naming what shows that it does.
    """
    labels = batch["labels"]
    given = batch.get("attention_mask")
    if isinstance(given, dict):
        # one mask for each kind of attention layer
        given = given.get("full_attention")
    mask = given if isinstance(given, Tensor) else None
    if bool(torch.as_tensor(batch.get("packed", False)).any()):
        raise packed_error(what, "the column `packed` is true")
    if mask is not None and mask.dim() == 2 and bool((mask > 1).any()):
        # of LLaMA-Factory and axolotl: 1 for the tokens of the first example, 2 for those of the second
        raise packed_error(what, "the attention mask numbers the examples of a row")
    if mask is not None and mask.dim() > 2 and _has_separate_parts(mask, labels):
        raise packed_error(what, "the attention mask has blocks that do not see each other")
    if _positions_restart(batch, mask, labels):
        raise packed_error(what, "the position ids start again within a row")


def _splits(labels: Tensor, boundaries: Tensor) -> bool:
    """Whether a row has labelled tokens before and from one of its boundaries `[B, T]` on."""
    if labels.shape != boundaries.shape:
        # those of a classifier have one label for a row, those of a decoder are not the tokens with the boundaries
        return labels.dim() == 2 and bool(boundaries.any())
    labelled = (labels != IGNORE_INDEX).cumsum(1)
    before = labelled - (labels != IGNORE_INDEX).long()
    return bool((boundaries & (before > 0) & (labelled[:, -1:] > before)).any())


def _has_separate_parts(mask: Tensor, labels: Tensor) -> bool:
    """Whether a mask `[B, 1, T, T]` or `[B, T, T]` cuts a row: from some token on, no token sees those before it.

    Masks with a bidirectional prefix or a sliding window do not. Padding may see only itself, so there must be labels
    on both sides of the cut.

    Args:
        mask (`Tensor`): true or 1 where a query (row) sees a key (column); or added to the scores, 0 where it does.
        labels (`Tensor`): `[B, T]`.
    """
    if mask.shape[-1] != mask.shape[-2]:
        return False
    seen = mask[:, 0] if mask.dim() == 4 else mask
    if seen.is_floating_point() and not bool((seen > 0).any()):
        seen = seen > torch.finfo(seen.dtype).min / 2
    # the first key that each query sees, and the first that it or any query after it sees
    size = seen.shape[-1]
    keys = torch.arange(size, device=seen.device).expand_as(seen)
    first = torch.where(seen.bool(), keys, size).amin(-1)
    first_from_here = first.flip(1).cummin(1).values.flip(1)
    return _splits(labels, (first_from_here >= keys[:, 0]) & (keys[:, 0] > 0))


def _positions_restart(batch: dict[str, Any], mask: Tensor | None, labels: Tensor) -> bool:
    """Whether the position ids `[B, T]` of some row start again in the middle, between tokens that are no padding."""
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] < 2:
        return False
    restarts = positions[:, 1:] <= positions[:, :-1]
    if mask is None:
        return bool(restarts.any())
    if mask.dim() != 2:
        return _splits(labels, torch.nn.functional.pad(restarts, (1, 0)))
    # positions may also start again after left padding
    return mask.shape == positions.shape and bool((restarts & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)).any())
