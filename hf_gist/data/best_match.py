"""Best matches by text (BM25) between targets and pool: without a model, some milliseconds for each target row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_gist.data.rows import token_columns
from hf_gist.functional.selection.ranking import ranked, take_turns
from hf_gist.utils.imports import without_module


BATCH_ROWS = 1000


def token_ids(dataset: Any, argument: str) -> Iterator[np.ndarray]:
    """The token ids of each row, int64, without padding; the rows are read as they are asked for.

    Args:
        dataset: tokenised rows.
        argument (`str`): its name in the message.

    Raises:
        ValueError: if the rows have no token ids, because the collator tokenizes them.
    """
    available = _columns_of(dataset)
    names = token_columns(available)
    if not names:
        raise ValueError(
            f"`{argument}` has no token ids, so its rows cannot be compared by their text. Tokenise it first: the rows "
            "need `input_ids`."
        )
    masked = names == ("input_ids",) and "attention_mask" in available
    for row in _rows(dataset, [*names, *(["attention_mask"] if masked else [])]):
        yield _tokens_of(row, names, masked)


def _columns_of(dataset: Any) -> set[str]:
    """The columns that every row has."""
    if isinstance(dataset, Dataset):
        return set(dataset.column_names)
    columns = (set(dataset[at]) for at in range(len(dataset)))
    return reduce(set.intersection, columns) if len(dataset) else set()


def _rows(dataset: Any, columns: list[str]) -> Iterator[Mapping[str, Any]]:
    if not isinstance(dataset, Dataset):
        yield from (dataset[at] for at in range(len(dataset)))
        return
    for batch in dataset.select_columns(columns).with_format(None).iter(batch_size=BATCH_ROWS):
        for values in zip(*(batch[name] for name in columns), strict=True):
            yield dict(zip(columns, values, strict=True))


def _tokens_of(row: Mapping[str, Any], names: Sequence[str], masked: bool) -> np.ndarray:
    """The token ids of one row, of all `names`; with `masked` without those that its attention mask leaves out."""
    tokens = np.concatenate([np.asarray(row[name], dtype=np.int64) for name in names])
    return tokens[np.asarray(row["attention_mask"], dtype=bool)] if masked else tokens


def best_match_scores(pool: Any, targets: Any) -> Iterator[np.ndarray]:
    """The BM25 score of every row of the pool for each target row (Lucene's variant, k1 1.5, b 0.75).

    Args:
        pool: `N` tokenised rows.
        targets: `M` tokenised rows.

    Returns:
        `Iterator[np.ndarray]`: `M` arrays `[N]` float32.

    Raises:
        ValueError: see [`token_ids`].
    """
    # bm25s starts JAX where it is installed, and JAX takes three quarters of the GPU's memory; what is used here needs none
    with without_module("jax"):
        import bm25s

    wanted = [row.tolist() for row in token_ids(targets, "target_dataset")]
    rows = [row.tolist() for row in token_ids(pool, "train_dataset")]
    terms = {token: number for number, token in enumerate(sorted({token for row in rows for token in row}))}
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(([[terms[token] for token in row] for row in rows], terms), show_progress=False)
    for row in wanted:
        known = [terms[token] for token in row if token in terms]
        yield index.get_scores(known) if known else np.zeros(len(rows), dtype=np.float32)


def order_by_turns(scores: Iterable[Tensor], allowed: Tensor, limit: int | None = None) -> list[int]:
    """Each ranking in turn picks its best row among the remaining ones.

    Args:
        scores (`Iterable[Tensor]`): `M` rankings, each the scores `[N]` of all rows.
        allowed (`Tensor`): `[N]` bool, rows that may be picked.
        limit (`int`, *optional*): rows to pick; by default all that may be picked.

    Returns:
        `list[int]`: rows in the order in which they are picked; of rows with equal scores, the earlier first.
    """
    rows = allowed.nonzero().flatten()
    limit = len(rows) if limit is None else min(limit, len(rows))
    # no ranking needs more of its rows than there are rows to pick
    return take_turns([rows[ranked(own[rows])[:limit]] for own in scores], limit)


def best_match_order(pool: Any, targets: Any, allowed: Tensor, limit: int | None = None) -> list[int]:
    """Each target in turn picks its best match among the remaining rows.

    Args:
        pool: `N` tokenised rows.
        targets: `M` tokenised rows.
        allowed (`Tensor`): `[N]` bool, rows that may be picked.
        limit (`int`, *optional*): rows to pick; by default all that may be picked.

    Returns:
        `list[int]`: see [`order_by_turns`].

    Raises:
        ValueError: see [`token_ids`].
    """
    return order_by_turns(map(torch.from_numpy, best_match_scores(pool, targets)), allowed, limit)
