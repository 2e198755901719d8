"""The report: numbers, texts, figures, hostile and large data, errors."""

import json
import re
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from hf_gist.commands.main import main
from hf_gist.errors import ReportWarning
from hf_gist.report import (
    best_effort,
    charts,
    keep_examples,
    page,
    report_at_end,
    save_selection_figures,
    write_report,
)
from hf_gist.report.draw import Spectrum
from hf_gist.report.parts import NoPlot, Plot, Section, Table
from hf_gist.report.wording import percent, seconds, short, visible
from tests.helpers.reports import HOSTILE, STORABLE, Page, selection_of


pytestmark = pytest.mark.figures


LEAKS = {
    "target_dataset": {"rows": [3, 4], "exact": 1, "same_words": 1},
    "eval_dataset": {"rows": [], "exact": 0, "same_words": 0},
    "targets_in_evaluation": 0,
}
PLOTS = ["spectrum", "scores", "sources", "lengths", "energy"]


def written(folder, selection):
    selection.save(folder)
    return Page(write_report(folder, selection=selection).read_text(encoding="utf-8"))


def page_without_figures(folder, selection):
    """The page without its figures, because drawing takes most of the time."""
    selection.save(folder)
    return Page(page.render(page.selection_sections(selection, folder), {}, []))


def without_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)


# ---- Words ----


def test_invisible_characters_become_escape_sequences():
    assert visible("a\u202eb\x00c\u200bd\ud800") == "a\\u202eb\\u0000c\\u200bd\\ud800"
    assert visible("two\r\nlines\tand 🙂 שלום") == "two\nlines\tand 🙂 שלום"
    assert visible("x" * 10, 4) == "xxxx…" and visible("xxxx", 4) == "xxxx"
    assert short("a\nb" * 100, 5) == "a ba …"
    for text in HOSTILE:
        visible(text).encode("utf-8")


def test_numbers_have_units():
    assert [percent(x) for x in (0, 0.0001, 0.05, 1)] == ["0.0%", "below 0.1%", "5.0%", "100.0%"]
    assert [seconds(x) for x in (1.26, 1606.4, 90061)] == ["1.3 s", "26 min 46 s", "25 h 1 min"]


# ---- Content ----


def test_the_page_has_the_numbers_of_the_selection(tmp_path):
    selection = selection_of(sources=["a", "a", "b", "c"], manifest={"leaks": LEAKS, "seconds": {"scoring": 12.25}})
    found = written(tmp_path, selection)
    kept = selection.indices
    assert "GIST: kept 40 of 400 rows (10.00%)" in found.text
    assert f"The threshold is {float(selection.scores[kept].min()):.3f}: every row above it was selected" in found.text
    assert f"explain {selection.explained_variance:.1%} of the target gradients' variance" in found.text
    assert f"median of {float(selection.energy[kept].median()):.1%} for the selected rows" in found.text
    tokens = selection.measurements.label_tokens
    assert f"{int(tokens[kept].median()):,} labelled tokens in the selection" in found.text
    sources = Counter(selection.measurements.sources[i] for i in kept)
    for name, size in (("a", 200), ("b", 100), ("c", 100)):
        row = f"{name} {size} {size / 400:.1%} {sources[name]} {sources[name] / 40:.1%} {sources[name] / 40 / size * 400:.2f}"
        assert row in found.text
    assert "rows without a labelled token 1" in found.text and "rows whose gradient is not finite 1" in found.text
    assert "12.2 s" in found.text


def test_every_figure_has_a_name_a_sentence_and_its_numbers(tmp_path):
    selection = selection_of(sources=["a", "b"])
    found = written(tmp_path, selection)
    svgs = [values for tag, values in found.elements if tag == "svg"]
    assert [values["id"] for values in svgs] == [f"plot-{key}" for key in PLOTS]
    assert all(values["role"] == "img" and values["aria-label"] for values in svgs)
    tags = Counter(tag for tag, _ in found.elements)
    assert tags["figure"] == tags["figcaption"] == len(PLOTS) and tags["table"] == tags["caption"]
    assert {f"{key}.png" for key in PLOTS} <= {path.name for path in tmp_path.iterdir()}
    assert [path.stem for path in save_selection_figures(selection, tmp_path / "png")] == PLOTS


def test_a_new_figure_is_one_function_and_one_entry(tmp_path, monkeypatch):
    def made_up(selection):
        drawing = Spectrum(np.array([0.25, 1.0]), 1)
        return Plot("Made up", "The made-up sentence.", drawing, Table("Made-up numbers", [["a", "b"]]))

    monkeypatch.setitem(charts.FIGURES, "made_up", made_up)
    monkeypatch.setitem(charts.FIGURES, "no_data", lambda selection: NoPlot("No data", "There is none of it."))
    selection = selection_of()
    found = written(tmp_path, selection)
    assert "plot-made_up" in [values.get("id") for tag, values in found.elements if tag == "svg"]
    assert "#made_up" in found.attributes("href") and "The made-up sentence." in found.text
    assert "No data: There is none of it." in found.text
    # TensorBoard gets these files
    assert "made_up.png" in [path.name for path in save_selection_figures(selection, tmp_path / "png")]
    assert (tmp_path / "made_up.png").is_file() and not list(tmp_path.rglob("no_data.png"))


def test_a_strategy_without_a_threshold_does_not_claim_one(tmp_path):
    found = written(tmp_path, selection_of(strategy="round_robin"))
    assert "It is not a threshold" in found.text and "The threshold is" not in found.text


def test_missing_content_is_listed_with_its_reason(tmp_path):
    found = written(tmp_path, selection_of(strategy="random", width=0))
    for reason in (
        "Scores and threshold: The rows were chosen by a random draw, which does not use scores",
        "by source: No sources were recorded. Set `source_column` to the column of the pool",
        "Leaks: manifest.json has no entry on leaks",
        "Costs: There is no costs.json in the folder, and manifest.json has no times",
        "GAST: There is no gast_history.parquet",
    ):
        assert reason in found.text.replace("&#39;", "'")
    assert [values["id"] for tag, values in found.elements if tag == "svg"] == ["plot-lengths"]


@pytest.mark.parametrize(("drop", "words"), [(True, "None of them was selected"), (False, "is off: ")])
def test_the_leak_section_states_whether_leaked_rows_were_selected(tmp_path, drop, words):
    selection = selection_of(leaked=[3, 4], manifest={"leaks": LEAKS}, drop_target_duplicates=drop)
    found = written(tmp_path, selection)
    assert "also in target_dataset or eval_dataset: 2." in found.text and words in found.text
    assert "target_dataset 2 1 1 3, 4" in found.text and "eval_dataset 0 0 0 none" in found.text


def test_several_evaluation_sets_are_evaluation_rows(tmp_path):
    leaks = {"target_dataset": LEAKS["target_dataset"], "eval_dataset['test']": LEAKS["target_dataset"]}
    text = page_without_figures(tmp_path, selection_of(leaked=[3, 4], manifest={"leaks": leaks})).text
    assert "No evaluation rows were given" not in text and "eval_dataset['test'] 2 1 1" in text.replace("&#39;", "'")
    leaks = {"target_dataset": LEAKS["target_dataset"]}
    text = page_without_figures(tmp_path, selection_of(manifest={"leaks": leaks})).text
    assert "No evaluation rows were given" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "the score ignores that part"),
        ({"score": "cosine"}, "The score compares whole gradients"),
        ({"score": "grad_norm"}, "does not depend on it"),
        ({"scorer": "rds_plus"}, "inside the space that the targets span"),
    ],
)
def test_the_energy_section_is_of_the_score_that_was_used(tmp_path, settings, words):
    text = page_without_figures(tmp_path, selection_of(**settings)).text
    others = {"the score ignores that part", "The score compares whole gradients"} - {words}
    assert words in text and not any(other in text for other in others)


def test_manifests_of_other_versions_are_read(tmp_path):
    manifest = {"model": None, "seconds": {}, "versions": [], "leaks": "not looked for: rows without input_ids"}
    found = written(tmp_path, selection_of(manifest=manifest))
    assert "model not recorded" in found.text and "Duplicates were not looked for" in found.text


def test_the_same_selection_gives_the_same_page(tmp_path):
    selection = selection_of(sources=["a", "b"])
    selection.save(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path, tmp_path / "again.html", selection).read_bytes() == first


# ---- The page itself ----


def test_the_page_has_no_scripts_and_makes_no_requests(tmp_path):
    found = written(tmp_path, selection_of(sources=["a", "b"]))
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "img", "audio", "video"}
    for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
        assert all(value.startswith(("#", "data:")) for value in found.attributes(name))
    policy = next(v["content"] for t, v in found.elements if t == "meta" and "http-equiv" in v)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_ids_are_unique_and_every_reference_has_a_target(tmp_path):
    found = written(tmp_path, selection_of(sources=["a", "b"]))
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    goals = [value[1:] for value in found.attributes("href") if value.startswith("#")]
    goals += re.findall(r"url\(#([^)]*)\)", (tmp_path / "report.html").read_text())
    goals += found.attributes("aria-labelledby")
    assert goals and set(goals) <= set(ids)


def test_the_colours_of_the_figures_follow_the_scheme(tmp_path):
    found = written(tmp_path, selection_of())
    styles = [v["style"] for tag, v in found.elements if "style" in v]
    assert any("var(--kept)" in style for style in styles) and any("var(--pool)" in style for style in styles)
    named = "".join(styles)
    assert not re.search(r"#(?!000000)[0-9a-f]{6}", named)
    assert page.LIGHT.keys() == page.DARK.keys() and not set(page.LIGHT.values()) & set(page.DARK.values())


def test_headings_do_not_skip_a_level(tmp_path):
    found = written(tmp_path, selection_of())
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


# ---- Hostile and large data ----


def hostile_rows(number):
    return [{"prompt": HOSTILE[i % len(HOSTILE)], "completion": "<b>" + "y" * 1_000_000} for i in range(number)]


def test_hostile_text_stays_text(tmp_path):
    selection = selection_of(
        sources=[*STORABLE, "z" * 1_000_000, *["plain"] * 80],
        columns={"<i>group": [STORABLE[i % len(STORABLE)] for i in range(12)]},
        target_group_column="<i>group",
        source_column='"><script>',
        manifest={"model": {"name_or_path": HOSTILE[1]}, "versions": {HOSTILE[0]: HOSTILE[2]}},
    )
    selection.save(tmp_path)
    keep_examples(tmp_path, selection, hostile_rows(400), hostile_rows(12))
    raw = write_report(tmp_path).read_text(encoding="utf-8")
    found = Page(raw)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "b", "i"} and "onerror" not in {n for _, v in found.elements for n in v}
    assert not [
        name for _, values in found.elements for name in values if name.startswith("on") or name == "autofocus"
    ]
    assert "<script>alert(1)</script>" in found.text and "{{ 7 * 7 }}" in found.text and "49" not in found.words
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufffe]", raw)
    assert "\\u202etxt.exe" in found.text and "$\\frac{1}{$" in found.text
    assert len(raw) < 1_000_000


def test_a_large_pool_gives_a_small_page(tmp_path):
    names = [f"source number {i}" for i in range(1000)]
    groups = {"task": [f"task {i % 300}" for i in range(600)]}
    selection = selection_of(100_000, 600, names, groups, target_group_column="task")
    found = written(tmp_path, selection)
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert "900 more sources with fewer selected rows are in scores.parquet" in found.text
    assert "8 of 300 target groups" in found.text


@pytest.mark.parametrize("change", [{"budget": 1}, {"budget": 398}, {"score": "grad_norm"}, {"score": "cosine"}])
def test_extreme_selections_are_drawn(tmp_path, change):
    selection = selection_of(sources=["only"], **change)
    assert written(tmp_path, selection).text
    equal = selection_of(3, 1, budget=1)
    equal.scores[:] = 0.5
    equal.measurements.label_tokens[:] = 1
    assert page.render(page.selection_sections(equal, tmp_path), {}, [])


# ---- Without matplotlib, and with errors ----


def test_without_matplotlib_the_numbers_are_there(tmp_path, monkeypatch):
    selection = selection_of(sources=["a", "b"])
    with_figures = written(tmp_path / "with", selection)
    without_matplotlib(monkeypatch)
    with pytest.raises(ImportError, match=re.escape('pip install "hf_gist[report]"')):
        save_selection_figures(selection, tmp_path)
    found = written(tmp_path / "without", selection)
    tags = Counter(tag for tag, _ in found.elements)
    assert tags["svg"] == 0 and tags["table"] == Counter(tag for tag, _ in with_figures.elements)["table"]
    assert 'No figures: Figures need matplotlib: pip install "hf_gist[report]"' in found.text
    assert not list((tmp_path / "without").glob("*.png"))


def test_an_error_in_the_report_becomes_a_warning(tmp_path, monkeypatch):
    selection = selection_of()
    selection.save(tmp_path)
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    with pytest.warns(ReportWarning, match="report was not written .ZeroDivisionError.*hf-gist report"):
        assert report_at_end(tmp_path, selection) is None
    with pytest.warns(ReportWarning, match="example rows were not written"):
        keep_examples(tmp_path, selection, 7, None)
    assert main(["report", str(tmp_path), "--output_file", str(tmp_path)]) == 2
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert best_effort.report_at_end(tmp_path, selection) == tmp_path / "report.html"


# ---- The command ----


def test_the_command_writes_to_the_given_file(tmp_path, capsys):
    selection_of().save(tmp_path / "out" / "gist")
    assert main(["report", str(tmp_path / "out")]) == 0
    assert f"report                      {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "gist" / "scores.png").is_file()
    assert main(["report", str(tmp_path / "out" / "gist"), "--output_file", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "has nothing to report on: no manifest.json"),
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: (folder / "stream.json").write_text("{}"), "stream.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "coordinates.safetensors does not exist"),
        (lambda folder: (folder / "gast_history.parquet").write_text("x"), "gast_history.parquet cannot be read"),
    ],
)
def test_folders_without_artifacts_are_errors_with_their_name(tmp_path, capsys, make, message):
    folder = tmp_path / "empty"
    folder.mkdir()
    make(folder)
    assert main(["report", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-gist: error: ") and message in error and str(folder) in error
    assert not (folder / "report.html").exists()


def test_a_damaged_examples_file_is_an_error_with_its_name(tmp_path, capsys):
    selection = selection_of()
    selection.save(tmp_path)
    keep_examples(tmp_path, selection, hostile_rows(400), None)
    values = json.loads((tmp_path / "examples.json").read_text())
    for broken in (values | {"rows": [1]}, {}, values | {"rows": {"3": [{"kind": "x"}]}}):
        (tmp_path / "examples.json").write_text(json.dumps(broken))
        assert main(["report", str(tmp_path)]) == 2
        assert "examples.json cannot be read" in capsys.readouterr().err


def test_torch_tensors_of_the_selection_are_not_changed(tmp_path):
    selection = selection_of()
    before = selection.scores.clone(), selection.energy.clone()
    written(tmp_path, selection)
    assert torch.equal(before[0], selection.scores) and torch.equal(before[1], selection.energy)


def test_figures_of_an_earlier_selection_do_not_stay(tmp_path):
    selection = selection_of()
    selection.save(tmp_path)
    for name in ("overlap.png", "target_loss.png", "mine.png"):
        (tmp_path / name).write_bytes(b"earlier")
    write_report(tmp_path)
    assert not (tmp_path / "overlap.png").exists() and not (tmp_path / "target_loss.png").exists()
    assert (tmp_path / "mine.png").read_bytes() == b"earlier" and (tmp_path / "spectrum.png").is_file()
    (tmp_path / "overlap.png").write_bytes(b"earlier")
    save_selection_figures(selection, tmp_path)
    assert not (tmp_path / "overlap.png").exists()
    # a page without a selection has none to replace
    (tmp_path / "overlap.png").write_bytes(b"mine")
    page._draw([Section("gast", "GAST")], tmp_path)
    assert (tmp_path / "overlap.png").read_bytes() == b"mine"
