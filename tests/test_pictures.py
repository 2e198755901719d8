"""The pictures of the README: each has a text, all together are small, and the script skips what a run does not have."""

import json

import pytest

from tests import ROOT
from tests.helpers.reports import selection_of
from tests.report.test_gast import table_of


ASSETS = ROOT / ".github" / "assets"
LIMIT = 1_500_000

pytestmark = pytest.mark.skipif(not ASSETS.exists(), reason="not a checkout")


@pytest.fixture
def making(monkeypatch, tmp_path):
    """The script, which writes into an empty folder."""
    monkeypatch.syspath_prepend(str(ASSETS))
    script = __import__("make")
    folder = tmp_path / "pictures"
    folder.mkdir()
    monkeypatch.setattr(script, "HERE", folder)
    return script


@pytest.fixture
def run(tmp_path):
    """A folder like that of the demo, with a GAST run below it."""
    folder = tmp_path / "demo"
    selection_of(sources=["a", "b"]).save(folder / "gist")
    losses = {"GIST": 1.25, "random": 1.5, "whole pool": 1.375, "untrained": 5.0}
    sizes = {"GIST": 40, "random": 40, "whole pool": 400}
    numbers = {"seed": 1, "losses": losses, "rows": sizes, "steps": sizes, "kept": 40, "found": 30}
    (folder / "demo.json").write_text(json.dumps(numbers | {"hidden": 50, "found_by_chance": 3}))
    (folder / "tutorial" / "gast").mkdir(parents=True)
    table_of(8, groups=3, columns=["a", "b"]).write(folder / "tutorial" / "gast")
    return folder


def test_every_picture_has_a_text_and_all_are_small():
    texts = json.loads((ASSETS / "alt.json").read_text(encoding="utf-8"))
    pictures = {path.name for path in ASSETS.glob("*.png")}
    assert pictures == set(texts) and all(len(text) > 30 for text in texts.values())
    assert {"demo-light.png", "demo-dark.png", "report-light.png", "report-dark.png", "report-phone.png"} <= pictures
    assert {"spectrum.png", "scores.png", "gast_selection.png"} <= pictures
    assert sum((ASSETS / name).stat().st_size for name in pictures) < LIMIT
    for loss in json.loads((ASSETS / "demo.json").read_text(encoding="utf-8"))["losses"].values():
        assert f"{loss:.2f}" in texts["demo-light.png"]


def test_figures_are_picked_up_by_name_from_all_runs(making, run, monkeypatch, capsys):
    monkeypatch.setattr(making, "find_browser", lambda: None)
    frontier = run / "frontier.png"
    with making.drawn(making.plots_in(run)["scores"]) as figure:
        making.save_png(figure, frontier)
    texts = making.make(run, ("spectrum", "gast_selection", "no_such_figure"), frontier)
    names = {"demo-light.png", "demo-dark.png", "spectrum.png", "gast_selection.png", "frontier.png"}
    assert set(texts) == names == {path.name for path in making.HERE.glob("*.png")}
    told = capsys.readouterr().out
    assert "skipped no_such_figure: no run in" in told and "they have" in told
    assert "skipped the screenshots" in told
    assert "random rows 1.50" in texts["demo-dark.png"] and "explain" in texts["spectrum.png"]


def test_too_large_pictures_are_an_error(making, run, monkeypatch):
    monkeypatch.setattr(making, "find_browser", lambda: None)
    monkeypatch.setattr(making, "LIMIT", 1000)
    with pytest.raises(ValueError, match="more than 1,000"):
        making.make(run, (), None)
