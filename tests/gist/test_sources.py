"""Shares of the budget and limits per source, in every way to select."""

import json
import warnings

import pytest

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.commands.flags import settings_of
from hf_gist.commands.main import build_parser, main
from hf_gist.errors import SourceBudgetWarning
from hf_gist.gist.sources import check_quotas
from hf_gist.gist.stream import select_stream
from hf_gist.hub.card_facts import selection_facts
from hf_gist.report.asked import asked
from hf_gist.report.charts import scores
from tests.helpers.reports import selection_of
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, patterned_rows
from tests.test_callback import train


STRATEGIES = ["max", "mean", "round_robin", "random", "length_matched_random"]
SHARES, MOST = {"a": 0.1, "b": 0.5}, {"c": 3}


def by_source(selection):
    names = selection.measurements.sources
    kept = [names[row] for row in selection.indices]
    return {name: kept.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("times", [1.0, 2.5])
def test_every_strategy_keeps_shares_and_limits(strategy, times):
    plain = selection_of(sources=["a", "b", "c", "d"], strategy=strategy, sample_from_top=times)
    found = plain.reselect(source_shares=SHARES, source_max=MOST)
    counts = by_source(found)
    assert len(found.indices) == 40 and counts["a"] >= 4 and counts["b"] >= 20 and counts["c"] <= 3
    # shares that the plain selection has already change nothing
    own = {name: number / 40 for name, number in by_source(plain).items()}
    if times == 1:
        assert plain.reselect(source_shares=own).indices == plain.indices
        rank = {row: at for at, row in enumerate(plain.reselect(budget=1.0).indices)}
        assert [rank[row] for row in found.indices] == sorted(rank[row] for row in found.indices)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_in_tokens_is_shared_by_tokens(strategy):
    found = selection_of(
        sources=["a", "b", "c", "d"], strategy=strategy, budget=9000, budget_unit="tokens",
        source_shares={"a": 0.5}, source_max={"b": 1},
    )  # fmt: skip
    tokens, names = found.measurements.label_tokens, found.measurements.sources
    of_a = int(tokens[[row for row in found.indices if names[row] == "a"]].sum())
    assert of_a > 4500 - 300 and by_source(found)["b"] <= 1
    assert 9000 - 300 < int(tokens[found.indices].sum()) <= 9000


def test_settings_survive_files_and_reselect(tmp_path):
    config = GISTConfig(budget=7, source_column="source", source_shares={"a=b": 0.25, "1": 1e-1}, source_max={"c": 0})
    assert GISTConfig.from_yaml(config.to_yaml()) == GISTConfig.from_json(config.to_json()) == config
    assert GISTConfig.from_yaml("source_shares: {a: 2e-1}").source_shares == {"a": 0.2}
    selection = selection_of(sources=["a", "b", "c", "d"], source_shares=SHARES, source_max=MOST)
    selection.save(tmp_path)
    again = Selection.load(tmp_path)
    assert again.config == selection.config and again.indices == selection.indices
    assert again.reselect(source_shares=None, source_max=None).indices == selection_of(sources=list("abcd")).indices
    uses = json.loads((tmp_path / "manifest.json").read_text())["source_quotas"]
    assert uses["b"] | {"got": 0, "got_units": 0, "left": 0} == {
        "name": "b", "pool": 100, "wanted": 20, "most": None, "got": 0, "got_units": 0, "left": 0
    }  # fmt: skip
    assert uses["c"]["most"] == 3 and uses["c"]["got"] <= 3 and uses["d"]["wanted"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source_shares": {"a": 1.2}}, "`source_shares` must be shares from 0 to 1"),
        ({"source_shares": {"a": -0.1}}, "`source_shares` must be shares from 0 to 1"),
        ({"source_shares": {"a": float("nan")}}, "`source_shares` must be shares from 0 to 1"),
        ({"source_shares": {"a": 0.6, "b": 0.6}}, "that add up to at most 1"),
        ({"source_shares": {"a": "many"}}, "`source_shares` must be a mapping of names, each to float"),
        ({"source_shares": {1: 0.5}}, "`source_shares` must be a mapping"),
        ({"source_shares": [0.5]}, "`source_shares` must be a mapping"),
        ({"source_max": {"a": 1.5}}, "`source_max` must be a mapping of names, each to int or null"),
        ({"source_max": {"a": -1}}, "`source_max` must be 0 or more rows"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        GISTConfig(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_shares": {"x": 0.1}}, "`source_shares`: the pool has no row of x. Its sources: a, b"),
        ({"source_max": {"x": 1, "a": 2}}, "`source_max`: the pool has no row of x"),
        ({"source_max": {"a": 30, "b": 9}}, "`source_max` leaves 39 of 400 rows .* the budget is 40 rows"),
        ({"source_shares": {"a": 0.5}, "source_max": {"a": 19}}, "reserves 20 rows .* for a, .* allows only 19"),
    ],
)
def test_what_cannot_be_kept_is_an_error_with_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        selection_of(sources=["a", "b"]).reselect(**changes)
    with pytest.raises(ValueError, match="are not known. Set `source_column`"):
        selection_of().reselect(source_shares={"a": 0.1})


def test_too_few_rows_of_a_source_are_a_warning_with_numbers():
    names = ["a"] + ["b"] * 99
    with pytest.warns(SourceBudgetWarning, match="a has 4 of 20 rows"):
        check_quotas(GISTConfig(budget=0.1, source_shares={"a": 0.5}), [names[i % 100] for i in range(400)])
    # the first row has no label and the second no finite gradient
    with pytest.warns(SourceBudgetWarning, match="a has 3 of 4 rows"):
        found = selection_of(sources=names).reselect(budget=8, source_shares={"a": 0.5})
    assert by_source(found) == {"a": 3, "b": 5}
    with pytest.warns(SourceBudgetWarning, match="The selection has 399 of 400 rows|has 398 of 399 rows"):
        selection_of(sources=names).reselect(budget=399, source_max={"b": 396})
    with warnings.catch_warnings():
        warnings.simplefilter("error", SourceBudgetWarning)
        selection_of(sources=names).reselect(budget=8, source_shares={"a": 0.375}, source_max={"b": 7})


def rows():
    return as_dataset(patterned_rows(60)), as_dataset(patterned_rows(6, seed=9))


SETTINGS = {"budget": 12, "source_column": "source", "source_shares": {"family3": 0.5}, "source_max": {"family0": 1}}


@pytest.mark.parametrize("more", [{}, {"scoring_cost": 0.6}, {"strategy": "random"}], ids=str)
def test_select_keeps_them(tmp_path, more):
    pool, targets = rows()
    config = GISTConfig(**SETTINGS, **more)
    found = select(lora_model(), pool, targets, config, data_collator=PaddingCollator(), progress=False)
    assert len(found.indices) == 12 and by_source(found)["family3"] >= 6 and by_source(found)["family0"] <= 1


def test_unknown_sources_are_refused_before_any_work():
    pool, targets = rows()
    config = GISTConfig(budget=12, source_column="source", source_max={"code": 1})
    with pytest.raises(ValueError, match="the pool has no row of code. Its sources: family0"):
        select(None, pool, targets, config, data_collator=None)
    with pytest.raises(ValueError, match="are not known"):
        select(None, pool, targets, GISTConfig(source_max={"code": 1}), data_collator=None)


def test_the_callback_keeps_them(tmp_path):
    pool, targets = rows()
    callback = GISTDataSelectorCallback(GISTConfig(**SETTINGS, warmup_steps=2), targets, train_dataset=pool)
    train(tmp_path, rows=patterned_rows(60), callback=callback)
    assert by_source(callback.selection)["family3"] >= 6
    wrong = GISTConfig(budget=12, source_column="source", source_max={"code": 1})
    with pytest.raises(ValueError, match="the pool has no row of code"):
        callback = GISTDataSelectorCallback(wrong, targets, train_dataset=pool)
        train(tmp_path / "wrong", rows=patterned_rows(60), callback=callback)


def test_a_stream_refuses_them():
    with pytest.raises(ValueError, match="`source_shares` and `source_max` need the whole pool"):
        select_stream(lora_model(), [], rows()[1], GISTConfig(**SETTINGS), data_collator=PaddingCollator())


def test_report_and_card_have_the_numbers():
    selection = selection_of(sources=["a", "b", "c", "d"], source_shares=SHARES, source_max=MOST)
    table = asked(selection).tables[2]
    counts = by_source(selection)
    assert table.header == ["source", "pool rows", "rows reserved", "most rows", "rows selected"]
    assert list(table.rows[1]) == ["b", "100", "20", "", str(counts["b"])]
    assert list(table.rows[2]) == ["c", "100", "", "3", str(counts["c"])]
    facts = dict(selection_facts(selection))
    assert facts["Reserved for sources"] == f"`a` 4 rows (got {counts['a']}), `b` 20 rows (got {counts['b']})"
    assert facts["Largest part of sources"] == f"`c` 3 rows (got {counts['c']})"
    assert len(asked(selection_of(sources=["a", "b"])).tables) == 2
    # rows of other sources may have better scores
    assert "It is not a threshold" in scores(selection).sentence
    assert "The threshold is" in scores(selection_of(sources=["a", "b"])).sentence
    tokens = selection_of(sources=["a", "b"], source_shares={"a": 0.5}, budget=9000, budget_unit="tokens")
    (used,) = (use for use in tokens.source_uses if use.name == "a")
    assert list(asked(tokens).tables[2].rows[0]) == ["a", "200", "4,500", "", str(used.got), f"{used.got_units:,}"]


def test_the_flags_are_mappings(tmp_path, capsys):
    flags = ["select", "--source_shares", "a=0.25", "b=c=5e-1", "--source_max", "chat=500", "--output_dir", "x"]
    _, (_, _, config) = settings_of(build_parser().parse_args(flags))
    assert config.source_shares == {"a": 0.25, "b=c": 0.5} and config.source_max == {"chat": 500}
    for wrong in (["--source_shares", "a"], ["--source_max", "a=1.5"], ["--source_shares", "a="]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["select", *wrong])
        assert "is not of the form NAME=NUMBER" in capsys.readouterr().err
    selection_of(sources=["a", "b"], manifest={"train_dataset": {}}).save(tmp_path / "scores")
    again = ["select", "--from_scores", str(tmp_path / "scores"), "--output_dir", str(tmp_path / "again")]
    assert main([*again, "--source_max", "a=5"]) == 0
    assert by_source(Selection.load(tmp_path / "again")) == {"a": 5, "b": 35}
    assert main([*again, "--source_max", "x=5"]) == 2
    assert "the pool has no row of x" in capsys.readouterr().err
