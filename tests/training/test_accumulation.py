"""Gradients of accumulated batches are divided once: versions of transformers that do it twice are refused."""

import pytest
from accelerate.state import GradientState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments

from hf_gist import GASTConfig, GASTTrainer, GISTConfig, GISTDataSelectorCallback
from hf_gist.training import parts
from hf_gist.training.parts import check_accumulation
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


class DividesTwice:
    """A Trainer that gives accelerate the number of accumulated batches too, as transformers 5.2.0 to 5.5.3 do."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.gradient_accumulation_steps = self.args.gradient_accumulation_steps


class OldTrainer(DividesTwice, Trainer):
    pass


class OldGASTTrainer(DividesTwice, GASTTrainer):
    pass


@pytest.fixture(autouse=True)
def divided_once_afterwards():
    """Accelerate's state is that of the process, not of one trainer."""
    yield
    GradientState().plugin_kwargs["num_steps"] = 1


def build(folder, trainer_class, steps, **extra):
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=steps,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    return trainer_class(lora_model(), arguments, PaddingCollator(), train_dataset=as_dataset(token_rows(32)), **extra)


def callback():
    return GISTDataSelectorCallback(GISTConfig(budget=8, warmup_steps=2), as_dataset(token_rows(4, seed=5)))


REFUSED = r"gradient_accumulation_steps={0}.*{0} times too small.*transformers>=5\.5\.4"


@pytest.mark.parametrize("steps", [2, 4])
def test_gist_refuses_gradients_that_are_divided_twice(steps, tmp_path):
    trainer = build(tmp_path, OldTrainer, steps, callbacks=[callback()])
    with pytest.raises(ValueError, match=REFUSED.format(steps)):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("mode", ["stochastic", "random"])
def test_gast_refuses_gradients_that_are_divided_twice(mode, tmp_path):
    with pytest.raises(ValueError, match=REFUSED.format(3)):
        build(tmp_path, OldGASTTrainer, 3, gast_config=GASTConfig(keep=1, mode=mode))


def test_without_accumulation_nothing_is_divided_twice(tmp_path):
    selection = callback()
    build(tmp_path, OldTrainer, 1, callbacks=[selection]).train()
    assert len(selection.selection.indices) == 8


def test_deepspeed_does_not_divide(tmp_path, monkeypatch):
    """Its configuration has the number too, and accelerate's `backward` leaves the division to it."""
    trainer = build(tmp_path, OldTrainer, 2)
    with pytest.raises(ValueError, match=REFUSED.format(2)):
        check_accumulation(trainer.args)
    monkeypatch.setattr(parts.AcceleratorState(), "distributed_type", DistributedType.DEEPSPEED)
    check_accumulation(trainer.args)
