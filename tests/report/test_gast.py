"""Which samples updated which layer over time: the table stays small, survives a resume, and is drawn."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.table import FEWEST_SPANS, MOST_CELLS, MOST_SPANS, SelectionTable, number_of_spans
from hf_gist.report import gast, write_report
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import arguments, build_model, collate, rows, train
from tests.helpers.reports import Page


pytestmark = pytest.mark.figures


def batches(steps, groups, columns, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        masks = torch.rand(groups, size, generator=generator) < 0.5
        yield step, masks, torch.randint(0, columns, (size,), generator=generator), torch.ones(size, dtype=torch.bool)


def table_of(steps, groups=3, columns=("a", "b")):
    table = SelectionTable.empty([f"model.layers.{i}" for i in range(groups)], list(columns), torch.device("cpu"))
    for step, masks, column, valid in batches(steps, groups, len(columns)):
        table.add(masks, column, valid, step)
    return table


@pytest.mark.parametrize("steps", [1, 24, 25, 49, 1000])
def test_spans_are_sums_over_their_steps_however_long_the_run(steps):
    table = table_of(steps)
    assert len(table.kept) == MOST_SPANS and table.span_steps * MOST_SPANS >= steps
    assert steps <= MOST_SPANS or table.span_steps * MOST_SPANS < 2 * steps
    kept, seen = torch.zeros_like(table.kept), torch.zeros_like(table.seen)
    for step, masks, columns, _ in batches(steps, 3, 2):
        for sample, column in enumerate(columns.tolist()):
            kept[step // table.span_steps, :, column] += masks[:, sample]
            seen[step // table.span_steps, column] += 1
    assert torch.equal(table.kept, kept) and torch.equal(table.seen, seen)
    torch.testing.assert_close(table.rates(), kept.sum(0) / seen.sum(0))


def test_a_large_table_keeps_fewer_spans():
    assert number_of_spans(32, 5) == MOST_SPANS and number_of_spans(500, 1000) == FEWEST_SPANS
    for groups, columns in ((32, 1000), (224, 100), (80, 300)):
        assert groups * columns * number_of_spans(groups, columns) <= MOST_CELLS
        assert number_of_spans(groups, columns) % 2 == 0


@pytest.mark.parametrize("start", [0, 700])
def test_the_table_is_read_back_from_its_files(start, tmp_path):
    table = SelectionTable.empty(["x", "y"], ["a", "b"], torch.device("cpu"))
    for step, masks, column, valid in batches(60, 2, 2):
        table.add(masks, column, valid, start + step)
    table.write(tmp_path)
    again = SelectionTable.read(tmp_path)
    assert again.groups == table.groups and again.columns == table.columns and again.span_steps == table.span_steps
    starts, rates = table.rates_over_time()
    assert again.rates_over_time()[0] == starts
    torch.testing.assert_close(again.rates_over_time()[1], rates, equal_nan=True)
    torch.testing.assert_close(again.rates(), table.rates())
    total = Dataset.from_parquet(str(tmp_path / "gast_selection.parquet"), cache_dir=str(tmp_path / "cache"))
    over_time = Dataset.from_parquet(str(tmp_path / "gast_history.parquet"), cache_dir=str(tmp_path / "cache"))
    for row in total:
        own = [r for r in over_time if (r["layer"], r["source"]) == (row["layer"], row["source"])]
        assert sum(r["kept"] for r in own) == row["kept"] and sum(r["seen"] for r in own) == row["seen"]
        assert {r["last_step"] - r["first_step"] + 1 for r in own} == {table.span_steps}


def test_a_table_resumes_from_a_checkpoint():
    whole, half = table_of(70), table_of(40)
    again = SelectionTable.empty(half.groups, half.columns, torch.device("cpu"))
    other = SelectionTable.empty(half.groups, half.columns, torch.device("cpu"))
    again.restore(half.state(), counts=True)
    other.restore(half.state(), counts=False)
    assert not other.seen.any() and other.span_steps == half.span_steps
    for step, masks, column, valid in batches(70, 3, 2):
        if step >= 40:
            # two processes, one of which has the counts of the checkpoint
            (again if step % 2 else other).add(masks, column, valid, step)
            (other if step % 2 else again).add(masks & False, column, valid & False, step)
    assert torch.equal(again.kept + other.kept, whole.kept) and torch.equal(again.seen + other.seen, whole.seen)
    assert again.span_steps == other.span_steps == whole.span_steps


def test_a_training_writes_tables_figures_and_a_report(tmp_path):
    data = Dataset.from_list(rows("llama", 64))
    config = GASTConfig(keep=3, source_column="source")
    train(build_model(), tmp_path, data, config=config, max_steps=6, gradient_accumulation_steps=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"gast_selection.png", "gast_history.png", "gast_history.parquet", "report.html"} <= names
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [v["id"] for tag, v in found.elements if tag == "svg"] == ["plot-gast_selection", "plot-gast_history"]
    assert "keep 3 samples of a batch" in found.text and "share kept by a layer 37.5%" in found.text
    assert "with 1 optimizer step per column" in found.text
    assert "optimizer steps 6" in found.text and " changed most: the layers kept " in found.text
    assert "Selection of rows: There is no manifest.json" in found.text
    images = [v for tag, v in found.elements if tag == "image"]
    assert images and all(v["href"].startswith("data:image/png;base64,") for v in images)


def test_a_resumed_training_has_the_same_history_as_an_uninterrupted_one(tmp_path):
    data, config = rows("llama", 64), GASTConfig(keep=3)
    shared = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    train(build_model(), tmp_path, data, config=config, **shared)
    whole = SelectionTable.read(tmp_path)
    resumed = GASTTrainer(
        model=build_model(), args=arguments(tmp_path, **shared), train_dataset=data, data_collator=collate,
        gast_config=config,
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again = SelectionTable.read(tmp_path)
    assert torch.equal(whole.kept, again.kept) and torch.equal(whole.seen, again.seen) and len(again.kept) == 8


def test_many_layers_and_sources_stay_readable_and_small(tmp_path):
    table_of(30, groups=224, columns=[f"source {i}" for i in range(1000)]).write(tmp_path)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    assert "991 others" in text and "124 more layers in gast_selection.parquet" in text


def test_a_new_figure_is_one_function_and_one_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(gast.FIGURES, "made_up", lambda table: replace(gast.whole_run(table), title="Made up"))
    table_of(3).write(tmp_path)
    found = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Made up" in found.attributes("aria-label") and (tmp_path / "made_up.png").is_file()


def test_a_damaged_run_file_is_an_error_with_its_name(tmp_path):
    table_of(3).write(tmp_path)
    assert "GAST: settings and totals" in Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    for text in ("{}", '{"config": {"keep": 0}, "steps": 1, "supports": 1}', "x"):
        (tmp_path / "gast_run.json").write_text(text)
        with pytest.raises(ValueError, match="gast_run.json cannot be read"):
            write_report(tmp_path)


def test_a_run_without_masked_batches(tmp_path):
    SelectionTable.empty(["x"], ["a"], torch.device("cpu")).write(tmp_path)
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "GAST: which samples updated which layer: No batch was masked" in text


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"mode": "positive", "threshold": 0.05}, ["keep samples with a cosine above 0.05"]),
        ({"support": "batch"}, ["support batch"]),
        (
            {"group_by": "model", "mode": "topk", "redundancy": True},
            [
                "one for the whole model, chosen greedily",
                "All layers are updated by the same samples",
                "The whole model kept",
            ],
        ),
    ],
)
def test_the_report_says_how_samples_are_chosen(options, texts, tmp_path):
    train(build_model(), tmp_path, rows("llama", 64), config=GASTConfig(**options), max_steps=2)
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert [text for text in texts if text not in found] == []
    assert ("support gradients" in found) == (options.get("support") != "batch")
