"""GIST and GAST in one run: the callback chooses the rows, the trainer chooses who trains which layer."""

import pytest
from datasets import Dataset

from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.config import GASTConfig, GISTConfig
from hf_gist.trainer import GASTTrainer
from tests.gast_helpers import Recorder, arguments, build_model, collate, rows


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
