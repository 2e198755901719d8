"""Rows of a dataset: reading them, planning batches of similar length, and seeing that samples can be told apart."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset
from pyarrow import compute
from torch import Tensor, nn
from torch.utils.data import Subset

from hf_gist.lora import unwrapped


Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]

IGNORE_INDEX = -100
ROWS_PER_BATCH_WITHOUT_LENGTHS = 8


def signature_columns(model: nn.Module) -> list[str]:
    """The columns that `Trainer` would hand to the collator: the arguments of the model's forward and the labels."""
    return [*inspect.signature(unwrapped(model).forward).parameters, "label", "label_ids", "labels"]


def keep_columns(dataset: Any, columns: Sequence[str]) -> Any:
    """A `datasets.Dataset` or a list of dicts cut to some columns; anything else is returned as it is.

    Beside `labels`, a column `label` is something else: collators would take it for the labels.
    """
    names = dataset.column_names if isinstance(dataset, Dataset) else dataset[0] if isinstance(dataset, list) else ()
    if "labels" in names:
        columns = [name for name in columns if name not in ("label", "label_ids")]
    if isinstance(dataset, list):
        return [{name: value for name, value in row.items() if name in columns} for row in dataset]
    if not isinstance(dataset, Dataset):
        return dataset
    return dataset.select_columns([name for name in dataset.column_names if name in columns])


def read_column(dataset: Any, column: str, argument: str) -> list[Any]:
    """One column of a dataset.

    Raises:
        ValueError: naming `argument` if the dataset has no such column.
    """
    if isinstance(dataset, Dataset):
        if column in dataset.column_names:
            return list(dataset.with_format(None)[column])
        available = ", ".join(dataset.column_names)
    else:
        rows = [dataset[i] for i in range(len(dataset))]
        if all(isinstance(row, dict) and column in row for row in rows):
            return [row[column] for row in rows]
        available = ", ".join(rows[0]) if rows and isinstance(rows[0], dict) else "none"
    raise ValueError(f"`{argument}={column!r}` is not a column of the dataset. Available columns: {available}.")


def fetch_rows(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The rows at `indices` as a list of dicts, read in one go where the dataset can."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(list(indices))
    return [dataset[i] for i in indices]


def rows_of(dataset: Any, indices: Sequence[int]) -> Any:
    """The dataset cut to some rows, without reading them."""
    return dataset.select(indices) if isinstance(dataset, Dataset) else Subset(dataset, list(indices))


def content_digest(dataset: Any) -> str:
    """Digest of what the rows hold, so that a dataset made again in the same way is known again."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    if isinstance(dataset, Dataset):
        for batch in dataset.with_format("arrow").iter(batch_size=10_000):
            for name in batch.column_names:
                column = batch[name].combine_chunks()
                digest.update(name.encode())
                # a sink copies only the slice, where the buffers may hold more
                digest.update(pyarrow.record_batch([column], [name]).serialize())
        return digest.hexdigest()
    for index in range(len(dataset)):
        digest.update(repr(dataset[index]).encode())
    return digest.hexdigest()


def row_lengths(dataset: Any) -> np.ndarray | None:
    """Tokens of every row `[N]` int32, from `input_ids`; `None` if the rows are tokenised only by the collator."""
    if isinstance(dataset, Dataset):
        if "input_ids" not in dataset.column_names:
            return None
        column = dataset.select_columns(["input_ids"]).with_format("arrow")
        parts = [compute.list_value_length(table["input_ids"]) for table in column.iter(batch_size=10_000)]
        return np.concatenate([part.to_numpy() for part in parts]).astype(np.int32)
    rows = [dataset[i] for i in range(len(dataset))]
    if not all(isinstance(row, dict) and "input_ids" in row for row in rows):
        return None
    return np.array([len(row["input_ids"]) for row in rows], dtype=np.int32)


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
