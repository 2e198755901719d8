"""`stop_when_target_rises`: training ends at the first rise, and the best adapter is restored."""

import warnings

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_gist import GISTConfig
from hf_gist.gist.checks import check_distribution
from hf_gist.gradients.models import adapter_parameters
from tests.helpers.callback_runs import plan_losses, train
from tests.training.watch.test_target_watch import TARGETS, a_callback, loss_by_loop, series_of


SAVING = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 6}


class Adapters(TrainerCallback):
    """Keeps the adapter of every step."""

    def __init__(self):
        self.at = {}

    def keep(self, state, model):
        self.at[state.global_step] = {n: p.detach().clone() for n, p in adapter_parameters(model).items()}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.keep(state, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.keep(state, model)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("hf_gist.training.gist_run.report_training", lambda *args: None)
    monkeypatch.setattr("hf_gist.training.gist_run.report_at_end", lambda *args: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_adapter(model, expected):
    assert all(torch.equal(p, expected[name]) for name, p in adapter_parameters(model).items())


# step of the warm-up: 4, then a pass every 5 steps
CASES = {
    "after pass 2": ({0: 1.0, 4: 3.0, 9: 2.0, 14: 1.5, 19: 1.8}, 14, 19),
    "after pass 1": ({0: 9.0, 4: 3.0, 9: 2.0, 14: 2.5}, 9, 14),
    "before pass 1": ({0: 9.0, 4: 3.0, 9: 3.5}, 4, 9),
    "equal is not higher": ({0: 9.0, 4: 3.0, 9: 2.0, 14: 2.0, 19: 2.1}, 9, 19),
    "the last pass": ({0: 9.0, 4: 3.0, 9: 2.0, 14: 1.5, 19: 1.4, 24: 1.3, 29: 1.35}, 24, 29),
    "a loss that is lost": ({0: 9.0, 4: 3.0, 9: 2.0, 14: float("nan")}, 9, 14),
    "never": ({0: 9.0, 4: 3.0, 9: 2.0, 14: 1.5, 19: 1.4, 24: 1.3, 29: 1.2}, 29, 29),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_adapter_is_restored_and_saved(tmp_path, monkeypatch, capsys, name):
    losses, best, end = CASES[name]
    plan_losses(monkeypatch, losses)
    adapters = Adapters()
    trainer, callback, _ = train(
        tmp_path, callback=a_callback(stop_when_target_rises=True), extra=[adapters], num_train_epochs=6
    )
    assert trainer.state.global_step == end
    assert_adapter(trainer.model, adapters.at[best])
    trainer.save_model(str(tmp_path / "final"))
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    for key, values in adapters.at[best].items():
        assert torch.equal(saved[key.replace(".default", "")], values)
    found = callback.selection.manifest["target_loss"]
    assert found["final_step"] == best
    assert ("was restored" in capsys.readouterr().out) is (name != "never")
    assert not (tmp_path / "gist" / "best_adapter.safetensors").exists()


def test_the_real_loss_of_the_restored_adapter(tmp_path):
    trainer, callback, _ = train(
        tmp_path, callback=a_callback(stop_when_target_rises=True), learning_rate=0.03, num_train_epochs=8
    )
    series = series_of(callback)
    found = callback.selection.manifest["target_loss"]
    final = next(p for p in series.points if p.step == found["final_step"])
    assert final.loss == min(p.loss for p in series.points[1:])
    assert loss_by_loop(trainer.model, TARGETS) == pytest.approx(final.losses, rel=1e-5)


@pytest.mark.parametrize("name", ["after pass 2", "before pass 1"])
def test_after_a_restart_passes_start_from_the_initial_adapter(tmp_path, monkeypatch, name):
    losses, best, end = CASES[name]
    losses = losses | {0: losses[4]}
    plan_losses(monkeypatch, losses | {4: 0.1})
    adapters = Adapters()
    callback = a_callback(stop_when_target_rises=True, after_selection="restart")
    trainer, _, _ = train(tmp_path, callback=callback, extra=[adapters], num_train_epochs=6)
    assert trainer.state.global_step == end
    # the warmed-up adapter, with the lowest loss of all, is not continued from
    assert_adapter(trainer.model, adapters.at[0 if best == 4 else best])


@pytest.mark.parametrize(("step", "lost"), [*((step, False) for step in (2, 4, 9, 12, 14, 17, 19)), (19, True)])
def test_resumed(tmp_path, monkeypatch, step, lost):
    """Also from the checkpoint of the step at which the training ended, and from one that a kill left incomplete."""
    losses, best, end = CASES["after pass 2"]
    plan_losses(monkeypatch, losses)
    adapters = Adapters()
    whole, first, _ = train(tmp_path, callback=a_callback(stop_when_target_rises=True), extra=[adapters], **SAVING)
    if lost:
        # only the last checkpoint can be incomplete
        assert step == end
        artifacts = tmp_path / f"checkpoint-{step}" / "gist"
        # as the files of the output folder are before the run ends
        (artifacts / "best_adapter.safetensors").rename(tmp_path / "gist" / "best_adapter.safetensors")
        (artifacts / "target_loss.json").unlink()
    trainer, again, _ = train(
        tmp_path,
        callback=a_callback(stop_when_target_rises=True),
        resume=str(tmp_path / f"checkpoint-{step}"),
        **SAVING,
    )
    assert series_of(again) == series_of(first)
    assert_adapter(trainer.model, adapters.at[best])
    # Trainer trains a step before it can be told to end
    assert trainer.state.global_step == (end + 1 if step == end else end)


def test_off_by_default(tmp_path, monkeypatch):
    plan_losses(monkeypatch, CASES["after pass 1"][0] | {19: 3.0})
    trainer, callback, _ = train(tmp_path, callback=a_callback(), num_train_epochs=4)
    assert trainer.state.global_step == 19 and callback.run.target_watch.best is None


def test_refused_combinations(tmp_path):
    both = {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps", "save_steps": 5}
    from tests.helpers import callback_runs

    class Evaluating(callback_runs.Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, eval_dataset=kwargs["train_dataset"])

    with pytest.raises(ValueError, match="stop_when_target_rises=True.*load_best_model_at_end=True"):
        callback = a_callback(stop_when_target_rises=True)
        train(tmp_path, callback=callback, trainer_class=Evaluating, eval_steps=5, **both)
    with pytest.raises(ValueError, match="`stop_when_target_rises=True` does not work under DeepSpeed"):
        check_distribution(DistributedType.DEEPSPEED, GISTConfig(stop_when_target_rises=True))
