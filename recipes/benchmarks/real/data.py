"""The pool, the targets and the tests of `real_model.py`, tokenised for one model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.commands.preparing import Preparer
from hf_gist.commands.testing.choices import Choices
from hf_gist.commands.testing.tokens import read_choices
from hf_gist.data.leaks import find_leaks
from hf_gist.data.preparation.run import prepare
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import read_rows
from hf_gist.data.rows import IGNORE_INDEX, row_lengths
from hf_gist.functional.measurements import Measurements


SOURCE = "source"
"""Column of the pool with the origin of a row, and of the targets with the name of the target."""


@dataclass(frozen=True)
class Data:
    """Everything that is trained on or tested.

    Args:
        pool (`Dataset`): `N` tokenised rows.
        targets (`Dataset`): the tokenised rows of all targets.
        raw_pool (`list[dict]`): the rows of the pool with `messages`, in the same order.
        raw_targets (`list[dict]`): those of the targets.
        tests (`dict[str, Choices]`): target to its test set.
        tokenizer (`PreTrainedTokenizerBase`): that made the tokens.
    """

    pool: Dataset
    targets: Dataset
    raw_pool: list[dict]
    raw_targets: list[dict]
    tests: dict[str, Choices]
    tokenizer: PreTrainedTokenizerBase

    def of_target(self, name):
        """The tokenised rows of a target."""
        return rows_of_targets(self.targets, [name])


def rows_of_targets(targets, names):
    """The rows of some targets."""
    return targets.select([row for row, name in enumerate(targets[SOURCE]) if name in names])


def read_some(file, count=None):
    """The raw rows of a file, or `count` random ones of them in their order, the same in every run.

    Raises:
        ValueError: naming the file and the line, for a file that cannot be read.
    """
    raw = read_rows(RowSource(str(file)), file.stem)
    if count is None or count >= len(raw):
        return raw
    kept = torch.randperm(len(raw), generator=torch.Generator().manual_seed(0))[:count]
    return raw.select(sorted(kept.tolist()))


def as_tokens(rows, tokenizer, name, max_length):
    """A tokenised dataset with a column `source`, without rows that are too long, and the numbers of its rows.

    Raises:
        ValueError: naming the row, if it cannot be tokenised or its labels are not its answers.
    """
    prepared = prepare(Dataset.from_list([{"messages": row["messages"]} for row in rows]), tokenizer, None, name)
    prepared.mislabelled.check(name, 0.0)
    kept = (row_lengths(prepared.rows) <= max_length).nonzero()[0].tolist()
    if len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept)} of {len(rows)} rows have more than {max_length} tokens, left out")
    if not kept:
        raise ValueError(f"{name} has no rows.")
    tokens = prepared.rows.select_columns(["input_ids", "labels"]).select(kept).to_list()
    sources = [rows[row].get(SOURCE, name) for row in kept]
    return Dataset.from_list([row | {SOURCE: source} for row, source in zip(tokens, sources, strict=True)]), kept


def read_data(options, preparer: Preparer):
    """The pool without target and test rows, the targets, and the test sets."""
    folder = Path(options.data)
    tokenizer = preparer.tokenizer
    raw_targets = []
    tests = {}
    for name in options.targets:
        raw_targets += [row | {SOURCE: name} for row in read_some(folder / f"target_{name}.jsonl").rows.to_list()]
        tests[name] = read_choices(read_some(folder / f"test_{name}.jsonl", options.test_rows), preparer)
    targets, kept_targets = as_tokens(raw_targets, tokenizer, "targets", options.max_length)
    if without := set(options.targets) - set(targets[SOURCE]):
        raise ValueError(f"--targets {' '.join(sorted(without))}: no row has at most {options.max_length} tokens.")
    raw_pool = read_some(folder / "pool.jsonl", options.pool_rows).rows.to_list()
    pool, kept = as_tokens(raw_pool, tokenizer, "pool.jsonl", options.max_length)
    held_out = {name: test.rows.select(test.right) for name, test in tests.items()}
    leaked = find_leaks(pool, targets, held_out, tokenizer, quiet=True).mask(len(pool))
    if leaked.any():
        print(f"pool.jsonl: {int(leaked.sum())} rows are also target or test rows, left out")
    rest = (~leaked).nonzero().flatten().tolist()
    raw = [raw_pool[kept[row]] for row in rest]
    return Data(pool.select(rest), targets, raw, [raw_targets[i] for i in kept_targets], tests, tokenizer)


def file_digests(options):
    """Name of every file of the data to the digest of its content."""
    names = ["pool.jsonl", *(f"{kind}_{name}.jsonl" for name in options.targets for kind in ("target", "test"))]
    return {name: hashlib.sha256((Path(options.data) / name).read_bytes()).hexdigest()[:16] for name in names}


def label_counts(dataset):
    """Labelled tokens of every row `[N]` int64; the first token of a row is predicted from nothing."""
    return torch.tensor([sum(label != IGNORE_INDEX for label in labels[1:]) for labels in dataset["labels"]])


def without_scores(data):
    """Measurements that hold only label counts and repeated rows: all that a selection without a model needs."""
    # the columns that a model gets, as in scoring: a row with another source can be a copy
    tokens = [rows.select_columns(["input_ids", "labels"]) for rows in (data.pool, data.targets)]
    leaks = find_leaks(*tokens, None, data.tokenizer, quiet=True)
    size = len(data.pool)
    return Measurements(
        coordinates=torch.zeros(size, 0),
        norms=torch.zeros(size),
        label_tokens=label_counts(data.pool),
        singular_values=torch.zeros(0, dtype=torch.float64),
        target_coordinates=torch.zeros(len(data.targets), 0),
        target_label_tokens=label_counts(data.targets),
        target_columns={SOURCE: data.targets[SOURCE]},
        **leaks.measured(size),
    )
