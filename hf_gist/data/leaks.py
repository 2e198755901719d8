"""Rows that are in the pool and in the target or evaluation set: found before a selection, so nobody trains on a test."""

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_gist.config.gist import GISTConfig
from hf_gist.data.rows import fetch_rows
from hf_gist.errors import LeakWarning


CHUNK_ROWS = 1000
TARGETS = "target_dataset"


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
    return isinstance(row, Mapping) and "input_ids" in row


def _named(evaluation: Any) -> dict[str, Any]:
    """Evaluation sets by name; `Trainer` takes several as a dict."""
    if evaluation is None:
        return {}
    if isinstance(evaluation, Mapping):
        return {f"eval_dataset[{name!r}]": rows for name, rows in evaluation.items()}
    return {"eval_dataset": evaluation}


def _comparable(others: dict[str, Any]) -> dict[str, Any]:
    """Those whose rows have tokens; of the evaluation sets without, the user is told."""
    for name, rows in others.items():
        if name != TARGETS and not _has_tokens(rows):
            warnings.warn(
                f"The rows of `{name}` have no `input_ids`, so the pool was not searched for them: pass them tokenised.",
                LeakWarning,
                stacklevel=4,
            )
    return {name: rows for name, rows in others.items() if _has_tokens(rows)}


class LeakGuard:
    """Knows the target and evaluation rows, and finds them in pools.

    Args:
        targets: tokenised targets.
        evaluation (*optional*): tokenised evaluation rows, or a dict of such sets.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): to compare words too; without it, tokens only.
    """

    def __init__(self, targets: Any, evaluation: Any = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        # a processor of images or sound has no text to compare
        self.tokenizer = tokenizer if hasattr(tokenizer, "batch_decode") else None
        others = _comparable({TARGETS: targets} | _named(evaluation))
        self.usable = bool(others)
        keys = {name: list(_keys(rows, self.tokenizer)) for name, rows in others.items()}
        self.tokens = {name: {key for key, _ in own} for name, own in keys.items()}
        self.words = {name: {key for _, key in own} for name, own in keys.items()}
        evaluated = set().union(*(own for name, own in self.words.items() if name != TARGETS))
        self.targets_in_evaluation = sum(key in evaluated for _, key in keys.get(TARGETS, []))

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
    pool: Any,
    targets: Any,
    evaluation: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quiet: bool = False,
) -> Leaks | None:
    """Look for pool rows that are target or evaluation rows, and say so.

    Args:
        pool: tokenised candidates.
        targets: see [`LeakGuard`].
        evaluation (*optional*): see [`LeakGuard`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): see [`LeakGuard`].
        quiet (`bool`): do not say so, because it will be said later.

    Returns:
        `Leaks`, *optional*: what was found; `None` if the rows have no `input_ids` to compare.
    """
    if not _has_tokens(pool):
        return None
    guard = LeakGuard(targets, evaluation, tokenizer)
    if not guard.usable:
        return None
    found = [guard.search(pool) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    if not quiet:
        warn(found[0])
    return found[0]


def excluded_rows(leaks: Leaks | None, size: int, config: GISTConfig) -> Tensor | None:
    """`[N]` bool, the rows of a pool that nothing is to be trained on; `None` if there are none."""
    if leaks is None or not config.drop_target_duplicates or not any(leaks.rows.values()):
        return None
    return leaks.mask(size)


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
