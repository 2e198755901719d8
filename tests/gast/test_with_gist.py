"""GIST and GAST in one run: the callback chooses the rows, the trainer chooses who trains which layer."""

from unittest.mock import patch

import pytest
from datasets import Dataset

from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
from hf_gist.gast.run import GASTRun
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import Recorder, arguments, build_model, collate, rows


@pytest.mark.parametrize("after", ["continue", "restart"])
def test_a_momentum_support_survives_the_swap(after, tmp_path):
    pool, targets = Dataset.from_list(rows("llama", 64)), Dataset.from_list(rows("llama", 6, seed=9))
    config = GISTConfig(budget=16, warmup_steps=3, after_selection=after)
    trainer = GASTTrainer(
        model=build_model(),
        args=arguments(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4),
        train_dataset=pool,
        data_collator=collate,
        callbacks=[GISTDataSelectorCallback(config, targets.select_columns(["input_ids", "labels"]))],
        gast_config=GASTConfig(keep=2, support="momentum"),
    )
    supported, original = [], GASTRun.set_support
    with patch.object(
        GASTRun, "set_support", lambda run, s, step: supported.append(s is None) or original(run, s, step)
    ):
        trainer.train()
    # an optimizer without a state has no first moment: before the first step, and after a restart
    assert supported == [step == 0 or (after == "restart" and step == 3) for step in range(3 + 2 * 4)]


@pytest.mark.parametrize("column", [None, "source"])
def test_the_selection_feeds_the_masks_and_the_targets_are_the_support_set(column, tmp_path):
    pool, targets = Dataset.from_list(rows("llama", 64)), Dataset.from_list(rows("llama", 6, seed=9))
    # the callback wants the columns that the training loader has
    gist_targets = targets if column else targets.select_columns(["input_ids", "labels"])
    callback = GISTDataSelectorCallback(GISTConfig(budget=16, warmup_steps=2), gist_targets)
    trainer = GASTTrainer(
        model=build_model(),
        args=arguments(tmp_path, max_steps=-1, num_train_epochs=3, per_device_train_batch_size=4),
        train_dataset=pool,
        data_collator=collate,
        callbacks=[callback],
        gast_config=GASTConfig(keep=2, source_column=column),
        support_dataset=targets,
    )
    recorder = Recorder().attach(trainer)
    trainer.train()
    selected = {tuple(pool[index]["input_ids"]) for index in callback.selection.indices}
    assert len(selected) == 16 and len(recorder.batches) == 2 + 2 * 4
    for batch in recorder.batches[2:]:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tuple(ids[mask.bool()].tolist()) in selected
    assert all(mask.sum() == 2 for masks in recorder.masks for mask in masks.values())
    assert trainer.gast.batches == trainer.gast.supports == 10
