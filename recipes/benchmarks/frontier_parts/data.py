"""Pool, targets and test rows of `frontier.py`, tokenised as the commands do it."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from hf_gist.commands.preparing import Preparer
from hf_gist.data.best_match import best_match_order
from hf_gist.data.leaks import find_leaks
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import read_rows
from hf_gist.data.rows import IGNORE_INDEX, content_digest, row_lengths


TOKENS = ["input_ids", "labels"]
TARGET = "target"
"""Column of the target rows with the name of their target."""


@dataclass(frozen=True)
class Variant:
    """A target, and the pool that its rows are selected from: the whole one, or that without the target's source.

    Args:
        name (`str`): name in tables and files.
        target (`str`): name of the target.
        kept (`list[int]`): rows of the whole pool, `N` of them; every other row number counts in these.
        pool (`Dataset`): these rows, tokenised.
        targets (`Dataset`): `M` tokenised target rows.
    """

    name: str
    target: str
    kept: list[int]
    pool: Dataset
    targets: Dataset

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row `[N]`."""
        return row_lengths(self.pool)

    @cached_property
    def label_tokens(self) -> torch.Tensor:
        """Labelled tokens of each row `[N]` int64."""
        return labelled(self.pool)

    @cached_property
    def labels(self) -> list[tuple[int, ...]]:
        """The labelled tokens of each row themselves: its answer."""
        return [tuple(token for token in row if token != IGNORE_INDEX) for row in self.pool["labels"]]

    @cached_property
    def best_matches(self) -> list[int]:
        """All rows by BM25, each target in turn."""
        return best_match_order(self.pool, self.targets, torch.ones(len(self.pool), dtype=torch.bool))


@dataclass(frozen=True)
class Data:
    """The rows of all runs.

    Args:
        pool (`Dataset`): the whole pool, tokenised, with a column `source`.
        targets (`Dataset`): the rows of all targets, with the column `target`.
        tests (`dict[str, Dataset]`): name of a target to its test rows.
        variants (`list[Variant]`): what rows are selected for.
    """

    pool: Dataset
    targets: Dataset
    tests: dict[str, Dataset]
    variants: list[Variant] = field(default_factory=list)

    def digests(self) -> dict[str, str]:
        """What the runs depend on, by name."""
        tests = {f"test {name}": content_digest(rows) for name, rows in self.tests.items()}
        return {"pool": content_digest(self.pool), "targets": content_digest(self.targets)} | tests


def labelled(rows: Dataset) -> torch.Tensor:
    """Labelled tokens of each row, shifted as a causal model predicts them."""
    return torch.tensor([sum(token != IGNORE_INDEX for token in labels[1:]) for labels in rows["labels"]])


def named(text: str, flag: str, form: str) -> tuple[str, str]:
    """The two parts of `NAME=VALUE`.

    Raises:
        ValueError: naming the flag.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"`{flag} {text}` must be {form}.")
    return name, value


def some_of(rows: Dataset, count: int | None) -> Dataset:
    """`count` random rows in their order, the same in every run; `None` means all."""
    if count is None or count >= len(rows):
        return rows
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:count]
    return rows.select(sorted(drawn.tolist()))


class Reader:
    """Reads and tokenises files.

    Args:
        preparer (`Preparer`): tokenises rows.
    """

    def __init__(self, preparer: Preparer) -> None:
        self.preparer = preparer

    def rows(self, file: str, name: str, count: int | None = None) -> Dataset:
        """Tokenised rows with a label, and their column `source`.

        Raises:
            ValueError: naming the file, if no row has a label.
        """
        if not Path(file).is_file():
            raise ValueError(f"{name}: {file} is no file.")
        raw = some_of(read_rows(RowSource(file), name).rows, count)
        rows = self.preparer.usable(raw, name)
        rows = rows.select(labelled(rows).nonzero().flatten().tolist())
        if not len(rows):
            raise ValueError(f"{name}: no row of {file} has a labelled token.")
        sources = rows["source"] if "source" in rows.column_names else [name] * len(rows)
        columns = {"source": [str(source) for source in sources]}
        return Dataset.from_dict({column: rows[column] for column in TOKENS} | columns)


def without_leaks(pool: Dataset, targets: Dataset, tests: dict[str, Dataset], tokenizer) -> Dataset:
    """The pool without target rows, test rows, and rows that repeat an earlier one."""
    leaks = find_leaks(pool, targets, tests, tokenizer, quiet=True)
    excluded = leaks.mask(len(pool)) | leaks.copies.mask
    print(f"pool: {int(excluded.sum())} of {len(pool)} rows are target or test rows or repeat another, left out")
    return pool.select((~excluded).nonzero().flatten().tolist())


def make_variants(pool: Dataset, targets: dict[str, Dataset], without: list[str]) -> list[Variant]:
    """Every target with the whole pool, then those whose source is removed from it.

    Raises:
        ValueError: naming a target or source that does not exist.
    """
    sources = pool["source"]
    every = list(range(len(pool)))
    variants = [Variant(name, name, every, pool.select_columns(TOKENS), rows) for name, rows in targets.items()]
    for text in without:
        name, source = named(text, "--without", "NAME=SOURCE")
        if name not in targets:
            raise ValueError(f"`--without {text}`: no target has this name; targets are {', '.join(targets)}.")
        if source not in sources:
            raise ValueError(f"`--without {text}`: no row of the pool has the source {source!r}.")
        if any(variant.target == name and len(variant.kept) < len(every) for variant in variants):
            raise ValueError(f"`--without {text}`: {name} is given twice; remove one source for a target.")
        kept = [row for row in every if sources[row] != source]
        rows = pool.select(kept).select_columns(TOKENS)
        variants.append(Variant(f"{name}, source removed", name, kept, rows, targets[name]))
    return variants


def read_data(options, preparer: Preparer) -> Data:
    """Read everything that the flags name.

    Raises:
        ValueError: naming the flag or file.
    """
    reader = Reader(preparer)
    targets, tests = {}, {}
    for text in options.target:
        name, files = named(text, "--target", "NAME=TARGET.jsonl:TEST.jsonl")
        file, colon, test = files.rpartition(":")
        if not colon or name in targets or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"`--target {text}` must be NAME=TARGET.jsonl:TEST.jsonl, with another name for each, of letters, digits, "
                "`_`, `.` and `-`: files are named after it."
            )
        targets[name] = reader.rows(file, f"target {name}").select_columns(TOKENS)
        tests[name] = reader.rows(test, f"test {name}", options.test_rows).select_columns(TOKENS)
    together = concatenate_datasets([rows.add_column(TARGET, [name] * len(rows)) for name, rows in targets.items()])
    pool = reader.rows(options.pool, "pool", options.pool_rows)
    pool = without_leaks(pool, together.select_columns(TOKENS), tests, preparer.tokenizer)
    return Data(pool, together, tests, make_variants(pool, targets, options.without))
