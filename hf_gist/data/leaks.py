"""Pool rows that are also target or evaluation rows, or repeat each other, found before a selection."""

import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_gist.config.gist import GISTConfig
from hf_gist.data.copies import DIGEST, Copies, beyond_tokens, digest
from hf_gist.data.rows import fetch_rows, token_columns
from hf_gist.errors import DuplicateRowsWarning, LeakWarning


CHUNK_ROWS = 1000

TARGET_SET = "target_dataset"
"""Key of the target set in [`Leaks`] and in the manifest."""


@dataclass
class Leaks:
    """Duplicates between the pool and other sets.

    Args:
        rows (`dict[str, list[int]]`): name of the other set to the pool rows that are also in it.
        exact (`dict[str, int]`): how many of them have the same tokens; the others have only the same words.
        targets_in_evaluation (`int`): number of target rows that are also evaluation rows.
        copies (`Copies`, *optional*): the rows of the pool that repeat an earlier row of the pool.
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)
    targets_in_evaluation: int = 0
    copies: Copies | None = None

    def mask(self, size: int) -> Tensor:
        """`[N]` bool: the pool rows that are in any other set."""
        every = sorted({row for rows in self.rows.values() for row in rows})
        return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(every, dtype=torch.long), True)

    def measured(self, size: int) -> dict[str, Any]:
        """The fields of [`Measurements`] for a pool of `size` rows."""
        copied = self.copies is not None and bool(self.copies.mask.any())
        return {"leaked": self.mask(size), "copy_of": self.copies.first if self.copies and copied else None}

    def extend(self, more: "Leaks", offset: int) -> None:
        """Add the duplicates found in a chunk of the pool that starts at row `offset`."""
        for name, rows in more.rows.items():
            self.rows[name] += [offset + row for row in rows]
            self.exact[name] += more.exact[name]

    def report(self) -> dict[str, Any]:
        """The entry in the manifest."""
        found = {
            name: {"rows": rows, "exact": self.exact[name], "same_words": len(rows) - self.exact[name]}
            for name, rows in self.rows.items()
        }
        return found | {"targets_in_evaluation": self.targets_in_evaluation}


BETWEEN_WORDS = re.compile(
    r"""(?:[\s.,;:!?…·"'`´‘’‚“”„«»‹›()\[\]{}–—¡¿。、，；：！？「」『』（）]|(?<=[^\W\d_])-(?=[^\W\d_]))+"""
)
"""Spaces, the punctuation of sentences, and hyphens inside of words; signs such as + and - have a meaning."""


def normalised(text: str) -> str:
    """A text in lower case, with every run of spaces and of the punctuation of sentences as one space."""
    return BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


class RowDigests(NamedTuple):
    """Digests of one row: of its tokens and its words, and of both with what the row holds besides its tokens.

    A row is blank if it holds nothing but at most one token, as a row that a command leaves out and keeps in its place.
    """

    tokens: bytes
    words: bytes
    whole_tokens: bytes
    whole_words: bytes
    blank: bool

    @classmethod
    def of(cls, tokens: bytes, words: bytes, more: bytes, size: int) -> "RowDigests":
        """From the digests of tokens and words, the rest of the row, which most rows do not have, and its tokens."""
        if not more:
            return cls(tokens, words, tokens, words, size <= 1)
        return cls(tokens, words, digest(tokens + more), digest(words + more), False)


def _row_digests(dataset: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[RowDigests]:
    """The digests of every row; without a tokenizer, and for rows without a word, tokens stand for the words."""
    for start in range(0, len(dataset), CHUNK_ROWS):
        rows = fetch_rows(dataset, range(start, min(start + CHUNK_ROWS, len(dataset))))
        columns = token_columns(rows[0])
        ids = [[int(token) for name in columns for token in row[name]] for row in rows]
        tokens = [digest(repr(row).encode()) for row in ids]
        texts = [""] * len(rows) if tokenizer is None else tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, own, key, text in zip(rows, ids, tokens, texts, strict=True):
            words = normalised(text)
            yield RowDigests.of(key, digest(words.encode()) if words else key, beyond_tokens(row, own), len(own))


def _has_tokens(dataset: Any) -> bool:
    row = dataset[0]
    return isinstance(row, Mapping) and bool(token_columns(row))


def _evaluation_sets(evaluation: Any) -> dict[str, Any]:
    """Evaluation sets by name; like `Trainer`, this accepts one set or a dict of several.

    Raises:
        ValueError: naming a set without rows.
    """
    if evaluation is None:
        return {}
    sets = {"eval_dataset": evaluation}
    if isinstance(evaluation, Mapping):
        sets = {f"eval_dataset[{name!r}]": rows for name, rows in evaluation.items()}
    for name, rows in sets.items():
        if not len(rows):
            raise ValueError(f"`{name}` has no rows; leave it out.")
    return sets


def _tokenized_only(others: dict[str, Any]) -> dict[str, Any]:
    """The sets whose rows have `input_ids`, with a warning for each evaluation set that has none."""
    for name, rows in others.items():
        if name != TARGET_SET and not _has_tokens(rows):
            warnings.warn(
                f"The rows of `{name}` have no `input_ids`, so the pool was not searched for them. Pass tokenised rows.",
                LeakWarning,
                stacklevel=4,
            )
    return {name: rows for name, rows in others.items() if _has_tokens(rows)}


class LeakGuard:
    """Searches pools for target and evaluation rows.

    Args:
        targets: tokenised targets.
        evaluation (*optional*): tokenised evaluation rows, or a dict of such sets.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): to compare words too; without it, only tokens are compared.
    """

    def __init__(self, targets: Any, evaluation: Any = None, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        # the processor of an image or audio model may not decode tokens
        self.tokenizer = tokenizer if hasattr(tokenizer, "batch_decode") else None
        others = _tokenized_only({TARGET_SET: targets} | _evaluation_sets(evaluation))
        self.usable = bool(others)
        keys = {name: list(_row_digests(rows, self.tokenizer)) for name, rows in others.items()}
        self.tokens = {name: {key.tokens for key in own} for name, own in keys.items()}
        self.words = {name: {key.words for key in own} for name, own in keys.items()}
        evaluated = set().union(*(own for name, own in self.words.items() if name != TARGET_SET))
        self.targets_in_evaluation = sum(key.words in evaluated for key in keys.get(TARGET_SET, []))

    def nothing_found(self) -> Leaks:
        """No rows for every set, to be extended."""
        return Leaks({name: [] for name in self.words}, dict.fromkeys(self.words, 0), self.targets_in_evaluation)

    def search(self, pool: Any) -> Leaks:
        """The rows of a pool that are target or evaluation rows, or repeat an earlier row of the pool."""
        leaks, words, tokens = self.compare(pool)
        leaks.copies = Copies.of(words, tokens)
        return leaks

    def compare(self, pool: Any) -> tuple[Leaks, np.ndarray, np.ndarray]:
        """The rows that are target or evaluation rows, and the digests `[N]` of the words and tokens of all rows."""
        leaks = self.nothing_found()
        all_words = np.empty(len(pool), DIGEST)
        all_tokens = np.empty(len(pool), DIGEST)
        for row, keys in enumerate(_row_digests(pool, self.tokenizer)):
            # a blank row repeats no other
            all_words[row] = digest(f"blank {row}".encode()) if keys.blank else keys.whole_words
            all_tokens[row] = all_words[row] if keys.blank else keys.whole_tokens
            for name in self.words:
                same = keys.tokens in self.tokens[name]
                if same or keys.words in self.words[name]:
                    leaks.rows[name].append(row)
                    leaks.exact[name] += same
        return leaks, all_words, all_tokens


def find_leaks(
    pool: Any,
    targets: Any,
    evaluation: Any = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quiet: bool = False,
) -> Leaks | None:
    """Search the pool for target and evaluation rows and for rows that repeat each other, and warn about those found.

    Args:
        pool: tokenised candidates.
        targets: see [`LeakGuard`].
        evaluation (*optional*): see [`LeakGuard`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): see [`LeakGuard`].
        quiet (`bool`): return the result without a warning.

    Returns:
        `Leaks`, *optional*: the duplicates, the same on every process; `None` if the rows have no `input_ids` to compare.

    Warns:
        LeakWarning: if there are duplicates, or an evaluation set has no `input_ids`.
        DuplicateRowsWarning: if rows of the pool repeat each other.
    """
    if not _has_tokens(pool):
        return None
    guard = LeakGuard(targets, evaluation, tokenizer)
    if not guard.usable:
        return None
    box = [guard.search(pool) if PartialState().is_main_process else None]
    # broadcast the result of the main process
    broadcast_object_list(box)
    leaks = cast(Leaks, box[0])
    if not quiet:
        warn(leaks)
    return leaks


def excluded_rows(leaks: Leaks | None, size: int, config: GISTConfig) -> Tensor | None:
    """`[N]` bool: the pool rows that must not be trained on, by the settings; `None` if there are none.

    A row has the same words as a target or evaluation row only if all of its copies have, so the first of several copies
    never stands for a row that is left out.
    """
    if leaks is None:
        return None
    excluded = leaks.mask(size) if config.drop_target_duplicates else torch.zeros(size, dtype=torch.bool)
    if config.drop_pool_duplicates and leaks.copies is not None:
        excluded |= leaks.copies.mask
    return excluded if bool(excluded.any()) else None


def check_rows_left(excluded: Tensor | None) -> None:
    """Check that some row of the pool is left.

    Args:
        excluded (`Tensor`, *optional*): see [`excluded_rows`].

    Raises:
        ValueError: naming the setting.
    """
    if excluded is not None and bool(excluded.all()):
        raise ValueError(
            f"No row of the pool is left to train on: all {len(excluded):,} are also target or evaluation rows, or bad rows "
            "that were left out. Give other target or evaluation rows, or set `drop_target_duplicates` to False."
        )


def warn(leaks: Leaks) -> None:
    """Emit a [`LeakWarning`] for each set that has rows in common with the pool, and one for repeated rows."""
    if leaks.copies is not None:
        warn_copies(leaks.copies)
    for name, rows in leaks.rows.items():
        if rows:
            same = leaks.exact[name]
            warnings.warn(
                f"{len(rows)} rows of the pool are also in `{name}` ({same} with the same tokens, {len(rows) - same} "
                "with only the same words). `drop_target_duplicates` (on by default) excludes them from selection.",
                LeakWarning,
                stacklevel=3,
            )
    if leaks.targets_in_evaluation:
        warnings.warn(
            f"{leaks.targets_in_evaluation} target rows are evaluation rows, so metrics on these rows are not held-out results.",
            LeakWarning,
            stacklevel=3,
        )


def warn_copies(copies: Copies) -> None:
    """Emit a [`DuplicateRowsWarning`] if rows of the pool repeat each other."""
    found = copies.report()
    if total := sum(found.values()):
        warnings.warn(
            f"{total:,} of {len(copies.first):,} rows of the pool repeat an earlier row ({found['exact']:,} with the "
            f"same tokens, {found['same_words']:,} with only the same words). `drop_pool_duplicates` (on by default) "
            "keeps the first of each.",
            DuplicateRowsWarning,
            stacklevel=4,
        )
