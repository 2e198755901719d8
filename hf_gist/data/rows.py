"""Rows of a dataset: reading, selecting columns, lengths and digests."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from pyarrow import compute
from torch.utils.data import Subset


Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
"""List of rows to batch."""

IGNORE_INDEX = -100
"""Label of a token without a loss."""


def keep_columns(dataset: Any, columns: Sequence[str]) -> Any:
    """A `datasets.Dataset` or a list of dicts cut to some columns; anything else is returned unchanged.

    If there is a column `labels`, `label` and `label_ids` are dropped, because collators would use them as the labels.
    """
    if not isinstance(dataset, Dataset | list):
        return dataset
    names = dataset.column_names if isinstance(dataset, Dataset) else dataset[0]
    if "labels" in names:
        columns = [name for name in columns if name not in ("label", "label_ids")]
    if isinstance(dataset, list):
        return [{name: value for name, value in row.items() if name in columns} for row in dataset]
    return dataset.select_columns([name for name in names if name in columns])


def read_column(dataset: Any, column: str, argument: str) -> list[Any]:
    """The values of one column of a dataset.

    Args:
        dataset: a `datasets.Dataset`, or anything with `len` and an index.
        column (`str`): name of the column.
        argument (`str`): the argument that `column` was given as, for the message.

    Raises:
        ValueError: if the dataset has no such column; the message has the columns it has.
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


def read_names(dataset: Any, column: str, argument: str) -> list[str]:
    """The values of a column that names the group of each row, as text; see [`read_column`].

    Raises:
        ValueError: also if a row has none: all such rows would be one group.
    """
    values = read_column(dataset, column, argument)
    missing = [row for row, value in enumerate(values) if value is None]
    if missing:
        raise ValueError(
            f"`{argument}={column!r}`: {len(missing):,} of {len(values):,} rows have no value there, the first "
            f"in row {missing[0] + 1:,}. Give each row one, or leave these rows out."
        )
    return [str(value) for value in values]


def fetch_rows(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The rows at `indices` as a list of dicts, read in one call if the dataset has `__getitems__`."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(list(indices))
    return [dataset[i] for i in indices]


def rows_of(dataset: Any, indices: Sequence[int]) -> Any:
    """The dataset cut to the rows at `indices`, without reading them."""
    return dataset.select(indices) if isinstance(dataset, Dataset) else Subset(dataset, list(indices))


def content_digest(dataset: Any) -> str:
    """SHA-256 of the values of all rows; two datasets with equal columns and values have the same digest."""
    digest = hashlib.sha256(str(len(dataset)).encode())
    if isinstance(dataset, Dataset):
        for batch in dataset.with_format("arrow").iter(batch_size=10_000):
            for name in batch.column_names:
                column = batch[name].combine_chunks()
                digest.update(name.encode())
                # serialised, because the buffers of a sliced column may hold values outside of the slice
                digest.update(pyarrow.record_batch([column], [name]).serialize())
        return digest.hexdigest()
    for index in range(len(dataset)):
        _add_value(digest, dataset[index])
    return digest.hexdigest()


def _add_value(digest: Any, value: Any) -> None:
    """Add a value to a digest: arrays with all their elements, which their text leaves out, and pictures with all pixels."""
    if isinstance(value, Mapping):
        digest.update(f"{{{len(value)}".encode())
        for name, item in value.items():
            digest.update(repr(name).encode())
            _add_value(digest, item)
    elif isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif hasattr(value, "tobytes"):
        digest.update(f"{type(value).__name__} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}".encode())
        digest.update(value.tobytes())
    elif isinstance(value, list | tuple) and not all(isinstance(item, int | float | str) for item in value):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add_value(digest, item)
    else:
        digest.update(repr(value).encode())


PAIR = ("prompt_ids", "chosen_ids", "rejected_ids")
"""Columns of the tokens of a preference pair; the prompt may be part of both answers instead."""


def token_columns(names: Iterable[str]) -> tuple[str, ...]:
    """The columns, of those with these names, that hold the tokens of a row; none if the collator tokenizes the rows."""
    names = set(names)
    if "input_ids" in names:
        return ("input_ids",)
    return tuple(name for name in PAIR if name in names) if names >= set(PAIR[1:]) else ()


def row_lengths(dataset: Any) -> np.ndarray | None:
    """Number of tokens of every row `[N]` int32; `None` if the rows have none (the collator tokenizes them).

    The length of a preference pair is what it takes in a batch: twice that of the longer one of its two sequences.
    """
    if isinstance(dataset, Dataset):
        columns = token_columns(dataset.column_names)
        if not columns:
            return None
        tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=10_000)
        counts = [[compute.list_value_length(table[name]).to_numpy() for name in columns] for table in tables]
        return _length_in_batch(columns, [np.concatenate(parts) for parts in zip(*counts, strict=True)])
    rows = [dataset[i] for i in range(len(dataset))]
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    columns = token_columns(set.intersection(*(set(row) for row in rows)))
    lengths = [np.array([len(row[name]) for row in rows]) for name in columns]
    return _length_in_batch(columns, lengths) if columns else None


def _length_in_batch(columns: Sequence[str], lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens of every row `[N]` int32 from those of its columns."""
    if len(columns) == 1:
        return lengths[0].astype(np.int32)
    prompt = lengths[0] if len(columns) == len(PAIR) else 0
    return (2 * (prompt + np.maximum(lengths[-2], lengths[-1]))).astype(np.int32)
