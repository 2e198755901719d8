"""The state of a training with GIST: made once for each `train()` call, and nothing outside is touched before it begins."""

import pytest
from transformers import Trainer, TrainingArguments

from hf_gist import GASTConfig, GASTTrainer, GISTConfig, GISTDataSelectorCallback
from hf_gist.training import parts
from hf_gist.training.gist_run import GISTRun
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


def build(folder, trainer_class=Trainer, **extra):
    callback = GISTDataSelectorCallback(GISTConfig(budget=8, warmup_steps=2), as_dataset(token_rows(4, seed=5)))
    arguments = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=4, report_to=[], disable_tqdm=True
    )
    pool = as_dataset(token_rows(40))
    trainer = trainer_class(
        lora_model(), arguments, PaddingCollator(), train_dataset=pool, callbacks=[callback], **extra
    )
    return trainer, callback


def test_there_is_no_state_before_the_training(tmp_path):
    _, callback = build(tmp_path)
    assert callback.selection is None
    with pytest.raises(RuntimeError, match="no training has started"):
        _ = callback.run


def test_the_trainer_is_looked_up_once_for_each_training(tmp_path, monkeypatch):
    found = []

    def counted(original=parts.calling_trainer):
        found.append(original())
        return found[-1]

    monkeypatch.setattr(parts, "calling_trainer", counted)
    trainer, callback = build(tmp_path)
    trainer.train()
    assert found == [trainer]
    first = callback.run
    trainer.train()
    assert found == [trainer, trainer] and callback.run is not first


def test_making_the_state_changes_nothing_outside(tmp_path, monkeypatch):
    """Also when the training cannot begin: the dataloader and the schedule are those of the Trainer."""

    class Stopped(Exception):
        pass

    def stop(run, state):
        loader = run.parts.loader
        assert loader.batch_sampler.sampler is not run.sampler
        assert state.max_steps == 2 * len(loader) != run.plan.total_steps
        assert run.selection is None and run.initial_adapter is None
        raise Stopped

    monkeypatch.setattr(GISTRun, "begin", stop)
    trainer, _ = build(tmp_path)
    with pytest.raises(Stopped):
        trainer.train()


def test_a_gast_trainer_is_not_patched(tmp_path):
    trainer, callback = build(tmp_path, GASTTrainer, gast_config=GASTConfig(keep=2, mode="random"))
    trainer.train()
    assert len(callback.selection.indices) == 8
    assert not {"create_model_card", "push_to_hub"} & set(vars(trainer))
    stock, _ = build(tmp_path / "stock")
    stock.train()
    assert {"create_model_card", "push_to_hub"} <= set(vars(stock))
