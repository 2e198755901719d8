"""Rows that are nearest to a target by their mean input embeddings: found without running the model.

It decides which rows are scored where not all can be. `recipes/README.md` has what was measured: it finds more of the
best rows than BM25, and as many as the hidden states after the first blocks.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_gist.data.best_match import order_by_turns, token_ids
from hf_gist.gradients.models import unwrapped, whole


CHUNK_TOKENS = 1 << 18
"""Tokens whose embeddings are averaged at once."""

ADVICE = "leave out `scoring_cost` (in `hf-gist compare` the method `nearest`)"


def embedding_weights(model: nn.Module) -> Tensor:
    """The input embeddings `[V, d]` of a language model, gathered if they are sharded.

    Raises:
        ValueError: for a model without a table of input embeddings.
    """
    table = cast(PreTrainedModel, unwrapped(model)).get_input_embeddings()
    weights = getattr(table, "weight", None)
    if not isinstance(weights, Tensor) or weights.ndim != 2 or not weights.is_floating_point():
        raise ValueError(
            f"Rows are compared by their input embeddings, and {type(table).__name__} has none that can be read: "
            f"{ADVICE}."
        )
    return whole(weights)


def _chunks(dataset: Any, argument: str) -> Iterator[list[np.ndarray]]:
    """The token ids of consecutive rows of about `CHUNK_TOKENS` tokens: those of a large pool do not fit in memory."""
    chunk: list[np.ndarray] = []
    size = 0
    for row in token_ids(dataset, argument):
        chunk.append(row)
        size += len(row)
        if size >= CHUNK_TOKENS:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def mean_embeddings(rows: list[np.ndarray], weights: Tensor) -> Tensor:
    """The mean of the embeddings of each row's tokens; 0 for a row without tokens.

    Args:
        rows (`list[np.ndarray]`): token ids of `n` rows.
        weights (`Tensor`): input embeddings `[V, d]`.

    Returns:
        `Tensor`: `[n, d]` float32, on the device of the weights.
    """
    ids = torch.from_numpy(np.concatenate(rows)).to(weights.device)
    starts = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    return functional.embedding_bag(ids, weights, torch.from_numpy(starts).to(weights.device), mode="mean").float()


@torch.no_grad()
def nearest_cosines(model: nn.Module, pool: Any, targets: Any) -> Tensor:
    """Cosine of the mean embedding of every row with that of every target.

    The mean over the pool is subtracted first, since all rows share most of it.

    Args:
        model (`nn.Module`): a language model; only its input embeddings are read.
        pool: `N` tokenised rows.
        targets: `M` tokenised rows.

    Returns:
        `Tensor`: `[M, N]` float32.

    Raises:
        ValueError: for rows without token ids, or a model without input embeddings or with some that are not finite.
    """
    weights = embedding_weights(model)
    sums = [mean_embeddings(rows, weights).sum(0, dtype=torch.float64) for rows in _chunks(pool, "train_dataset")]
    center = torch.stack(sums).sum(0) / len(pool)
    if not torch.isfinite(center).all():
        raise ValueError(
            "The input embeddings of a token of the pool are not finite, so rows cannot be compared by them. Check the "
            f"weights of the model, or {ADVICE}."
        )
    wanted = torch.cat([mean_embeddings(rows, weights) for rows in _chunks(targets, "target_dataset")])
    directions = functional.normalize(wanted - center, dim=1)
    found = []
    for rows in _chunks(pool, "train_dataset"):
        means = functional.normalize(mean_embeddings(rows, weights) - center, dim=1)
        found.append((directions @ means.T).float().cpu())
    return torch.cat(found, dim=1)


def nearest_order(model: nn.Module, pool: Any, targets: Any, allowed: Tensor, limit: int | None = None) -> list[int]:
    """Each target in turn picks the remaining row with the largest cosine of their mean embeddings.

    Args:
        model (`nn.Module`): see [`nearest_cosines`].
        pool: `N` tokenised rows.
        targets: `M` tokenised rows.
        allowed (`Tensor`): `[N]` bool, rows that may be picked.
        limit (`int`, *optional*): rows to pick; by default all that may be picked.

    Returns:
        `list[int]`: rows in the order in which they are picked; of rows with equal cosines, the earlier first.

    Raises:
        ValueError: see [`nearest_cosines`].
    """
    return order_by_turns(nearest_cosines(model, pool, targets), allowed, limit)
