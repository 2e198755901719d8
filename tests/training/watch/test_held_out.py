"""`target_holdout`: held-out rows select nothing, are named, and are still looked for in the pool."""

import pytest
import torch

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.config.base import BaseConfig
from hf_gist.errors import LeakWarning
from hf_gist.gist.stream import check_stream_config
from hf_gist.hub.card_facts import select_command, selection_facts
from hf_gist.report import write_report
from tests.helpers.callback_runs import numbered_rows, train
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


TARGETS = token_rows(12, seed=5)


def run(folder, targets, rows=None, **config):
    settings = {"budget": 20, "warmup_steps": 4, "scoring_tokens_per_batch": 64}
    callback = GISTDataSelectorCallback(GISTConfig(**(settings | config)), as_dataset(targets))
    train(folder, rows=rows, callback=callback)
    return callback


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("hf_gist.training.gist_run.report_training", lambda *args: None)
    monkeypatch.setattr("hf_gist.training.gist_run.report_at_end", lambda *args: None)


@pytest.mark.parametrize(
    "settings",
    [{}, {"scoring_cost": 0.7}, {"strategy": "length_matched_random"}, {"scorer": "rds_plus"}],
)
def test_held_out_rows_never_influence_scores(tmp_path, settings):
    first = run(tmp_path / "a", TARGETS, target_holdout=0.25, **settings)
    held_out = first.run.inputs.held_out.numbers
    assert len(held_out) == 3
    others = token_rows(12, seed=99)
    changed = [others[number] if number in held_out else row for number, row in enumerate(TARGETS)]
    second = run(tmp_path / "b", changed, target_holdout=0.25, **settings)
    assert second.run.inputs.held_out.numbers == held_out
    assert torch.equal(first.selection.scores, second.selection.scores)
    assert first.selection.indices == second.selection.indices
    losses = [callback.run.target_watch.series.points[0].losses for callback in (first, second)]
    assert losses[0] != losses[1]
    left = [row for number, row in enumerate(TARGETS) if number not in held_out]
    alone = run(tmp_path / "c", left, **settings)
    assert torch.equal(first.selection.scores, alone.selection.scores)


def test_the_rows_are_named(tmp_path):
    targets = [row | {"task": "abc"[number % 3]} for number, row in enumerate(TARGETS)]
    callback = run(tmp_path, targets, target_holdout=0.5, target_group_column="task")
    held_out = callback.run.inputs.held_out
    found = callback.selection.manifest["held_out_targets"]
    assert found == {"rows": held_out.numbers, "of": 12, "groups": {"a": 2, "b": 2, "c": 2}}
    left = [number for number in range(12) if number not in held_out.numbers]
    m = callback.selection.measurements
    assert m.target_numbers == left and m.target_columns["task"] == ["abc"[number % 3] for number in left]
    assert callback.selection.manifest["target_dataset"]["rows"] == 12
    assert callback.selection.manifest["unusable_targets"] == {"rows": [], "groups": {}}
    again = Selection.load(tmp_path / "gist")
    assert again.manifest["held_out_targets"] == found and again.indices == callback.selection.indices
    page = write_report(tmp_path).read_text()
    assert f"6 of 12: rows {', '.join(map(str, held_out.numbers))}" in page
    facts = dict(selection_facts(again))
    assert "6 of 12" in facts["Target rows held out"] and "held-out target rows" in facts["Target loss in training"]
    command = select_command(again, "hf://user/model")
    assert "--target_holdout 0" in command


def test_an_unlabelled_row_is_not_held_out(tmp_path):
    targets = [dict(row) for row in TARGETS]
    for number in (0, 5, 7):
        targets[number] = targets[number] | {"labels": [-100] * len(targets[number]["labels"])}
    callback = run(tmp_path, targets, target_holdout=0.5)
    assert not {0, 5, 7} & set(callback.run.inputs.held_out.numbers)
    assert callback.selection.manifest["unusable_targets"]["rows"] == [0, 5, 7]


def test_held_out_rows_of_the_pool_are_still_leaks(tmp_path):
    rows = numbered_rows(150)
    held_out = run(tmp_path / "a", TARGETS, rows=rows, target_holdout=0.25).run.inputs.held_out.numbers
    rows[40] = dict(TARGETS[held_out[0]])
    with pytest.warns(LeakWarning, match="1 rows of the pool are also in `target_dataset`"):
        callback = run(tmp_path / "b", TARGETS, rows=rows, target_holdout=0.25, budget=0.9)
    assert 40 not in callback.selection.indices and callback.selection.manifest["leaks"]["target_dataset"]["rows"] == [
        40
    ]


@pytest.mark.parametrize("share, rows", [(0.1, 3), (0.9, 3), (0.5, 1)])
def test_nothing_left_on_one_side(tmp_path, share, rows):
    with pytest.raises(ValueError, match=f"`target_holdout={share}`"):
        run(tmp_path, TARGETS[:rows], target_holdout=share)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
def test_out_of_range(value):
    with pytest.raises(ValueError, match="`target_holdout` must be 0 or a share of the target rows below 1"):
        GISTConfig(target_holdout=value)


@pytest.mark.parametrize("settings", [{"target_holdout": 0.25}, {"stop_when_target_rises": True}])
def test_refused_where_nothing_is_trained(settings):
    config: BaseConfig = GISTConfig(budget=5, **settings)
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"`{name}=.*no effect"):
        select(lora_model(), as_dataset(token_rows(20)), as_dataset(TARGETS), config, data_collator=PaddingCollator())
    with pytest.raises(ValueError, match=f"`{name}=.*no effect"):
        check_stream_config(config)


@pytest.mark.parametrize("command", ["select", "compare"])
@pytest.mark.parametrize("flags", [["--target_holdout", "0.25"], ["--stop_when_target_rises"]])
def test_refused_by_the_commands(tmp_path, command, flags, capsys):
    from hf_gist.commands.main import main

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b c"}\n')
    needed = ["--model_name_or_path", "m", "--train_file", str(rows), "--target_file", str(rows)]
    needed += ["--output_dir", str(tmp_path / "out")]
    assert main([command, *needed, *flags]) != 0
    text = capsys.readouterr().err
    assert "no effect" in text and flags[0].strip("-") in text
