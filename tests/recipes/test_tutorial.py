"""The tutorial runs from its first cell to its last, on a demo of a few rows; its notebook has the same cells."""

import json
import re
import runpy
import sys

import pytest

from hf_gist.commands.demo import run_demo
from tests import ROOT
from tests.commands.test_demo import MINIATURE


TUTORIAL = ROOT / "recipes" / "tutorial.py"
NOTEBOOK = ROOT / "recipes" / "tutorial.ipynb"
MACHINE_PATH = re.compile(r"(?<![\w.])(/(home|root|tmp|Users|work|usr|var|mnt|opt)/|[A-Z]:\\)")


@pytest.fixture
def making(monkeypatch):
    """The script that makes the notebook."""
    folder = ROOT / ".github" / "assets"
    if not folder.exists():
        pytest.skip("not a checkout")
    monkeypatch.syspath_prepend(str(folder))
    return __import__("notebook")


def check_output(told):
    assert "240 candidates, 8 targets, 16 test rows" in told and told.count("test loss") == 3
    assert "GIST: kept 12 of 240 rows" in told and "random draw: kept 12 of 240 rows" in told
    assert "largest relative difference below 1e-4: True" in told


def test_every_cell_of_the_tutorial_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("trl", reason="TRL is not installed")
    run_demo(tmp_path / "gist_demo", seed=3, settings=MINIATURE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tutorial.py"])
    capsys.readouterr()
    cells = runpy.run_path(str(TUTORIAL))
    told = capsys.readouterr().out
    check_output(told)
    # the swap and the masks acted, and the same steps were compared
    assert cells["gist"].state.global_step == cells["random"].state.global_step
    assert set(cells["again"].indices) <= set(range(240)) and cells["gast"].gast.dropped > 0


def test_the_notebook_has_the_cells_of_the_tutorial(making):
    cells = making.cells_of(TUTORIAL.read_text(encoding="utf-8"))
    assert making.cells_of_notebook(NOTEBOOK) == cells
    # together the code cells are the script without its comments at the top of each cell
    code = "\n".join(source for kind, source in cells if kind == "code")
    compile(code, "tutorial", "exec")
    assert len([kind for kind, _ in cells if kind == "code"]) == TUTORIAL.read_text(encoding="utf-8").count("# %% ")


def test_cells_are_titles_text_and_code(making):
    text = '"""A title.\n\nMore of it.\n"""\n\n# %% First\n# A comment\n# of two lines.\nx = 1\n\n# later\ny = 2\n\n# %% Second\nz = 3\n'
    assert making.cells_of(text) == [
        ("markdown", "# A title.\n\nMore of it."),
        ("markdown", "## First\n\nA comment of two lines."),
        ("code", "x = 1\n\n# later\ny = 2"),
        ("markdown", "## Second"),
        ("code", "z = 3"),
    ]


def test_the_notebook_keeps_its_output_and_no_path_of_a_machine():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {output["name"] for output in outputs} == {"stdout"}
    told = "".join("".join(output["text"]) for output in outputs)
    assert "GIST: kept 240 of 4,800 rows" in told and told.count("test loss") == 3
    assert MACHINE_PATH.search(NOTEBOOK.read_text(encoding="utf-8")) is None


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, making, monkeypatch):
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    run_demo(tmp_path / "gist_demo", seed=3, settings=MINIATURE)
    notebook = making.new_notebook(making.cells_of_notebook(NOTEBOOK))
    making.execute(notebook, tmp_path)
    told = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []))
    check_output(told)
