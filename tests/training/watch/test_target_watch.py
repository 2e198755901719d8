"""The target loss during training: exact, without an effect on the training, and the same after a resume."""

import copy
import json
import math
import random
import re
import warnings

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.costs.ledger import CostLedger
from hf_gist.errors import NoEffectWarning, TargetLossUnknownWarning, TargetLossWarning
from hf_gist.training.watch.target_watch import METRIC, TargetWatch
from tests.helpers.callback_runs import train
from tests.helpers.pairs import preference_rows, preference_trainer
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


TARGETS = token_rows(6, seed=5)


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    """Figures take most of the time of these short trainings."""
    if request.node.name != "test_records":
        monkeypatch.setattr("hf_gist.training.gist_run.report_training", lambda *args: None)
        monkeypatch.setattr("hf_gist.training.gist_run.report_at_end", lambda *args: None)


def plan_means(monkeypatch, *means):
    """Mean losses in place of the measured ones, in order; the rows differ by 0.01."""
    planned = iter(means)
    original = TargetWatch._losses

    def losses(self, state):
        facts = original(self, state)
        facts.losses[:] = next(planned) + 0.01 * torch.arange(len(facts.losses))
        return facts

    monkeypatch.setattr(TargetWatch, "_losses", losses)


def a_callback(targets=TARGETS, **config):
    settings = {"budget": 20, "warmup_steps": 4, "scoring_tokens_per_batch": 64}
    return GISTDataSelectorCallback(GISTConfig(**(settings | config)), as_dataset(targets))


def loss_by_loop(model, rows):
    """Each row alone through the model's own loss, in eval mode."""
    was = model.training
    model.eval()
    with torch.no_grad():
        losses = [float(model(**PaddingCollator()([row])).loss) for row in rows]
    model.train(was)
    return losses


class LossByLoop(TrainerCallback):
    """Measures the targets by a plain loop at every step."""

    def __init__(self, rows):
        self.rows = rows
        self.losses = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.losses[state.global_step] = loss_by_loop(model, self.rows)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.losses[state.global_step] = loss_by_loop(model, self.rows)


def series_of(callback):
    return callback.run.target_watch.series


def logged(trainer):
    return [(e["step"], e[METRIC]) for e in trainer.state.log_history if METRIC in e]


# ---- Exactness ----


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_the_loss_of_a_plain_loop(tmp_path, holdout):
    loop = LossByLoop(TARGETS)
    trainer, callback, _ = train(tmp_path, callback=a_callback(target_holdout=holdout), extra=[loop])
    series = series_of(callback)
    assert series.held_out is bool(holdout) and len(series.rows) == (3 if holdout else 6)
    events = [(p.step, p.event, p.passes) for p in series.points]
    assert events[:2] == [(0, "before the first step", None), (4, "after the warm-up", None)]
    assert events[2:] == [(9, "after pass 1", 1.0), (14, "after pass 2", 2.0)]
    for point in series.points:
        expected = [loop.losses[point.step][row] for row in series.rows]
        assert point.losses == pytest.approx(expected, rel=1e-5)
        assert point.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert logged(trainer) == [(p.step, p.loss) for p in series.points]


@pytest.mark.figures
def test_records(tmp_path, capsys):
    _, callback, _ = train(tmp_path, callback=a_callback(target_holdout=0.5))
    points = series_of(callback).points
    manifest = json.loads((tmp_path / "gist" / "manifest.json").read_text())
    assert manifest["target_loss"] == json.loads(json.dumps(callback.selection.manifest["target_loss"]))
    found = manifest["target_loss"]
    assert [p["loss"] for p in found["points"]] == [p.loss for p in points]
    assert found["held_out"] and found["rows"] == manifest["held_out_targets"]["rows"] == series_of(callback).rows
    said = f"target loss {points[0].loss:.3f} to {points[-1].loss:.3f} (after the warm-up {points[1].loss:.3f})"
    assert found["sentence"].startswith(said) and "3 held-out target rows" in found["sentence"]
    assert capsys.readouterr().out.count(f"GIST: {said}") == 1
    costs = CostLedger.load(tmp_path / "gist")
    phase = next(p for p in costs.phases if p.phase == "target loss")
    assert phase.rows == 4 * 3 and phase.seconds > 0 and phase.forward_flops > 0 and phase.backward_flops == 0
    tokens = sum(len(TARGETS[row]["input_ids"]) for row in found["rows"])
    assert phase.tokens == 4 * tokens
    others = sum(p.flops for p in costs.phases if p.phase not in ("target loss", "training"))
    assert costs.totals()["selection_flops"] == pytest.approx(others)
    page = (tmp_path / "report.html").read_text()
    assert "Target loss during training" in page and "target rows held out" in page
    assert (tmp_path / "gist" / "target_loss.png").is_file()


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_pairs_are_measured_by_the_trainers_loss(tmp_path, kind):
    pytest.importorskip("trl", reason="preference trainers are TRL's")
    config = GISTConfig(budget=6, warmup_steps=2, scoring_tokens_per_batch=96)
    callback = GISTDataSelectorCallback(config, preference_rows(5, first=500))
    trainer = preference_trainer(kind, tmp_path, preference_rows(23), [callback], num_train_epochs=3, logging_steps=1)
    trainer.train()
    points = series_of(callback).points
    assert len(points) == 4 and all(map(math.isfinite, (p.loss for p in points)))
    if kind == "dpo":
        # before the first step the model is its own reference
        assert points[0].losses == pytest.approx([math.log(2)] * 5, rel=1e-5)
    rows = callback.run.target_watch.rows
    for at, expected in enumerate(points[-1].losses):
        batch = trainer._prepare_inputs(trainer.data_collator([rows[at]]))
        trainer.model.eval()
        with torch.no_grad():
            assert float(trainer.compute_loss(trainer.model, batch)) == pytest.approx(expected, rel=1e-4)
    # the trainer's own metrics are logged with every loss, and with no target loss
    for entry in trainer.state.log_history:
        if "loss" in entry or METRIC in entry:
            assert any(name.startswith("rewards") or name == "accuracy" for name in entry) is ("loss" in entry)


def test_groups(tmp_path):
    targets = [row | {"task": "ab"[number % 2]} for number, row in enumerate(TARGETS)]
    _, callback, _ = train(tmp_path, callback=a_callback(targets, target_group_column="task"))
    point = series_of(callback).points[-1]
    found = callback.selection.manifest["target_loss"]["points"][-1]
    assert found["groups"] == {name: pytest.approx(sum(point.losses[at::2]) / 3) for at, name in enumerate("ab")}


# ---- No effect on the training ----


@pytest.mark.parametrize("settings", [{}, {"after_selection": "restart"}, {"strategy": "random"}])
def test_training_is_bit_equal_without_it(tmp_path, monkeypatch, settings):
    def run(folder):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = lora_model(lora_dropout=0.3)
        monkeypatch.setattr("tests.helpers.callback_runs.lora_model", lambda: model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer, callback, recorder = train(tmp_path / folder, callback=a_callback(**settings))
        states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        flags = [module.training for module in model.modules()]
        losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
        weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        return (losses, recorder.rows, recorder.rates, callback.selection.indices, flags, states), weights

    watched, weights = run("watched")
    monkeypatch.setattr(TargetWatch, "_measure", lambda *args, **kwargs: None)
    alone, others = run("alone")
    assert watched == alone and len(watched[0]) == 14
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# ---- Resuming ----


@pytest.mark.parametrize("settings", [{}, {"after_selection": "restart"}, {"target_holdout": 0.4}])
@pytest.mark.parametrize("step", [2, 4, 6, 9, 11])
def test_a_resumed_run_continues_the_series(tmp_path, step, settings):
    saving = {"save_strategy": "steps", "save_steps": 1}
    _, whole, _ = train(tmp_path, callback=a_callback(**settings), **saving)
    before = whole.selection.manifest["target_loss"]
    _, resumed, _ = train(
        tmp_path, callback=a_callback(**settings), resume=str(tmp_path / f"checkpoint-{step}"), **saving
    )
    assert series_of(resumed) == series_of(whole)
    assert resumed.selection.manifest["target_loss"] == before


def test_killed_between_a_checkpoint_and_its_series(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    _, whole, _ = train(tmp_path, callback=a_callback(), **saving)
    (tmp_path / "checkpoint-9" / "gist" / "target_loss.json").unlink()
    _, resumed, _ = train(tmp_path, callback=a_callback(), resume=str(tmp_path / "checkpoint-9"), **saving)
    assert series_of(resumed) == series_of(whole)


def test_a_checkpoint_without_a_series(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1}
    train(tmp_path, callback=a_callback(), **saving)
    for path in tmp_path.rglob("target_loss.json"):
        path.unlink()
    with pytest.warns(TargetLossUnknownWarning, match="checkpoint-6.* has no target_loss.json"):
        trainer, _, _ = train(tmp_path, callback=a_callback(), resume=str(tmp_path / "checkpoint-6"), **saving)
    assert trainer.state.global_step == 14 and len(logged(trainer)) == 2


@pytest.mark.parametrize("settings", [{}, {"target_holdout": 0.4}])
def test_resumed_with_as_many_other_target_rows(tmp_path, settings):
    saving = {"save_strategy": "steps", "save_steps": 6}
    train(tmp_path, callback=a_callback(**settings), **saving)
    other = a_callback(token_rows(6, seed=6), **settings)
    with pytest.warns(TargetLossUnknownWarning, match="target_loss.json is of other target rows"):
        train(tmp_path, callback=other, resume=str(tmp_path / "checkpoint-6"), **saving)
    assert "target_loss" not in other.selection.manifest


@pytest.mark.parametrize(
    ("steps", "settings", "warned"),
    [
        (1, {"warmup_steps": 5}, True),
        (2, {"warmup_steps": 5}, False),
        (1, {}, False),
        (4, {"learning_rate": 0.0}, True),
    ],
)
def test_a_warmup_that_changes_nothing_is_said(tmp_path, steps, settings, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(tmp_path, callback=a_callback(warmup_steps=steps), **settings)
    said = [str(w.message) for w in caught if issubclass(w.category, NoEffectWarning)]
    assert any(f"changed nothing: after step {steps}," in text for text in said) is warned


@pytest.mark.parametrize("rate", [1e20, 1e30])
def test_a_warmup_that_diverges_is_named_and_not_the_targets(tmp_path, rate):
    with pytest.raises(
        RuntimeError,
        match=f"The warm-up diverged: .* after step 4, .*Lower `learning_rate`, which is {re.escape(f'{rate:g}')}",
    ):
        train(tmp_path, callback=a_callback(), learning_rate=rate)


# ---- The end ----


class StopsAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step
        return control


@pytest.mark.parametrize("step, event", [(11, "after 1.4 passes"), (9, "after pass 1"), (2, "at the end")])
def test_training_that_ends_early(tmp_path, step, event, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, callback, _ = train(tmp_path, callback=a_callback(), extra=[StopsAt(step)])
    last = series_of(callback).points[-1]
    assert (last.step, last.event) == (step, event) and logged(trainer)[-1] == (step, last.loss)
    assert "GIST: target loss" in capsys.readouterr().out


def test_the_model_that_is_loaded_at_the_end_is_measured(tmp_path):
    class Evaluated(LossByLoop):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_quality"] = -state.global_step

    told = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append(dict(logs))

    loop = Evaluated(TARGETS)
    best = {"metric_for_best_model": "quality", "greater_is_better": True, "load_best_model_at_end": True}
    saving = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    from tests.helpers import callback_runs

    class Evaluating(callback_runs.Trainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, eval_dataset=as_dataset(token_rows(4, seed=8)))

    settings = {"trainer_class": Evaluating, **best, **saving}
    with pytest.warns(
        NoEffectWarning, match="loaded the checkpoint of step 4, from before the first step on selected"
    ):
        trainer, callback, _ = train(tmp_path, callback=a_callback(), extra=[loop, Tracker()], **settings)
    points = series_of(callback).points
    assert [p.event for p in points][-1] == "at the end"
    assert points[-1].losses == pytest.approx(loop.losses[4], rel=1e-5) and points[-1].loss != points[-2].loss
    assert callback.selection.manifest["target_loss"]["final_step"] == 14
    # the trackers were told of all but this point: their own `on_train_end` came first
    assert [one for one in told if "gist_target_loss" in one][-1]["gist_target_loss"] == points[-2].loss
    assert trainer.state.log_history[-1]["gist_target_loss"] == points[-1].loss


# ---- Warnings ----


def test_a_warning_if_the_loss_rises(tmp_path, monkeypatch):
    plan_means(monkeypatch, 1.0, 1.1, 1.2, 1.4)
    with pytest.warns(TargetLossWarning, match="rose to 1.4250 after pass 2: from 1.0250 before the") as caught:
        _, callback, _ = train(tmp_path, callback=a_callback())
    text = str(next(w.message for w in caught if w.category is TargetLossWarning))
    assert "from 1.1250 after the warm-up (+0.3000, standard error 0.0000, 6 rows)" in text
    ways = ("lower learning rate", "fewer passes", "source_shares", "not training for this target")
    assert all(words in text for words in ways)
    assert callback.selection.manifest["target_loss"]["warning"] == text


def test_no_warning_if_the_loss_stays_or_falls(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", TargetLossWarning)
        _, callback, _ = train(tmp_path / "same", callback=a_callback(), learning_rate=1e-6)
        assert callback.selection.manifest["target_loss"]["warning"] is None
        # the targets themselves are in the pool
        rows = [row for row in TARGETS for _ in range(20)]
        config = {"drop_target_duplicates": False, "drop_pool_duplicates": False}
        _, callback, _ = train(tmp_path / "own", rows=rows, callback=a_callback(**config))
    points = series_of(callback).points
    assert points[-1].loss < points[0].loss


def test_a_rise_after_the_warm_up_alone(tmp_path, monkeypatch):
    """Below the beginning, but above the end of the warm-up."""
    plan_means(monkeypatch, 3.0, 1.0, 1.5, 2.0)
    with pytest.warns(TargetLossWarning, match="after the warm-up") as caught:
        train(tmp_path, callback=a_callback())
    text = str(next(w.message for w in caught if w.category is TargetLossWarning))
    assert "before the first step (" not in text and "The lowest was 1.0250 after the warm-up" in text


def test_rows_without_a_loss(tmp_path):
    targets = [dict(row) for row in TARGETS]
    targets[2] = targets[2] | {"labels": [-100] * len(targets[2]["labels"])}
    with pytest.warns(TargetLossUnknownWarning, match="1 of 6 target rows have no labelled token.*: 2"):
        _, callback, _ = train(tmp_path, callback=a_callback(targets))
    assert series_of(callback).rows == [0, 1, 3, 4, 5]


def test_a_loss_that_cannot_be_measured(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no loss without gradients")

    monkeypatch.setattr("hf_gist.training.watch.target_watch.collect_losses", broken)
    with pytest.warns(TargetLossUnknownWarning, match="no loss without gradients"):
        trainer, callback, _ = train(tmp_path / "a", callback=a_callback())
    assert trainer.state.global_step == 14 and "target_loss" not in callback.selection.manifest
    with pytest.raises(RuntimeError, match="no loss without gradients"):
        train(tmp_path / "b", callback=a_callback(stop_when_target_rises=True))


# ---- Running metrics of the trainer ----


@pytest.mark.parametrize(
    "metrics",
    [
        {"train": {"tokens": [1, 2]}, "eval": {}},
        {"accuracy": 0.5, "f1": 0.25},
        {"train": [1.0, 2.0]},
        [0.5, 0.25],
        0.5,
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["_metrics", "custom_metrics"])
def test_running_metrics_of_any_shape_are_as_before(tmp_path, name, metrics):
    class WithMetrics(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            setattr(self, name, copy.deepcopy(metrics))

    trainer, callback, _ = train(tmp_path, callback=a_callback(), trainer_class=WithMetrics)
    assert getattr(trainer, name) == metrics
    assert len(logged(trainer)) == len(series_of(callback).points)
