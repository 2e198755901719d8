"""Runs the steps of a section within a time limit, and writes the results after each step."""

import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "evaluate", "numpy", "pyarrow")
CARRY = {"datasets": "datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19", "peft": "peft==0.21.2"}
"""Packages that every section needs, with the wheels to bring to a machine without a network."""


@dataclass
class Result:
    """The result of one step.

    Args:
        passed (`bool`, *optional*): whether the goal was reached; `None` for a measurement without a goal.
        values (`dict`): columns of the table.
        detail (`str`): a reason or a traceback; written below the table.
    """

    passed: bool | None
    values: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


def checked(measured: float, limit: float, what: str) -> Result:
    """The result of a check that a number is at most `limit`."""
    return Result(bool(measured <= limit), {"measured": measured, "at most": limit, "of": what})


def skipped(reason: str) -> Result:
    """The result of a step that cannot run here."""
    return Result(None, {"of": f"not run: {reason}"})


Steps = Iterator[tuple[str, Callable[[], Result | list[Result]]]]
"""Name of a step and the function that runs it; a list of results is a table of its own rows."""


@dataclass
class Section:
    """A part of the acceptance with its own time limit.

    Args:
        name (`str`): heading in the report.
        steps (`Callable`): makes the steps, the most valuable first; later steps may use state of earlier ones.
        minutes (`float`): no step is started after this time.
    """

    name: str
    steps: Callable[[], Steps]
    minutes: float


class Report:
    """The results so far, in `acceptance.json` and `acceptance.md`.

    Args:
        folder (`Path`): where the two files are written.
        facts (`dict`): device, versions and command.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self.sections: dict[str, list[dict[str, Any]]] = {}

    def add(self, section: str, step: str, result: Result, seconds: float) -> None:
        """Add one result and write both files."""
        row = {"step": step, **asdict(result), "seconds": round(seconds, 1)}
        self.sections.setdefault(section, []).append(row)
        print(f"[{section}] {line_of(row)}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files under a temporary name and rename them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"facts": self.facts, "sections": self.sections}, indent=2) + "\n"
        for name, text in (("acceptance.json", content), ("acceptance.md", self.markdown())):
            temporary = self.folder / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, self.folder / name)

    def markdown(self) -> str:
        """The report as Markdown: the facts, then a table for each section."""
        lines = ["# Acceptance", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.facts.items()]
        for section, rows in self.sections.items():
            lines += ["", f"## {section}", "", *_table(rows)]
            lines += [f"\n`{row['step']}`:\n\n```\n{row['detail']}\n```" for row in rows if row["detail"]]
        return "\n".join(lines) + "\n"

    def failures(self) -> list[str]:
        """Names of the steps that failed."""
        return [
            f"{section}: {row['step']}"
            for section, rows in self.sections.items()
            for row in rows
            if row["passed"] is False
        ]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verdict(passed: bool | None) -> str:
    return {True: "pass", False: "FAIL", None: ""}[passed]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row["values"]))
    head = ["step", *columns, "result", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [_cell(row["values"].get(name, "")) for name in columns]
        lines.append(f"| {' | '.join([row['step'], *cells, _verdict(row['passed']), str(row['seconds'])])} |")
    return lines


def line_of(row: dict[str, Any]) -> str:
    """A result on one line, for the terminal."""
    values = ", ".join(f"{name} {_cell(value)}" for name, value in row["values"].items())
    end = row["detail"].strip().splitlines()[-1:] if row["detail"] else []
    return " | ".join(part for part in (row["step"], values, _verdict(row["passed"]), *end) if part)


def run_section(report: Report, section: Section, seconds_left: float) -> None:
    """Run the steps of a section until its time limit; a step that raises an error is a failure.

    Args:
        report (`Report`): receives the results.
        section (`Section`): the section.
        seconds_left (`float`): of the whole acceptance.
    """
    end = time.monotonic() + min(section.minutes * 60, seconds_left)
    release()
    steps = section.steps()
    while True:
        start = time.monotonic()
        try:
            step = next(steps, None)
        except Exception:
            report.add(section.name, "setup", Result(False, detail=traceback.format_exc()), time.monotonic() - start)
            return
        if step is None:
            return
        name, function = step
        if time.monotonic() > end:
            report.add(section.name, name, skipped("time limit of the section"), 0)
            continue
        for result in _results(function):
            report.add(section.name, result.values.pop("step", name), result, time.monotonic() - start)
        release()


def _results(function: Callable[[], Result | list[Result]]) -> list[Result]:
    try:
        result = function()
    except Exception:
        return [Result(False, detail=traceback.format_exc())]
    return result if isinstance(result, list) else [result]


def release() -> None:
    """Free cached memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def missing_packages() -> list[str]:
    """The wheels to bring, for packages that every section needs and that are not installed."""
    return [wheels for package, wheels in CARRY.items() if _version(package) is None]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: str) -> dict[str, Any]:
    """Device, driver, versions, date and command."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": platform.processor() or platform.machine(),
        "Python": platform.python_version(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["driver, CUDA"] = f"{_driver()}, {torch.version.cuda}"
    facts |= {package: _version(package) or "not installed" for package in PACKAGES}
    facts["command"] = shlex.join(["python", *sys.argv])
    return facts
