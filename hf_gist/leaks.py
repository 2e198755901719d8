"""Rows that are in the pool and in the target or evaluation set: found before a selection, so nobody trains on a test."""

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_gist.errors import LeakWarning
from hf_gist.rows import fetch_rows


CHUNK_ROWS = 1000


@dataclass
class Leaks:
    """Duplicates between the pool and other sets.

    Args:
        rows (`dict[str, list[int]]`): name of the other set to the pool rows that are in it too.
        exact (`dict[str, int]`): how many of them are the same token for token; the others are the same in words.
        targets_in_evaluation (`int`): target rows that are evaluation rows.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)
    targets_in_evaluation: int = 0

    def mask(self, size: int) -> Tensor:
        """`[N]` bool: the pool rows that are in any other set."""
        every = sorted({row for rows in self.rows.values() for row in rows})
        return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(every, dtype=torch.long), True)

    def extend(self, more: "Leaks", offset: int) -> None:
        """Add those of a chunk that starts at row `offset`."""
        for name, rows in more.rows.items():
            self.rows[name] += [offset + row for row in rows]
            self.exact[name] += more.exact[name]

    def report(self) -> dict[str, Any]:
        """For the manifest."""
        found = {
            name: {"rows": rows, "exact": self.exact[name], "same_words": len(rows) - self.exact[name]}
            for name, rows in self.rows.items()
        }
        return found | {"targets_in_evaluation": self.targets_in_evaluation}


def normalised(text: str) -> str:
    """The words of a text: without case, punctuation and spacing."""
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _keys(dataset: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[bytes, bytes]]:
    """For every row, digests of its tokens and of its words (of its tokens again, without a tokenizer)."""
    for start in range(0, len(dataset), CHUNK_ROWS):
        rows = fetch_rows(dataset, range(start, min(start + CHUNK_ROWS, len(dataset))))
        ids = [[int(token) for token in row["input_ids"]] for row in rows]
        tokens = [_digest(repr(row).encode()) for row in ids]
        if tokenizer is None:
            yield from zip(tokens, tokens, strict=True)
        else:
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            yield from zip(tokens, (_digest(normalised(text).encode()) for text in texts), strict=True)


def _has_tokens(dataset: Any) -> bool:
    row = dataset[0]
    return isinstance(row, dict) and "input_ids" in row


class LeakGuard:
    """Knows the target and evaluation rows, and finds them in pools.

    Args:
        targets: tokenised targets.
        evaluation (*optional*): tokenised evaluation rows.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): to compare words too; without it, tokens only.
    """

    def __init__(self, targets: Any, evaluation: Any = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        # a processor of images or sound has no text to compare
        self.tokenizer = tokenizer if hasattr(tokenizer, "batch_decode") else None
        others = {"target_dataset": targets} | ({} if evaluation is None else {"eval_dataset": evaluation})
        self.usable = all(_has_tokens(dataset) for dataset in others.values())
        keys = {name: list(_keys(rows, self.tokenizer)) if self.usable else [] for name, rows in others.items()}
        self.tokens = {name: {key for key, _ in own} for name, own in keys.items()}
        self.words = {name: {key for _, key in own} for name, own in keys.items()}
        evaluated = self.words.get("eval_dataset", set())
        self.targets_in_evaluation = sum(key in evaluated for _, key in keys["target_dataset"])

    def search(self, pool: Any) -> Leaks:
        """The rows of a pool that are known."""
        leaks = Leaks({name: [] for name in self.words}, dict.fromkeys(self.words, 0), self.targets_in_evaluation)
        for row, (tokens, words) in enumerate(_keys(pool, self.tokenizer)):
            for name in self.words:
                same = tokens in self.tokens[name]
                if same or words in self.words[name]:
                    leaks.rows[name].append(row)
                    leaks.exact[name] += same
        return leaks


def find_leaks(
    pool: Any, targets: Any, evaluation: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Leaks | None:
    """Look for pool rows that are target or evaluation rows, and say so.

    Args:
        pool: tokenised candidates.
        targets: see [`LeakGuard`].
        evaluation (*optional*): see [`LeakGuard`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): see [`LeakGuard`].

    Returns:
        `Leaks`, *optional*: what was found; `None` if the rows have no `input_ids` to compare.
    """
    guard = LeakGuard(targets, evaluation, tokenizer)
    if not guard.usable or not _has_tokens(pool):
        return None
    found = [guard.search(pool) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    warn(found[0])
    return found[0]


def warn(leaks: Leaks) -> None:
    """Say what was found."""
    for name, rows in leaks.rows.items():
        if rows:
            same = leaks.exact[name]
            warnings.warn(
                f"{len(rows)} rows of the pool are in `{name}` too ({same} token for token, {len(rows) - same} in the same "
                "words). `drop_target_duplicates` (on by default) keeps them out of the selection.",
                LeakWarning,
                stacklevel=3,
            )
    if leaks.targets_in_evaluation:
        warnings.warn(
            f"{leaks.targets_in_evaluation} target rows are evaluation rows: what is measured on those is not held out.",
            LeakWarning,
            stacklevel=3,
        )
