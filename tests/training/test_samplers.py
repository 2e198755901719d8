"""The order of the Trainer's own sampler is kept inside the warm-up and inside each pass, or named."""

import warnings

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_gist import GISTConfig
from hf_gist.errors import SamplerReplacedWarning
from tests.helpers.callback_runs import numbered_rows, train
from tests.helpers.tiny import token_rows


WARMUP = 3
SELECTED = 24


def long_and_short(size):
    """Rows of different lengths that carry their own number."""
    rows = token_rows(size, seed=7, low=6, high=40)
    for number, row in enumerate(rows):
        row["input_ids"][:2] = [3 + number // 90, 3 + number % 90]
    return rows


def run(tmp_path, trainer_class=Trainer, rows=None, **arguments):
    """The callback, and the rows of the warm-up and of each pass, in the order of training."""
    config = GISTConfig(budget=SELECTED, warmup_steps=WARMUP)
    trainer, callback, recorder = train(
        tmp_path, config, rows or long_and_short(80), trainer_class=trainer_class, **arguments
    )
    steps = [rows for rows in recorder.rows if rows]
    size = len(steps[0])
    passes = [steps[at : at + SELECTED // size] for at in range(WARMUP, len(steps), SELECTED // size)]
    return callback, [row for step in steps[:WARMUP] for row in step], [sum(part, []) for part in passes]


def sampled_by(make):
    """A Trainer class with this sampler of the train dataset."""

    class Sampled(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return make(self.train_dataset)

    return Sampled


class Sequential(Trainer):
    """As LLaMA-Factory's `disable_shuffling`."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


@pytest.mark.parametrize(
    ("trainer_class", "arguments"),
    [
        (Trainer, {"train_sampling_strategy": "sequential"}),
        (Sequential, {}),
        (Sequential, {"dataloader_num_workers": 2}),
    ],
    ids=str,
)
def test_the_order_of_the_pool_is_kept(tmp_path, trainer_class, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplerReplacedWarning)
        callback, warm, passes = run(tmp_path, trainer_class, **arguments)
    assert warm == sorted(warm) and len(set(warm)) == 12
    assert passes == [sorted(callback.selection.indices)] * 2


def padding(rows, order, size):
    """Padded positions of batches of rows in this order."""
    lengths = [len(rows[row]["input_ids"]) for row in order]
    return sum(
        max(part) * len(part) - sum(part) for part in (lengths[i : i + size] for i in range(0, len(order), size))
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_rows_are_grouped_by_length_inside_the_warmup_and_each_pass(tmp_path, accumulation):
    rows = long_and_short(80)
    settings = {"per_device_train_batch_size": 2 // accumulation, "gradient_accumulation_steps": accumulation}
    callback, warm, passes = run(tmp_path, rows=rows, train_sampling_strategy="group_by_length", **settings)
    sample = torch.randperm(80, generator=torch.Generator().manual_seed(callback.config.seed)).tolist()[:6]
    assert sorted(warm) == sorted(sample)
    for order in [warm, *passes]:
        assert len(rows[order[0]]["input_ids"]) == max(len(rows[row]["input_ids"]) for row in order)
    assert passes[0] != passes[1]
    shuffled = [padding(rows, [passes[0][at] for at in torch.randperm(SELECTED)], 2) for _ in range(50)]
    for order in passes:
        assert sorted(order) == sorted(callback.selection.indices)
        assert padding(rows, order, 2) < 0.8 * sum(shuffled) / len(shuffled)


@pytest.mark.parametrize("stop", [2, 3, 11])
def test_grouped_rows_are_the_same_in_a_resumed_run(tmp_path, stop):
    config = GISTConfig(budget=SELECTED, warmup_steps=WARMUP)
    settings = {"train_sampling_strategy": "group_by_length", "save_strategy": "steps", "save_steps": stop}
    _, _, whole = train(tmp_path, config, long_and_short(80), **settings)
    _, _, again = train(tmp_path, config, long_and_short(80), resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
    assert [r for r in again.rows if r] == [r for r in whole.rows if r][stop:]


def test_the_lengths_are_those_of_the_trainers_sampler(tmp_path):
    """Lengths of a column that are the opposite of the numbers of tokens."""
    rows = long_and_short(80)
    opposite = [100 - len(row["input_ids"]) for row in rows]
    grouped = sampled_by(lambda dataset: LengthGroupedSampler(4, lengths=opposite))
    _, _, passes = run(tmp_path, grouped, rows)
    for order in passes:
        assert opposite[order[0]] == max(opposite[row] for row in order)


class Curriculum(Sampler):
    """Shortest rows first."""

    def __init__(self, rows):
        self.order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


class Lengths(LengthGroupedSampler):
    """A subclass, whose order is not known."""


@pytest.mark.parametrize(
    "make",
    [
        Curriculum,
        lambda rows: WeightedRandomSampler([1.0] * len(rows), len(rows)),
        lambda rows: WeightedRandomSampler([1.0] * len(rows), 20),
        lambda rows: Lengths(4, rows),
        lambda rows: RandomSampler(rows, replacement=True),
    ],
    ids=["curriculum", "weights", "few weighted", "subclass", "with replacement"],
)
def test_another_sampler_is_named_in_a_warning(tmp_path, make):
    name = type(make(long_and_short(80))).__name__
    if name == "RandomSampler":
        name = "(Seedable)?RandomSampler"
    with pytest.warns(SamplerReplacedWarning, match=f"The sampler {name} of the train dataloader is not used"):
        callback, warm, passes = run(tmp_path, sampled_by(make))
    assert {row for order in passes for row in order} == set(callback.selection.indices)


class Half(SequentialSampler):
    """A subclass that leaves out rows."""

    def __iter__(self):
        return iter(range(len(self)))

    def __len__(self):
        return len(self.data_source) // 2


@pytest.mark.parametrize("make", [Half, lambda rows: SubsetRandomSampler(range(40))], ids=["half", "subset"])
def test_a_sampler_that_leaves_out_rows_is_refused(tmp_path, make):
    with pytest.raises(ValueError, match=r"yields 40 of 80 rows.*`train_dataset.select\(...\)`"):
        run(tmp_path, sampled_by(make))


# ---- Dataloaders ----


class OwnLoader(Trainer):
    """A plain DataLoader that accelerate does not prepare."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=4, shuffle=True, collate_fn=self.data_collator)


class OwnPreparedLoader(Trainer):
    def get_train_dataloader(self):
        loader = DataLoader(self.train_dataset, batch_size=4, shuffle=True, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


class OwnLoaderOnce(OwnLoader):
    """The same DataLoader for each `train()`."""

    def get_train_dataloader(self):
        if not hasattr(self, "kept"):
            sampler = SequentialSampler(self.train_dataset)
            self.kept = DataLoader(self.train_dataset, batch_size=4, sampler=sampler, collate_fn=self.data_collator)
        return self.kept


class PlainSubclass(BatchSampler):
    """Draws its rows as its base class does."""


class OwnBatchSampler(Trainer):
    def get_train_dataloader(self):
        sampler = PlainSubclass(RandomSampler(self.train_dataset), 4, drop_last=False)
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)


ORDERLESS = [OwnLoader, OwnPreparedLoader, OwnBatchSampler]


@pytest.mark.parametrize("trainer_class", ORDERLESS)
def test_a_dataloader_of_the_trainers_own_works(tmp_path, trainer_class):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplerReplacedWarning)
        callback, warm, passes = run(tmp_path, trainer_class)
    assert callback.run.row_check.done and len(set(warm)) == 12
    assert [sorted(order) for order in passes] == [sorted(callback.selection.indices)] * 2


@pytest.mark.parametrize("stop", [2, 5])
def test_a_dataloader_of_the_trainers_own_can_be_resumed(tmp_path, stop):
    config = GISTConfig(budget=SELECTED, warmup_steps=WARMUP)
    settings = {"trainer_class": OwnLoader, "save_strategy": "steps", "save_steps": stop}
    _, _, whole = train(tmp_path, config, long_and_short(80), **settings)
    _, _, again = train(tmp_path, config, long_and_short(80), resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
    assert [r for r in again.rows if r] == [r for r in whole.rows if r][stop:]


def test_the_same_dataloader_keeps_its_order_in_the_next_training(tmp_path):
    config = GISTConfig(budget=SELECTED, warmup_steps=WARMUP)
    trainer, callback, recorder = train(tmp_path, config, long_and_short(80), trainer_class=OwnLoaderOnce)
    recorder.rows[:] = [[]]
    trainer.train()
    after = [row for rows in recorder.rows[WARMUP:] for row in rows]
    assert after == sorted(callback.selection.indices) * 2


class OwnBatches:
    """Not a BatchSampler, and decides the rows itself, as ms-swift's."""

    def __iter__(self):
        order = torch.randperm(80).tolist()
        yield from (order[i : i + 4] for i in range(0, 80, 4))

    def __len__(self):
        return 20


class Buckets(BatchSampler):
    """A BatchSampler that does not draw from its sampler."""

    def __iter__(self):
        return iter(OwnBatches())


def batches_of(make, prepare):
    class Batched(Trainer):
        def get_train_dataloader(self):
            loader = DataLoader(
                self.train_dataset, batch_sampler=make(self.train_dataset), collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader) if prepare else loader

    return Batched


@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda rows: OwnBatches(), "OwnBatches"), (lambda rows: Buckets(RandomSampler(rows), 4, False), "Buckets")],
    ids=["no BatchSampler", "own order"],
)
def test_a_batch_sampler_of_the_trainers_own_is_refused_by_name(tmp_path, make, name, prepare):
    with pytest.raises(ValueError, match=rf"a batch sampler of its own, {name}, .*hf-gist select"):
        run(tmp_path, batches_of(make, prepare))


def test_a_dataloader_without_batches_is_refused(tmp_path):
    class Unbatched(Trainer):
        def get_train_dataloader(self):
            return DataLoader(self.train_dataset, batch_size=None, collate_fn=lambda row: self.data_collator([row]))

    with pytest.raises(ValueError, match="has no batch sampler"):
        run(tmp_path, Unbatched)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator_config": {"dispatch_batches": True}}, r"`dispatch_batches=True`.*\"dispatch_batches\": False"),
        ({"train_sampling_strategy": "batch_rebalance"}, "'batch_rebalance' fixes the rows .*'group_by_length'"),
    ],
    ids=["dispatch_batches", "batch_rebalance"],
)
def test_settings_that_decide_the_batches_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **arguments)


@pytest.mark.parametrize(
    "accelerator_config",
    [{"split_batches": True}, {"use_seedable_sampler": False}, {"even_batches": False}, {"non_blocking": True}],
    ids=str,
)
def test_other_settings_of_accelerate_make_no_difference(tmp_path, accelerator_config):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SamplerReplacedWarning)
        _, warm, passes = run(tmp_path / "a", rows=numbered_rows(80), accelerator_config=accelerator_config)
    _, plain_warm, plain_passes = run(tmp_path / "b", rows=numbered_rows(80))
    assert (warm, passes) == (plain_warm, plain_passes)
