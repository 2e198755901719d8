"""The first sentences of the page, and the pages on comparisons and on selections from a stream."""

import dataclasses
import json

import pytest

from hf_gist import GISTConfig
from hf_gist.commands.compare.files import write_results
from hf_gist.commands.main import main
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.gast.groups import MODEL_NAME
from hf_gist.report.page import content_of, write_report
from hf_gist.report.runs.opening import of_selection, target_sentence
from hf_gist.utils.disk import write_json
from tests.commands.test_compare import made_runs
from tests.helpers.reports import HOSTILE, Page, selection_of
from tests.report.test_gast import table_of


pytestmark = pytest.mark.figures


LEDGER = CostLedger(
    (PhaseCost("warm-up", 20.0, forward_flops=10.0), PhaseCost("scoring", 40.5, forward_flops=95.0)), 100.0, 5.0
)
TRAINING = PhaseCost("training", 300.0, forward_flops=20.0)


# ---- A selection ----


def test_the_first_screen_answers_three_questions(tmp_path):
    selection = dataclasses.replace(selection_of(sources=["a", "b"]), costs=LEDGER.with_phase(TRAINING))
    selection.save(tmp_path)
    found = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    tags = [tag for tag, _ in found.elements]
    assert tags.count("dt") == tags.count("dd") == 3 and tags.index("dl") < tags.index("nav") < tags.index("main")
    assert "40 of 400 rows (10.0%), chosen by GIST" in found.text and "the 12 target rows" in found.text
    assert "Did the target get better? Not measured in this run. To measure it" in found.text
    assert "Selecting took 60.5 s, as much computation as 1.05 epochs of training on all rows" in found.text
    assert "training on the selected rows then took 5 min 0 s" in found.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "change the model in training most like the 12 target rows"),
        ({"scorer": "rds_plus"}, "represents most like the 12 target rows"),
        ({"strategy": "random"}, "drawn at random as a baseline"),
        ({"strategy": "length_matched_random"}, "drawn at random as a baseline"),
        ({"score": "grad_norm"}, "does not use the target rows"),
    ],
)
def test_every_kind_of_selection_has_a_sentence(change, words):
    opening = of_selection(selection_of(**change), None)
    assert words in opening.selected and opening.cost == "Not recorded in this folder."
    assert "hf-gist compare" in opening.target


@pytest.mark.parametrize(("pool", "named"), [(["a"] * 9 + ["b"], False), (["a", "b"], False), (None, False)])
def test_a_source_is_named_only_if_it_is_much_of_the_selection(pool, named):
    assert ("come from the source" in of_selection(selection_of(sources=pool), None).selected) is named


def test_the_source_that_the_selection_prefers_is_named():
    selection = selection_of(sources=["x"] * 10)
    sources = ["wanted" if row in selection.indices else "other" for row in range(400)]
    measured = dataclasses.replace(selection.measurements, sources=sources)
    text = of_selection(dataclasses.replace(selection, measurements=measured), None).selected
    assert "100.0% come from the source 'wanted', which is 10.0% of all rows." in text


def test_the_sentence_on_the_target_depends_on_whether_the_run_trained():
    assert "eval_dataset" in target_sentence({}, trained=True)
    assert "nothing was trained" in target_sentence({}, trained=False)


@pytest.mark.parametrize(
    ("changes", "final_step", "verdict"),
    [
        ([0.0, -0.5], 9, "Yes. "),
        ([0.0, 0.5], 9, "No. "),
        ([0.0, -0.015], 9, "Not clearly: "),
        ([0.0, 0.015], 9, "Not clearly: "),
        ([0.0, -0.5, 0.7], 9, "Yes. "),
        ([0.0, None], 9, "No. "),
    ],
)
def test_the_target_loss_of_the_final_adapter_decides(changes, final_step, verdict):
    points = [
        {"step": 9 * at, "loss": None if c is None else 2 + c, "change": c, "standard_error_of_change": 0.01}
        for at, c in enumerate(changes)
    ]
    found = {"points": points, "sentence": "target loss 2 to something.", "final_step": final_step}
    said = target_sentence({"target_loss": found}, trained=True)
    assert said.startswith(verdict) and "Target loss 2 to something." in said
    assert said.endswith("Training on random rows may lower it too: hf-gist compare measures that.") is ("Yes" in said)


def test_a_model_loaded_at_the_last_step_decides():
    points = [
        {"step": step, "loss": 2 + change, "change": change, "standard_error_of_change": 0.01}
        for step, change in [(0, 0.0), (9, 0.7), (9, -0.5)]
    ]
    found = {"points": points, "sentence": "target loss 2 to 1.5.", "final_step": 9}
    assert target_sentence({"target_loss": found}, trained=True).startswith("Yes. ")


def test_a_gast_run_alone_and_with_a_selection(tmp_path):
    table_of(8, groups=3, columns=["a", "b"]).write(tmp_path)
    alone = content_of(tmp_path).opening
    assert "each of 3 layers was updated by" in alone.selected and "eval_dataset" in alone.target
    found = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Sample selection in training (GAST) Which samples updated each layer In every batch" in found.text
    assert "Data selection report" not in found.text and "nothing was selected" not in found.text
    selection_of().save(tmp_path / "gist")
    both = content_of(tmp_path)
    assert both.title == "Data selection report" and both.opening.headings[0] == "What was selected"
    assert both.opening.selected.startswith("40 of 400 rows") and both.opening.selected.endswith(alone.selected)


def test_a_gast_run_that_masks_the_whole_model_has_no_layers(tmp_path):
    table = dataclasses.replace(table_of(8, groups=1), groups=[MODEL_NAME])
    table.write(tmp_path)
    assert "In every batch, the whole model was updated by" in content_of(tmp_path).opening.selected


# ---- A stream ----


def stream_folder(folder, rows=7, **more):
    write_json(
        folder / "stream.json",
        {"indices": list(range(0, 10 * rows, 10)), "scores": [1 - i / 10 for i in range(rows)], "seen": 1000, **more},
    )
    lines = [json.dumps({"prompt": f"p{i} {HOSTILE[i % 3]}", "completion": f"c{i}"}) + "\n" for i in range(rows)]
    (folder / "selected.jsonl").write_text("".join(lines))
    return folder


def test_a_stream_has_a_page(tmp_path, capsys):
    facts = {"unscorable": 3, "pool_duplicates_dropped": 4, "targets": 5, "seconds": 200.0, "model": "a/b"}
    stream_folder(tmp_path, config=GISTConfig(budget=7).to_dict(), columns=None, **facts)
    assert main(["report", str(tmp_path)]) == 0
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "7 of 1,000 rows of a stream (0.7%): those that match the 5 target rows best" in found.text
    assert "Selecting took 3 min 20 s; the stream was read once." in found.text
    assert "rows that cannot be scored 3" in found.text and "repeated rows 4" in found.text
    assert "best 1.000, median 0.700, lowest 0.400" in found.text
    assert all(f"c{i}" in found.text for i in (0, 1, 2, 4, 5, 6)) and "c3" not in found.words
    assert "script" not in {tag for tag, _ in found.elements} and (tmp_path / "positions.png").is_file()


def test_a_stream_of_an_earlier_version_or_without_its_rows_has_a_page(tmp_path):
    stream_folder(tmp_path)
    (tmp_path / "selected.jsonl").unlink()
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "not recorded" in text and "Not recorded in this folder" in text
    assert "There is no selected.parquet or selected.jsonl" in text


@pytest.mark.parametrize("rows", [0, 1])
def test_a_stream_with_hardly_a_row_has_a_page(tmp_path, rows):
    stream_folder(tmp_path, rows)
    assert f"{rows} of 1,000 rows of a stream" in Page(write_report(tmp_path).read_text(encoding="utf-8")).text


# ---- A comparison ----


def comparison_folder(folder, runs):
    write_json(folder / "compare.json", {"budget": 0.1, "metric": None, "test_file": HOSTILE[0]})
    (folder / "runs").mkdir()
    for number, run in enumerate(runs):
        write_json(folder / "runs" / f"{number}.json", run)
    write_results(1000, folder)
    return folder


def test_a_comparison_has_a_page(tmp_path, capsys):
    assert main(["report", str(comparison_folder(tmp_path, made_runs()))]) == 0
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (
        "Comparison of selections" in found.text and "2 ways to select training rows, each with 2 seeds" in found.text
    )
    assert "Yes: a loss 2.1000 with the best method, GIST (paper's rule); 4.0000 before training" in found.text
    assert "2.1250 with random rows, which may be noise." in found.text
    assert "1.55 with GIST (paper's rule) and 0.50 with random rows" in found.text
    assert [v["id"] for tag, v in found.elements if tag == "svg"] == ["plot-result-0"]
    assert "metric" not in found.text and "script" not in {tag for tag, _ in found.elements}


def test_a_comparison_says_when_nothing_helped(tmp_path):
    runs = [run | ({"loss_a": 1.5} if run["method"] == "untrained" else {}) for run in made_runs()]
    comparison_folder(tmp_path, runs)
    assert main(["report", str(tmp_path)]) == 0
    assert "No: a loss 2.1000" in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_a_comparison_without_random_rows_or_untrained_model(tmp_path):
    comparison_folder(tmp_path, [run for run in made_runs() if run["method"] == "gist"])
    assert main(["report", str(tmp_path)]) == 0
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Did the target get better? a loss 2.1000 with the best method, GIST (paper's rule)." in text


def test_unfinished_and_older_comparisons_are_errors(tmp_path, capsys):
    comparison_folder(tmp_path, [run for run in made_runs() if run["method"] == "untrained"])
    assert main(["report", str(tmp_path)]) == 2
    assert "no method has been trained yet" in capsys.readouterr().err
