"""Rows of a pool that repeat an earlier row: the digests of their content, compared in arrays of 16 bytes a row."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gist.data.rows import IGNORE_INDEX


DIGEST_BYTES = 16
DIGEST = f"S{DIGEST_BYTES}"
"""numpy type of an array of digests."""

LABELS = ("labels", "label", "label_ids")
"""Columns that collators read the labels from."""

MEDIA = re.compile("pixel|image|video|audio|input_features|input_values")
"""Columns with inputs other than text: rows with the same text and another picture are different rows."""


def digest(content: bytes) -> bytes:
    """16 bytes that are the same only for the same content."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _labels(row: Mapping[str, Any], ids: list[int]) -> bytes:
    """The labels of a row; empty where they are the row's own tokens, some of them masked."""
    labels = next((row[name] for name in LABELS if row.get(name) is not None), None)
    if labels is None:
        return b""
    values = np.asarray(labels)
    tokens = np.asarray(ids)
    if values.shape == tokens.shape and bool(((values == IGNORE_INDEX) | (values == tokens)).all()):
        return b""
    return repr(values.tolist()).encode()


def _as_bytes(value: Any) -> bytes:
    if hasattr(value, "shape"):
        return np.asarray(value).tobytes()
    return value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()


def beyond_tokens(row: Mapping[str, Any], ids: list[int]) -> bytes:
    """What a row holds besides its tokens: a class or an answer of its own, pictures, sounds; mostly nothing.

    Args:
        row (`Mapping`): a tokenised row.
        ids (`list[int]`): its `input_ids`.
    """
    media = [name.encode() + _as_bytes(row[name]) for name in sorted(row) if MEDIA.search(name)]
    return b"".join([_labels(row, ids), *media])


@dataclass(frozen=True)
class Copies:
    """The rows of a pool that repeat an earlier row.

    Args:
        first (`Tensor`): `[N]` int32, the number of the first row with the same words; a row that repeats none has its
            own number.
        exact (`int`): how many rows have the same tokens as an earlier row; the others have only the same words.
    """

    first: Tensor
    exact: int

    @classmethod
    def of(cls, words: np.ndarray, tokens: np.ndarray) -> "Copies":
        """From the digests `[N]` of the words and of the tokens of every row."""
        first = torch.from_numpy(first_rows(words).astype(np.int32))
        return cls(first, int((first_rows(tokens) != np.arange(len(tokens))).sum()))

    @property
    def mask(self) -> Tensor:
        """`[N]` bool: the rows that repeat an earlier row."""
        return self.first != torch.arange(len(self.first))

    def report(self) -> dict[str, int]:
        """The entry in the manifest."""
        return {"exact": self.exact, "same_words": int(self.mask.sum()) - self.exact}


def first_rows(digests: np.ndarray) -> np.ndarray:
    """For every row the number of the first row with the same digest `[N]`."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


class SeenRows:
    """Digests of the rows of a stream so far, 16 bytes a row, in few sorted arrays of growing size."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Add the digests `[n]` of some rows; returns which of the rows are new `[n]` bool, the first of each digest."""
        unique, first = np.unique(digests, return_index=True)
        new = np.ones(len(unique), dtype=bool)
        for part in self.parts:
            at = np.searchsorted(part, unique).clip(max=len(part) - 1)
            new &= part[at] != unique
        self._keep(unique[new])
        result = np.zeros(len(digests), dtype=bool)
        result[first[new]] = True
        return result

    def _keep(self, fresh: np.ndarray) -> None:
        """Merge arrays of similar size, so that every digest is moved only a few times."""
        while self.parts and len(self.parts[-1]) <= 2 * len(fresh):
            fresh = np.sort(np.concatenate([self.parts.pop(), fresh]))
        if len(fresh):
            self.parts.append(fresh)
