"""The acceptance script runs its sections in tiny shapes on a CPU, and reports what fails."""

import json
import subprocess
import sys

import pytest

from tests import ROOT


BENCHMARKS = ROOT / "recipes" / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_acceptance.py"


@pytest.fixture
def record(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from acceptance import record

    return record


def test_all_sections_run_in_tiny_shapes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    written = json.loads((tmp_path / "acceptance.json").read_text(encoding="utf-8"))
    sections = written["sections"]
    assert list(sections) == ["correctness", "scoring", "gast", "profile"]
    checks = [row for row in sections["correctness"] if "at most" in row["values"]]
    assert len(checks) >= 10 and all(row["passed"] for row in checks)
    steps = {row["step"] for rows in sections.values() for row in rows}
    assert {"floor", "library", "loop", "stock", "every 1", "every 4", "momentum", "two-pass (paper)"} <= steps
    assert not any("time limit" in str(row["values"]) for rows in sections.values() for row in rows)
    assert "| per-sample gradients, fp32 |" in (tmp_path / "acceptance.md").read_text(encoding="utf-8")
    assert written["facts"]["torch"] and written["facts"]["command"]


def test_a_step_that_fails_or_comes_too_late_is_reported(record, tmp_path):
    def broken():
        raise RuntimeError("no kernel image")

    def steps():
        yield "broken", broken
        yield "good", lambda: record.checked(0.5, 1.0, "a number")
        yield "bad", lambda: [record.checked(2.0, 1.0, "a number")]

    report = record.Report(tmp_path, {"device": "none"})
    record.run_section(report, record.Section("checks", steps, minutes=1), seconds_left=60)
    assert report.failures() == ["checks: broken", "checks: bad"]
    assert "no kernel image" in (tmp_path / "acceptance.md").read_text(encoding="utf-8")
    record.run_section(report, record.Section("late", steps, minutes=1), seconds_left=-1)
    assert [row["passed"] for row in report.sections["late"]] == [None] * 3
    assert "time limit" in str(report.sections["late"][0]["values"])


def test_not_a_number_fails_a_check(record):
    assert record.checked(float("nan"), 1.0, "a number").passed is False


def test_missing_packages_are_named_with_versions(record, monkeypatch):
    monkeypatch.setattr(record, "_version", lambda package: None if package == "datasets" else "1.0")
    assert record.missing_packages() == ["datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19"]
