"""The tutorial runs from its first cell to its last, on a demo of a few rows."""

import runpy
import sys

import pytest

from hf_gist.commands.demo import run_demo
from tests import ROOT
from tests.commands.test_demo import MINIATURE


TUTORIAL = ROOT / "recipes" / "tutorial.py"


def test_every_cell_of_the_tutorial_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("trl", reason="TRL is not installed")
    run_demo(tmp_path / "demo", seed=3, settings=MINIATURE)
    monkeypatch.setattr(sys, "argv", ["tutorial.py", str(tmp_path / "demo"), str(tmp_path / "out")])
    capsys.readouterr()
    cells = runpy.run_path(str(TUTORIAL))
    told = capsys.readouterr().out
    assert "240 candidates, 8 targets, 16 test rows" in told and told.count("test loss") == 3
    assert "GIST: kept 12 of 240 rows" in told and "random draw: kept 12 of 240 rows" in told
    assert "largest relative difference below 1e-4: True" in told
    # the swap and the masks acted, and the same steps were compared
    assert cells["gist"].state.global_step == cells["random"].state.global_step
    assert set(cells["again"].indices) <= set(range(240)) and cells["gast"].gast.dropped > 0
