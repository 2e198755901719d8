"""`reselect_every`: rows are chosen again at the end of passes, by the adapter as it is then."""

import itertools
import json
import math
import shutil

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection
from hf_gist.costs.ledger import CostLedger
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.selection.draws import random_share, seed_of_selection
from hf_gist.gist.history import load_history
from hf_gist.training.gist_run import GISTRun
from hf_gist.training.steps.plan import Segment, StepPlan, plan_steps
from tests.helpers.callback_runs import expected_rates, numbered_rows, plan_losses, train
from tests.helpers.choosing_again import plain_run
from tests.helpers.tiny import PaddingCollator, as_dataset, patterned_rows, token_rows


POOL = numbered_rows(60)
TARGETS = token_rows(4, seed=5)
WARMUP = 3
EVERY_PASS = {"budget": 8, "warmup_steps": WARMUP, "reselect_every": 1}


def run(folder, config=None, passes=3, **settings):
    """A training with `1 + passes` epochs over a pool of 60 rows, two steps a pass."""
    config = config or GISTConfig(**EVERY_PASS)
    return train(folder, config, settings.pop("rows", POOL), num_train_epochs=1 + passes, **settings)


def trained(recorder):
    return [rows for rows in recorder.rows if rows]


def losses_of(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


# ---- The same as a plain loop ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "passes"),
    [
        ({}, 3),
        ({"reselect_every": 2}, 5),
        ({"budget": 10}, 2.5),
        ({"after_selection": "restart"}, 3),
        ({"strategy": "round_robin", "score": "cosine", "sample_from_top": 3.0}, 3),
        ({"strategy": "random"}, 3),
        ({"strategy": "length_matched_random"}, 2),
        ({"scorer": "less"}, 3),
        ({"scorer": "less", "after_selection": "restart"}, 2),
        ({"scorer": "rds_plus"}, 2),
    ],
    ids=str,
)
def test_rows_losses_and_rates_are_those_of_a_plain_loop(tmp_path, config, passes):
    config = GISTConfig(**EVERY_PASS | config)
    trainer, callback, recorder = run(tmp_path, config, passes)
    plain = plain_run(POOL, TARGETS, config, passes)
    assert [record.indices for record in callback.run.history] == plain.selections
    assert trained(recorder) == plain.steps
    assert list(losses_of(trainer).values()) == pytest.approx(plain.losses, rel=1e-5)
    assert recorder.rates == pytest.approx(plain.rates)
    if config.scorer != "rds_plus":
        # the hidden states of this model hardly change, so that RDS+ selects the same rows
        assert len({tuple(sorted(rows)) for rows in plain.selections}) > 1


def test_a_pass_is_over_the_selection_of_its_moment(tmp_path):
    """The fast check of the loop above: rows, epochs, schedule and what is written."""
    trainer, callback, recorder = run(tmp_path)
    history = callback.run.history
    steps = trained(recorder)
    assert [record.step for record in history] == [3, 5, 7] and [record.passes for record in history] == [0, 1, 2]
    assert trainer.state.global_step == trainer.state.max_steps == len(steps) == 9
    for record in history:
        seen = [row for rows in steps[record.step : record.step + 2] for row in rows]
        assert sorted(seen) == sorted(record.indices)
    assert len({tuple(sorted(record.indices)) for record in history}) > 1
    assert recorder.rates == pytest.approx(expected_rates(9))
    assert recorder.epochs == pytest.approx([1 / 3, 2 / 3, 1, 1.5, 2, 2.5, 3, 3.5, 4])
    assert trainer.state.num_train_epochs == 4
    assert callback.selection.indices == history[-1].indices and callback.selection.number == 3


@pytest.mark.parametrize(("every", "passes"), [(1, 3.5), (2, 4), (2, 4.5), (3, 5)])
def test_when_rows_are_chosen_again(tmp_path, every, passes):
    """After every few passes, but never after the last one."""
    _, callback, recorder = run(
        tmp_path, GISTConfig(**EVERY_PASS | {"reselect_every": every, "strategy": "random"}), passes
    )
    due = [WARMUP + 2 * number for number in range(0, math.ceil(passes), every)]
    assert [record.step for record in callback.run.history] == due
    assert len(trained(recorder)) == WARMUP + 2 * passes


@pytest.mark.parametrize("max_steps", [7, 10])
def test_max_steps_is_kept(tmp_path, max_steps):
    trainer, callback, recorder = run(tmp_path, max_steps=max_steps)
    assert trainer.state.global_step == trainer.state.max_steps == max_steps
    assert [record.step for record in callback.run.history] == list(range(WARMUP, max_steps, 2))
    assert recorder.rates == pytest.approx(expected_rates(max_steps))


# ---- Selections of different sizes ----


def test_a_plan_of_segments():
    plan = plan_steps(100, 4, 25, [(5, 20), (15, 12), (21, 33)], 7, -1, 7)
    assert plan.segments == (Segment(5, 0, 5), Segment(15, 2, 3), Segment(21, 4, 9))
    assert plan.total_steps == 21 + 2 * 9
    ends = [step for step in range(1, 40) if plan.ends_pass(step)]
    assert ends == [5, 10, 15, 18, 21, 30, 39]
    assert [plan.epoch(step) for step in ends] == [1, 2, 3, 4, 5, 6, 7]
    assert [plan.epoch_end(step) for step in (0, 5, 9, 10, 15, 20, 21, 38)] == [5, 10, 10, 15, 18, 21, 30, 39]
    assert plan.next_selection(None) is None and plan.next_selection(2) is None
    assert plan.next_selection(1) == 30 and plan.selection_steps(1) == [5, 15, 21, 30]


@pytest.mark.parametrize("total", [6, 7, 8])
def test_the_end_of_the_run_is_never_a_selection(total):
    plan = StepPlan(100, 4, 3, (Segment(3, 0, 2),), total, 25)
    assert plan.next_selection(2) == (7 if total == 8 else None)


@pytest.mark.parametrize("lengths", itertools.product([1, 3], [2, 5], [1, 4]))
@pytest.mark.parametrize("epochs", [4, 3.4])
def test_epochs_of_any_plan_follow_one_another(lengths, epochs):
    steps = [(4, 4 * lengths[0])]
    for before, length in itertools.pairwise(lengths):
        steps.append((steps[-1][0] + before, 4 * length))
    plan = plan_steps(400, 4, 100, steps, epochs, -1, 4)
    ends = [0]
    while ends[-1] < plan.total_steps:
        ends.append(plan.epoch_end(ends[-1]))
    assert ends[1:-1] == [step for step, _ in steps]
    assert plan.total_steps == ends[-2] + math.ceil((epochs - 3) * lengths[-1] - 1e-9)
    assert plan.epoch(plan.total_steps) == pytest.approx(epochs, abs=1 / lengths[-1])
    increasing = [plan.epoch(step) for step in range(plan.total_steps + 1)]
    assert increasing == sorted(increasing)


@pytest.mark.parametrize("after_selection", ["continue", "restart"])
def test_selections_of_a_token_budget_have_passes_of_their_own_lengths(tmp_path, after_selection):
    settings = {"budget": 0.2, "budget_unit": "tokens", "warmup_steps": 2, "reselect_every": 1, "strategy": "random"}
    config = GISTConfig(**settings, after_selection=after_selection)
    rows = token_rows(60, seed=3, low=14, high=15)
    for number, row in enumerate(rows):
        prompt = len(row["input_ids"]) - 1 - number % 12
        row["labels"] = [-100] * prompt + row["input_ids"][prompt:]
    trainer, callback, recorder = train(tmp_path, config, rows, num_train_epochs=5)
    history = callback.run.history
    sizes = [math.ceil(len(record.indices) / 4) for record in history]
    assert len(set(sizes)) > 1
    starts = [2 + sum(sizes[:number]) for number in range(5)]
    assert [record.step for record in history] == starts[:4]
    assert trainer.state.global_step == trainer.state.max_steps == starts[4] == len(trained(recorder))
    assert trainer.state.epoch == pytest.approx(5) and recorder.rates[-1] == pytest.approx(
        expected_rates(starts[4] - (2 if after_selection == "restart" else 0))[-1]
    )
    costs = callback.selection.costs
    training = next(phase for phase in costs.phases if phase.phase == "training")
    assert training.rows == 4 * (starts[4] - 2)


# ---- Resuming ----


@pytest.mark.parametrize(
    ("after_selection", "accumulation", "stops"),
    [
        ("continue", 1, [2, 4, 5, 8]),
        pytest.param("continue", 1, range(1, 9), marks=pytest.mark.slow),
        pytest.param("restart", 1, range(1, 9), marks=pytest.mark.slow),
        pytest.param("restart", 2, range(1, 9), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_at_any_step_is_the_uninterrupted_one(tmp_path, after_selection, accumulation, stops):
    """Before, at and after each selection; later selections of the interrupted run are still in the output folder."""
    config = GISTConfig(**EVERY_PASS | {"budget": 8 * accumulation, "after_selection": after_selection})
    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": accumulation,
        "rows": numbered_rows(60 * accumulation),
    }
    whole, callback, recorder = run(tmp_path, config, **settings)
    steps = trained(recorder)
    for stop in stops:
        resumed, again, second = run(tmp_path, config, resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
        assert trained(second) == steps[stop:], stop
        assert losses_of(resumed) == losses_of(whole), stop
        assert second.rates == pytest.approx(recorder.rates[stop:])
        assert [record.indices for record in again.run.history] == [r.indices for r in callback.run.history]
        assert [record.step for record in again.run.history] == [r.step for r in callback.run.history]
        assert again.selection.indices == callback.selection.indices
        assert torch.equal(again.selection.scores, callback.selection.scores)
        for name, flops in flops_of(callback.selection.costs).items():
            assert flops_of(again.selection.costs)[name] == pytest.approx(flops), (stop, name)


def flops_of(costs):
    return {(phase.phase, phase.selection): phase.flops for phase in costs.phases}


class Stopped(Exception):
    pass


class StopsAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stopped


def test_a_selection_that_no_step_was_taken_on_is_said(tmp_path):
    """An evaluation that ends training comes after rows were chosen again at the end of the same pass."""

    class EndsThePass(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 5
            return control

    with pytest.warns(
        NoEffectWarning, match="ended at step 5, where rows were chosen again, so no step .* selection 2"
    ):
        _, callback, _ = run(tmp_path, extra=[EndsThePass()])
    assert [record.step for record in callback.run.history] == [3, 5]


@pytest.mark.parametrize("missing", ["all", "the last file"])
def test_a_checkpoint_without_the_files_of_the_callback_takes_those_of_the_output_folder(tmp_path, missing):
    """As after a kill between the Trainer's part of a checkpoint and that of the callback."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole, _, recorder = run(tmp_path / "whole", **settings)
    for _ in range(2):
        # the second time, a later selection has replaced the files of the output folder
        with pytest.raises(Stopped):
            checkpoint = tmp_path / "cut" / "checkpoint-6"
            resume = str(checkpoint) if checkpoint.exists() else None
            run(tmp_path / "cut", extra=[StopsAt(8 if resume else 6)], resume=resume, **settings)
        if resume is None:
            if missing == "all":
                shutil.rmtree(checkpoint / "gist")
            else:
                (checkpoint / "gist" / "selected.json").unlink()
    assert len(load_history(tmp_path / "cut" / "gist")) == 3
    resumed, _, second = run(tmp_path / "cut", resume=str(checkpoint), **settings)
    assert trained(second) == trained(recorder)[6:] and losses_of(resumed) == losses_of(whole)


def test_stopped_while_the_second_selection_is_scored_it_goes_on_from_the_saved_scores(tmp_path, monkeypatch):
    settings = {"save_strategy": "steps", "save_steps": 1}
    config = GISTConfig(**EVERY_PASS, scoring_tokens_per_batch=32, save_every=2)
    whole, callback, recorder = run(tmp_path / "whole", config, **settings)
    scored = []

    class Interrupts(PaddingCollator):
        """Raises in the middle of the second selection, and counts the batches that are scored."""

        def __init__(self, limit):
            super().__init__()
            self.limit = limit

        def __call__(self, rows):
            if scoring and len(rows) and len(load_history_or_none(folder)) == 1:
                scored.append(len(rows))
                if len(scored) == self.limit:
                    raise Stopped
            return super().__call__(rows)

    folder = tmp_path / "cut" / "gist"
    scoring = []
    original = GISTRun._select

    def select(run, partial, step):
        scoring.append(step)
        try:
            return original(run, partial, step)
        finally:
            scoring.clear()

    monkeypatch.setattr(GISTRun, "_select", select)

    class Interrupted(Trainer):
        limit = 14

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"data_collator": Interrupts(self.limit)})

    with pytest.raises(Stopped):
        run(tmp_path / "cut", config, trainer_class=Interrupted, **settings)
    assert list((folder / "partial").glob("stage0-*.safetensors"))
    Interrupted.limit = None
    scored.clear()
    resumed, again, second = run(
        tmp_path / "cut", config, trainer_class=Interrupted, resume=str(tmp_path / "cut" / "checkpoint-4"), **settings
    )
    assert sum(scored) < 60 + 4, "rows were scored again"
    assert trained(second) == trained(recorder)[4:] and losses_of(resumed) == losses_of(whole)
    assert [r.indices for r in again.run.history] == [r.indices for r in callback.run.history]
    assert not (folder / "partial").exists()


def load_history_or_none(folder):
    return load_history(folder) if (folder / "selections.json").exists() else []


def test_another_number_of_passes_is_another_configuration(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    run(tmp_path, **settings)
    with pytest.raises(ValueError, match="made with another GISTConfig"):
        run(
            tmp_path,
            GISTConfig(**EVERY_PASS | {"reselect_every": 2}),
            resume=str(tmp_path / "checkpoint-4"),
            **settings,
        )


# ---- A share of the pool ----


def test_a_share_is_drawn_anew_for_each_later_selection(tmp_path):
    config = GISTConfig(**EVERY_PASS, reselect_share=0.3)
    _, callback, _ = run(tmp_path, config)
    selection = callback.selection
    drawn = selection.measurements.looked_at
    everything = torch.ones(60, dtype=torch.bool)
    assert torch.equal(drawn, random_share(everything, 0.3, seed_of_selection(42, 3)))
    assert int(drawn.sum()) == 18 and all(drawn[row] for row in selection.indices)
    assert len(selection.indices) == 8
    assert selection.manifest["scored_share"] == {"reselect_share": 0.3, "drawn": 18, "candidates": 60}
    scoring = [phase for phase in selection.costs.phases if phase.phase == "scoring"]
    assert [phase.rows for phase in scoring] == [60, 18, 18]
    assert Selection.load(tmp_path / "gist").indices == selection.indices


def test_draws_of_neighbouring_seeds_and_selections_differ():
    seeds = {seed_of_selection(seed, number) for seed in range(20) for number in range(2, 20)}
    assert len(seeds) == 20 * 18 and all(0 <= seed < 2**63 for seed in seeds)
    assert [seed_of_selection(seed, 1) for seed in (0, 42)] == [0, 42]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reselect_share": 0.1}, r"draws only 6 of 60 rows .* `budget=8` needs 8. Set it to about 0.14 or more"),
        (
            {"reselect_share": 0.3, "sample_from_top": 3.0},
            r"draws only 18 of 60 .* times `sample_from_top=3` needs 24\. Set it to about 0.4 or more",
        ),
        ({"reselect_share": 0.1, "budget": 0.5, "budget_unit": "tokens"}, "labelled tokens .* `budget=0.5` needs"),
        ({"reselect_share": 0.2, "budget": 8, "scoring_cost": 0.12}, "`scoring_cost=0.12` pays for scoring"),
    ],
    ids=str,
)
def test_a_share_that_cannot_fill_the_budget_is_refused_before_the_first_step(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, GISTConfig(**EVERY_PASS | config), extra=[StopsAt(0)])


def test_leaked_and_repeated_rows_are_never_drawn(tmp_path):
    rows = [*POOL[:40], *POOL[:10], *TARGETS]
    config = GISTConfig(**EVERY_PASS, reselect_share=0.5)
    with pytest.warns(UserWarning, match="repeat an earlier row"):
        _, callback, _ = run(tmp_path, config, rows=rows)
    for record in callback.run.history:
        assert max(record.indices) < 40
    assert int(callback.selection.measurements.looked_at.sum()) == 20


def test_every_selection_keeps_the_shares_of_the_sources(tmp_path):
    rows = patterned_rows(60)
    shares = {"source_column": "source", "source_shares": {"family3": 0.5}, "source_max": {"family0": 1}}
    config = GISTConfig(**EVERY_PASS | {"budget": 12}, reselect_share=0.7, **shares)
    targets = as_dataset(patterned_rows(4, seed=5))
    callback = GISTDataSelectorCallback(config, targets, train_dataset=as_dataset(rows))
    train(tmp_path, None, rows, callback, num_train_epochs=4)
    assert len(callback.run.history) == 3
    for record in callback.run.history:
        sources = [rows[row]["source"] for row in record.indices]
        assert len(sources) == 12 and sources.count("family3") >= 6 and sources.count("family0") <= 1


# ---- Costs ----


def test_every_selection_has_its_costs(tmp_path):
    _, callback, _ = run(tmp_path)
    costs = callback.selection.costs
    each = [costs.of_selection(number) for number in (1, 2, 3)]
    assert [phase.phase for phase in each[0].phases] == ["warm-up", "targets", "subspace", "scoring", "choosing"]
    assert [phase.phase for phase in each[1].phases] == ["targets", "subspace", "scoring", "choosing"]
    assert costs.selection_passes() == pytest.approx(sum(own.selection_passes() for own in each))
    assert each[1].selection_passes() == pytest.approx(each[0].selection_passes() - warmup_passes(costs), rel=1e-6)
    records = callback.run.history
    assert [record.selection_passes for record in records] == [own.selection_passes() for own in each]
    assert all(record.seconds > 0 and record.flops > 0 for record in records)
    loaded = CostLedger.load(tmp_path / "gist")
    assert loaded.selections == 3 and loaded.selection_passes() == costs.selection_passes()
    assert loaded.of_selection(3).phases[2].bytes_written > 0
    assert "Selecting 3 times cost" in loaded.break_even() and "or more" not in loaded.break_even()
    names = [row[0] for row in loaded.table()]
    assert "scoring" in names and "scoring, selection 3" in names and names[-1] == "training"


def warmup_passes(costs):
    return next(phase for phase in costs.phases if phase.phase == "warm-up").flops / costs.pool_pass_flops


def test_scoring_cost_is_the_price_of_each_selection(tmp_path, capsys):
    config = GISTConfig(**EVERY_PASS, scoring_cost=0.6)
    _, callback, _ = run(tmp_path, config)
    passes = [record.selection_passes for record in callback.run.history]
    assert all(0.4 < cost <= 0.6 for cost in passes)
    rows = [phase.rows for phase in callback.selection.costs.phases if phase.phase == "scoring"]
    assert rows[0] < rows[1] <= 60, "later selections have no warm-up to pay for"
    said = (
        "rows will be selected 3 times, after step 3, 5, 7, for at most 0.6 training passes over the pool each, 1.8 in"
    )
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("cost", "said"), [(None, "."), (0.9, ", for at most 0.9 training passes over the pool each.")]
)
def test_with_a_token_budget_no_steps_are_promised(tmp_path, capsys, cost, said):
    config = GISTConfig(**EVERY_PASS | {"budget": 60, "budget_unit": "tokens"}, scoring_cost=cost)
    run(tmp_path, config, passes=2)
    told = " ".join(capsys.readouterr().out.split())
    assert f"GIST: rows will be selected after the warm-up and after every 1 pass(es) but the last{said}" in told


# ---- What a run that would do nothing is told ----


@pytest.mark.parametrize(
    ("every", "settings", "message"),
    [
        (1, {"passes": 1}, r"`reselect_every=1` never .* 1 pass\(es\) .*Leave it out, or set `num_train_epochs` to 3"),
        (3, {"passes": 3}, r"`num_train_epochs=4` is .* 3 pass\(es\) .*Set it to 2 or less.*`num_train_epochs` to 5"),
        (2, {"passes": 1.5}, r"1.5 pass\(es\) .*Set it to 1 or less, or set `num_train_epochs` to 4"),
        (
            2,
            {"max_steps": 7},
            r"`max_steps=7` ends after 2 passes .* of 2 steps each .* warm-up of 3.*Set it to 1 or less.*to 8 or more",
        ),
        (1, {"max_steps": 5}, r"`max_steps=5` ends after 1 passes .*Leave it out, or set `max_steps` to 6 or more"),
    ],
)
def test_a_run_that_never_chooses_again_is_refused_before_the_first_step(tmp_path, every, settings, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, GISTConfig(**EVERY_PASS | {"reselect_every": every}), extra=[StopsAt(0)], **settings)


def test_the_advice_is_followed(tmp_path):
    _, callback, _ = run(tmp_path, GISTConfig(**EVERY_PASS | {"reselect_every": 2}), max_steps=8)
    assert len(callback.run.history) == 2


def test_a_token_budget_with_max_steps_is_told_at_the_swap(tmp_path):
    config = GISTConfig(budget=0.5, budget_unit="tokens", warmup_steps=WARMUP, reselect_every=1)
    with pytest.warns(NoEffectWarning, match=r"`reselect_every=1` has no effect: .* fit into `max_steps=6`"):
        run(tmp_path, config, max_steps=6)


def test_a_callback_that_was_added_later_needs_epochs_to_end(tmp_path):
    message = "`reselect_every=1` needs an epoch of the Trainer for every pass, but with `max_steps=40`.* only 3"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, GISTConfig(**EVERY_PASS), POOL, add=True, num_train_epochs=9, max_steps=40)


@pytest.mark.parametrize(
    "values",
    [
        {"reselect_every": 0},
        {"reselect_share": 0.0, "reselect_every": 1},
        {"reselect_share": 1.5, "reselect_every": 1},
    ],
)
def test_values_out_of_range(values):
    with pytest.raises(ValueError, match=f"`{next(iter(values))}` must be"):
        GISTConfig(**values)


def test_a_share_without_effect_is_refused():
    with pytest.raises(ValueError, match="`reselect_share` must be left out without `reselect_every`"):
        GISTConfig(reselect_share=0.5)
    with pytest.raises(ValueError, match="`reselect_share` must be left out with `strategy='random'`"):
        GISTConfig(reselect_share=0.5, reselect_every=1, strategy="random")


# ---- Checks, artifacts and output ----


@pytest.mark.parametrize("at", [5, 7])
def test_rows_that_were_not_selected_are_noticed_after_every_swap(tmp_path, at):
    class Meddles(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
            if state.global_step == at:
                train_dataloader.set_sampler(range(60))

    with pytest.raises(RuntimeError, match="were not selected"):
        run(tmp_path, GISTConfig(**EVERY_PASS), extra=[Meddles()])


def test_evaluation_and_saving_come_at_the_end_of_each_pass(tmp_path):
    settings = {"save_strategy": "epoch", "logging_strategy": "epoch", "save_total_limit": 2}
    trainer, callback, _ = run(tmp_path, **settings)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == [7, 9]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 5, 7, 9]
    found = Selection.load(tmp_path / "checkpoint-7" / "gist")
    assert found.indices == callback.run.history[2].indices


@pytest.mark.figures
def test_artifacts_say_how_much_the_selections_overlap(tmp_path, capsys):
    trainer, callback, _ = run(tmp_path, save_strategy="epoch")
    history = callback.run.history
    assert load_history(tmp_path / "gist") == history
    manifest = json.loads((tmp_path / "gist" / "manifest.json").read_text())
    assert manifest["selection_number"] == 3 and len(manifest["selections"]) == 3
    for number, entry in enumerate(manifest["selections"]):
        own = set(history[number].indices)
        common = [len(own & set(record.indices)) for record in history[:number]]
        assert entry["in_common"] == common and entry["rows"] == 8
        assert entry["share_in_common"] == (common[-1] / 8 if common else None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "selection 2 of 3" in line]
    assert len(lines) == 1 and "at step 5, with " in lines[0] and "training on them for 4 steps" in lines[0]
    logged = [entry for entry in trainer.state.log_history if "gist_selection" in entry]
    assert [entry["gist_selection"] for entry in logged] == [1, 2, 3]
    assert [entry.get("gist_share_in_common") for entry in logged] == [r.share_in_common for r in history]
    page = (tmp_path / "report.html").read_text()
    assert "Overlap of the selections" in page and "Rows were selected 3 times" in page
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "3 times, after every pass; after steps 3, 5, 7" in card


def test_without_it_nothing_of_it_is_written(tmp_path):
    (tmp_path / "gist").mkdir()
    (tmp_path / "gist" / "selections.json").write_text("[]")  # of an earlier run
    trainer, callback, _ = train(tmp_path, GISTConfig(budget=8, warmup_steps=3), POOL, save_strategy="epoch")
    assert not (tmp_path / "gist" / "selections.json").exists()
    assert "selections" not in callback.selection.manifest
    assert {path.name for path in (tmp_path / "checkpoint-3" / "gist").iterdir()} == {
        "seconds.json",
        "selected.json",
        "target_loss.json",
    }
    assert len(callback.run.history) == 1


def test_text_of_the_targets_is_not_in_a_checkpoint_that_is_pushed(tmp_path):
    from hf_gist.training.checkpoint import save_selected

    targets = as_dataset([{**row, "question": "secret"} for row in TARGETS])
    callback = GISTDataSelectorCallback(GISTConfig(**EVERY_PASS), targets)
    train(tmp_path, None, POOL, callback, num_train_epochs=3)
    found = []
    for uploaded in (True, False):
        folder = tmp_path / f"checkpoint-{uploaded}" / "gist"
        folder.mkdir(parents=True)
        save_selected(folder, callback.selection, tmp_path / "gist", uploaded)
        found.append(b"secret" in (folder / "targets.parquet").read_bytes())
    assert found[0] is False
    assert (b"secret" in (tmp_path / "gist" / "targets.parquet").read_bytes()) == found[1]


# ---- The target loss ----


@pytest.mark.parametrize(
    ("losses", "selected_at", "end", "final"),
    [
        # the warm-up ends after step 3, and passes after 5, 7 and 9
        ({0: 9.0, 3: 3.0, 5: 2.0, 7: 2.5}, [3, 5], 7, 5),
        ({0: 9.0, 3: 3.0, 5: 3.5}, [3], 5, 3),
        ({0: 9.0, 3: 3.0, 5: 2.0, 7: 1.5, 9: 1.6}, [3, 5, 7], 9, 7),
        ({0: 9.0, 3: 3.0, 5: 2.0, 7: 1.5, 9: 1.0}, [3, 5, 7], 9, 9),
    ],
)
def test_rows_are_not_chosen_again_where_a_rising_target_loss_ends_the_training(
    tmp_path, monkeypatch, losses, selected_at, end, final
):
    plan_losses(monkeypatch, losses)
    trainer, callback, _ = run(tmp_path, GISTConfig(**EVERY_PASS, stop_when_target_rises=True))
    assert [record.step for record in callback.run.history] == selected_at
    assert trainer.state.global_step == end
    found = callback.selection.manifest["target_loss"]
    assert [point["step"] for point in found["points"]] == sorted(losses) and found["final_step"] == final


@pytest.mark.parametrize("step", [3, 5, 6, 7])
def test_the_series_of_target_losses_goes_over_every_selection_and_a_resumed_run(tmp_path, step):
    settings = {"save_strategy": "steps", "save_steps": 1}
    _, whole, _ = run(tmp_path / "whole", **settings)
    points = whole.run.target_watch.series.points
    assert [point.step for point in points] == [0, 3, 5, 7, 9]
    assert [point.passes for point in points] == [None, None, *map(pytest.approx, (1, 2, 3))]
    _, again, _ = run(tmp_path / "whole", resume=str(tmp_path / "whole" / f"checkpoint-{step}"), **settings)
    assert again.run.target_watch.series == whole.run.target_watch.series
    assert again.selection.manifest["target_loss"]["points"] == whole.selection.manifest["target_loss"]["points"]
