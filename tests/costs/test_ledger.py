"""The cost ledger: operations against a counter, phases of a run, break-even, and what survives an interruption."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.costs.accounting import Sizes, training_cost
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import COSTS, CostLedger, PhaseCost, in_units
from hf_gist.errors import ReportWarning
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


CONFIG = GISTConfig(budget=0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "bert"])
def test_operations_of_training_are_those_a_counter_sees(architecture):
    """PyTorch's counter, on eager attention, which it can see into."""
    model = lora_model(architecture)
    model.get_base_model().set_attn_implementation("eager")
    rows = {"input_ids": torch.randint(3, 99, (4, 24))}
    rows["labels"] = torch.zeros(4, dtype=torch.long) if architecture == "bert" else rows["input_ids"]
    with FlopCounterMode(display=False) as counter:
        model(**rows).loss.backward()
    found = training_cost(ModelWork.of(model), Sizes(np.full(4, 24), 0), "training", 1.0)
    # of two blocks only: the first need not hand gradients back, and a pooler sees one token
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.fixture(scope="module")
def selection():
    pool, targets = as_dataset(token_rows(40, seed=1)), as_dataset(token_rows(5, seed=2))
    return select(lora_model(), pool, targets, CONFIG, data_collator=PaddingCollator(), progress=False)


def test_phases_of_a_selection(selection):
    phases = {phase.phase: phase for phase in selection.costs.phases}
    assert list(phases) == ["targets", "subspace", "scoring", "choosing"]
    tokens = sum(len(row["input_ids"]) for row in token_rows(40, seed=1))
    assert (phases["scoring"].rows, phases["scoring"].tokens) == (40, tokens)
    assert phases["scoring"].forward_flops > 0 and phases["scoring"].backward_flops > phases["scoring"].forward_flops
    assert phases["scoring"].forecast_seconds is not None and phases["scoring"].peak_memory_bytes > 2**20
    assert phases["targets"].rows == 5 and phases["subspace"].other_flops > 0


def test_cheaper_scoring_counts_fewer_operations(selection):
    pool, targets = as_dataset(token_rows(40, seed=1)), as_dataset(token_rows(5, seed=2))

    def flops(**changes):
        chosen = select(
            lora_model(),
            pool,
            targets,
            GISTConfig(budget=0.1, **changes),
            data_collator=PaddingCollator(),
            progress=False,
        )
        return {p.phase: p for p in chosen.costs.phases}

    full = {p.phase: p for p in selection.costs.phases}["scoring"]
    hidden = flops(scorer="rds_plus")["scoring"]
    assert hidden.backward_flops == 0 and hidden.forward_flops == full.forward_flops
    assert flops(score_layers=1)["scoring"].backward_flops == pytest.approx(full.backward_flops / 2)
    short = flops(scoring_cost=0.6)
    assert short["scoring"].rows < 40 and short["shortlist"].flops == 0


def test_break_even_is_where_the_costs_cross():
    ledger = CostLedger((PhaseCost("scoring", 5.0, forward_flops=150.0),), pool_pass_flops=100.0, kept_pass_flops=10.0)
    # after e epochs: 1.5 + 0.1 e against e
    assert ledger.break_even() == (
        "Selecting cost as much computation as training for 1.50 epochs on the whole pool. If you train for 2 epochs or "
        "more, selecting and then training on the selected rows is cheaper than training on the whole pool: for 2 epochs, "
        "it costs as much as 1.70 epochs on the whole pool."
    )
    training = PhaseCost("training", 3.0, forward_flops=20.0)
    assert ledger.with_phase(training).break_even() == ledger.break_even()
    assert ledger.with_phase(training).totals() == {
        "seconds": 8.0, "tokens": 0, "flops": 170.0, "selection_seconds": 5.0, "selection_flops": 150.0,
    }  # fmt: skip
    assert "saves no computation" in CostLedger(ledger.phases, 100.0, 100.0).break_even()
    assert "not known" in CostLedger(ledger.phases, 0.0, 0.0).break_even()


@pytest.mark.parametrize("cost", [0.05, 0.5, 0.9, 0.91, 1.5, 7.3])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_first_epochs_for_which_selecting_is_cheaper_are_named(cost, share):
    ledger = CostLedger((PhaseCost("scoring", 5.0, forward_flops=100 * cost),), 100.0, 100 * share)
    epochs = next(number for number in range(1, 1000) if cost + number * share < number - 1e-9)
    number = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    assert f"If you train for {number} or more," in ledger.break_even()
    assert f"for {number}, it costs as much as {cost + epochs * share:.2f} epochs" in ledger.break_even()


def test_a_ledger_comes_back_from_disk_and_a_damaged_one_is_named(selection, tmp_path):
    selection.save(tmp_path)
    assert Selection.load(tmp_path).costs == selection.costs.with_bytes(
        tmp_path,
        ["scores.parquet", "coordinates.safetensors", "subspace.safetensors", "gist_config.json", "targets.parquet"],
    )
    assert CostLedger.load(tmp_path).table()[0][0] == "phase"
    (tmp_path / COSTS).write_text('{"phases": [{"phase": "scoring"}], "pool_pass_flops": 1, "kept_pass_flops": 1}')
    with pytest.raises(ValueError, match="costs.json cannot be read"):
        CostLedger.load(tmp_path)
    (tmp_path / COSTS).unlink()
    assert CostLedger.load(tmp_path) is None and Selection.load(tmp_path).costs is None


def test_bytes_are_readable():
    assert [in_units(n) for n in (12, 2048, 3 * 2**20, 5 * 2**30)] == ["12 B", "2 KiB", "3 MiB", "5.00 GiB"]


def train(folder, epochs=3, resume=None, **more):
    callback = GISTDataSelectorCallback(GISTConfig(budget=0.2, warmup_ratio=0.2), as_dataset(token_rows(5, seed=2)))
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=epochs, report_to=more.pop("report_to", []),
        disable_tqdm=True, use_cpu=True, save_steps=3, **more,
    )  # fmt: skip
    trainer = Trainer(
        lora_model(), arguments, train_dataset=as_dataset(token_rows(60, seed=1)), data_collator=PaddingCollator(),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback.selection


def test_a_training_writes_all_phases_and_a_resumed_one_the_same_rows(tmp_path):
    _, selection = train(tmp_path)
    phases = {phase.phase: phase for phase in CostLedger.load(tmp_path / "gist").phases}
    assert list(phases) == ["warm-up", "targets", "subspace", "scoring", "choosing", "target loss", "training"]
    assert phases["warm-up"].rows == 12 and phases["training"].rows == 2 * 12
    lengths = [len(row["input_ids"]) for row in token_rows(60, seed=1)]
    assert phases["training"].tokens == pytest.approx(2 * sum(lengths[i] for i in selection.indices), abs=0)
    assert all(phase.seconds > 0 for name, phase in phases.items() if name != "choosing")
    train(tmp_path, resume=str(tmp_path / "checkpoint-6"))
    again = {phase.phase: phase for phase in CostLedger.load(tmp_path / "gist").phases}
    assert again["warm-up"] == phases["warm-up"]
    assert (again["training"].rows, again["training"].flops) == (phases["training"].rows, phases["training"].flops)


def test_trackers_see_the_selection(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    trainer, selection = train(tmp_path, report_to=["tensorboard"], logging_steps=1)
    entry = next(entry for entry in trainer.state.log_history if "gist_rows" in entry)
    assert entry["gist_rows"] == 12 and entry["gist_rank"] == selection.rank and entry["step"] == 3
    assert entry["epoch"] == 1.0
    folders = {path.parent for path in (tmp_path / "runs").rglob("events.*")}
    assert len(folders) == 1  # beside Trainer's own values
    events = accumulator.EventAccumulator(str(folders.pop())).Reload()
    (rank,) = events.Scalars("train/gist_rank")
    assert (rank.step, rank.value) == (3, selection.rank)
    assert {"gist/scores", "gist/spectrum"} <= set(events.Tags()["images"])
    assert "train/loss" in events.Tags()["scalars"]


def test_figures_that_cannot_be_drawn_do_not_end_a_training(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")

    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr("hf_gist.training.tracking.save_selection_figures", fail)
    with pytest.warns(ReportWarning, match="figures for TensorBoard were not written .OSError: no room"):
        trainer, _ = train(tmp_path, report_to=["tensorboard"], logging_steps=1)
    assert trainer.state.global_step == trainer.state.max_steps


def test_an_interrupted_first_step_leaves_no_hook_behind(tmp_path):
    model = lora_model()
    before = len(model._forward_pre_hooks)

    class Interrupted(Trainer):
        def compute_loss(self, model, *args, **kwargs):
            loss = super().compute_loss(model, *args, **kwargs)
            # the rows are scored by this loss, too
            if self.state.global_step == 3 and callback.selection is not None:
                assert len(model._forward_pre_hooks) == before  # one batch a step: it has gone by itself
                raise KeyboardInterrupt
            return loss

    callback = GISTDataSelectorCallback(GISTConfig(budget=0.2, warmup_ratio=0.2), as_dataset(token_rows(5, seed=2)))
    trainer = Interrupted(
        model,
        TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, num_train_epochs=3, report_to=[], use_cpu=True
        ),
        train_dataset=as_dataset(token_rows(60, seed=1)),
        data_collator=PaddingCollator(),
        callbacks=[callback],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert callback.selection is not None and len(model._forward_pre_hooks) == before
