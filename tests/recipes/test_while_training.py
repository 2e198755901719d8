"""`while_training.py`: a whole run on a tiny model, its costs, and what is kept."""

import json
from pathlib import Path

import pytest

from hf_gist.costs.ledger import CostLedger
from tests import ROOT
from tests.helpers.words import save_model, varied, write_rows


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "benchmarks"))
    import while_training

    return while_training


@pytest.fixture
def arguments(tmp_path):
    save_model(tmp_path / "model")
    write_rows(tmp_path / "pool.jsonl", varied(80, 1))
    write_rows(tmp_path / "target.jsonl", varied(5, 3))
    write_rows(tmp_path / "test.jsonl", varied(6, 20))
    flags = [
        "--model", tmp_path / "model", "--pool", tmp_path / "pool.jsonl", "--output", tmp_path / "out",
        "--target", f"one={tmp_path / 'target.jsonl'}:{tmp_path / 'test.jsonl'}",
        "--budget", "0.2", "--passes", "2", "--batch_size", "4", "--seeds", "0", "1",
    ]  # fmt: skip
    return [str(flag) for flag in flags]


def kept(arguments):
    folder = Path(arguments[5]) / "runs"
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.iterdir())}


def test_a_run(script, arguments):
    from while_training_parts.methods import METHODS

    text = script.main(arguments[:-1])
    runs = kept(arguments)
    assert len(runs) == 1 + 2 * len(METHODS) - 1 and "Missing" not in text
    trained = [run for run in runs.values() if run["method"] != "untrained"]
    # a warm-up of 16 rows and two passes over 16 rows, in batches of 4
    assert {(run["steps"], run["samples"]) for run in trained if run["table"] == "samples"} == {(12, 48)}
    once = runs["samples-once-one-seed0.json"]
    # the most that a step costs: eight samples, and four target rows as support
    step = 1.1 * (8 + 4) / 80
    for run in trained:
        if run["table"] == "cost" and run["method"] == "again":
            # its two selections share the price of one
            assert 0 < run["selection_passes"] <= once["selection_passes"]
        elif run["table"] == "cost":
            assert abs(run["passes"] - once["passes"]) <= step / 2
    assert len({run["loss"] for run in trained}) > 8
    assert text.count("| untrained |") == 2 and text.count("| selected once |") == 2
    assert (Path(arguments[5]) / "while_training.md").read_text(encoding="utf-8") == text


def test_costs_are_those_of_the_ledger_without_the_measured_loss(script, arguments):
    from while_training_parts.methods import SAMPLES, Planned

    script.main([*arguments[:-1], "--minutes", "0"])
    experiment = make_experiment(script, [*arguments[:-1], "--seeds", "0"])
    found = experiment._train(Planned(SAMPLES, "again", "one", 0))
    ledger = CostLedger.load(experiment.folder / "trainer" / "gist")
    assert {phase.selection for phase in ledger.phases} >= {1, 2}
    names = {phase.phase for phase in ledger.phases}
    assert {"warm-up", "training", "target loss", "scoring"} <= names
    measuring = sum(phase.flops for phase in ledger.phases if phase.phase == "target loss")
    whole = ledger.totals()["flops"]
    assert found["passes"] == pytest.approx((whole - measuring) / ledger.pool_pass_flops)
    # a warm-up and two passes over a fifth of the pool, and two selections
    assert 0.5 < found["passes"] - found["selection_passes"] + 0.2 < 0.7
    assert sum(found["sources"].values()) == 16


def make_experiment(script, arguments):
    from frontier_parts.data import read_data
    from while_training_parts.runs import Experiment

    options = script.parse(arguments)
    tokenizer, _ = script.load_tokenizer(options.model, None, False)
    base = script.load_base(options.model, None, "float32", False).eval()
    return Experiment(options, read_data(options, script.Preparer(tokenizer, 64)), base, tokenizer)


def test_a_step_costs_its_rows(script, arguments):
    from while_training_parts.costs import Costs

    experiment = make_experiment(script, arguments)
    variant = experiment.variants["one"]
    from hf_gist.config.warmup import WarmupSettings
    from hf_gist.training.loading import fresh_lora

    costs = Costs(fresh_lora(experiment.base, WarmupSettings(), 0), variant)
    assert costs.of_step(len(variant.pool), 0) == pytest.approx(1)
    assert costs.of_step(0, 5) == pytest.approx(5 / 80, rel=0.2)


def test_finished_runs_are_kept_and_other_settings_refused(script, arguments, monkeypatch):
    from while_training_parts import runs

    text = script.main([*arguments, "--minutes", "0"])
    assert "Missing runs: 23." in text and kept(arguments) == {}
    monkeypatch.setattr(
        runs.Experiment, "_train", lambda self, planned: {"loss": 1.0, "steps": 1, "samples": 4, "passes": 1.0}
    )
    script.main([*arguments[:-1]])
    assert len(kept(arguments)) == 12
    assert len([run for run in kept(arguments).values() if run["seed"] == 0]) == 11
    monkeypatch.setattr(runs.Experiment, "_train", lambda self, planned: pytest.fail("trained again"))
    script.main([*arguments[:-1]])
    with pytest.raises(SystemExit, match="batch_size"):
        script.main([*arguments, "--batch_size", "8"])


def test_only_the_same_cost_may_be_refused(script, arguments, monkeypatch):
    """A price that does not pay is a result; anything else stops the run."""
    from while_training_parts import runs

    def refuse(self, planned):
        raise ValueError("pays for nothing")

    monkeypatch.setattr(runs.Experiment, "_train", refuse)
    with pytest.raises(SystemExit, match="pays for nothing"):
        script.main(arguments)

    def only_again(self, planned):
        if planned.table == "cost" and planned.method == "again":
            raise ValueError("pays for nothing")
        return {"loss": 1.0, "steps": 1, "samples": 4, "passes": 1.0}

    monkeypatch.setattr(runs.Experiment, "_train", only_again)
    text = script.main(arguments)
    assert "Not run: selected again after each pass, one, seed 1: pays for nothing" in text
