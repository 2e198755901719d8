"""Pool rows that are also target or evaluation rows, found before a selection so that they are not trained on."""

import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_gist.config.gist import GISTConfig
from hf_gist.data.rows import fetch_rows
from hf_gist.errors import LeakWarning


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
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)
    targets_in_evaluation: int = 0

    def mask(self, size: int) -> Tensor:
        """`[N]` bool: the pool rows that are in any other set."""
        every = sorted({row for rows in self.rows.values() for row in rows})
        return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(every, dtype=torch.long), True)

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


def normalised(text: str) -> str:
    """A text in lower case, with every run of spaces and punctuation as one space."""
    return re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _row_digests(dataset: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[bytes, bytes]]:
    """For every row, the digest of its tokens and that of its words; without a tokenizer, the first one twice."""
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


def _evaluation_sets(evaluation: Any) -> dict[str, Any]:
    """Evaluation sets by name; like `Trainer`, this accepts one set or a dict of several."""
    if evaluation is None:
        return {}
    if isinstance(evaluation, Mapping):
        return {f"eval_dataset[{name!r}]": rows for name, rows in evaluation.items()}
    return {"eval_dataset": evaluation}


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
        self.tokens = {name: {key for key, _ in own} for name, own in keys.items()}
        self.words = {name: {key for _, key in own} for name, own in keys.items()}
        evaluated = set().union(*(own for name, own in self.words.items() if name != TARGET_SET))
        self.targets_in_evaluation = sum(key in evaluated for _, key in keys.get(TARGET_SET, []))

    def search(self, pool: Any) -> Leaks:
        """The rows of a pool that are target or evaluation rows."""
        leaks = Leaks({name: [] for name in self.words}, dict.fromkeys(self.words, 0), self.targets_in_evaluation)
        for row, (tokens, words) in enumerate(_row_digests(pool, self.tokenizer)):
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
    """Search the pool for target and evaluation rows, and warn about those found.

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
    """`[N]` bool: the pool rows that must not be trained on; `None` if none or `drop_target_duplicates` is off."""
    if leaks is None or not config.drop_target_duplicates or not any(leaks.rows.values()):
        return None
    return leaks.mask(size)


def warn(leaks: Leaks) -> None:
    """Emit a [`LeakWarning`] for each set that has rows in common with the pool."""
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
