"""The oldest releases that `setup.cfg` declares are the ones that the job `oldest` of `.ci/run` installs."""

import configparser
import subprocess
import sys

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from hf_gist.gradients import modes
from tests import ROOT


CONSTRAINTS = sorted(ROOT.glob(".ci/oldest*.txt"))
BY_HAND = {"torch"}
"""Their lower bound is not installed in CI."""


def declared() -> dict[str, set[Version]]:
    """The lower bounds of every requirement and extra."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    blocks = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    bounds: dict[str, set[Version]] = {}
    for line in filter(None, (line.strip() for block in blocks for line in block.splitlines())):
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        assert [s.operator for s in specifiers] == [">="], f"{line!r} needs a lower bound and nothing else"
        bounds.setdefault(requirement.name, set()).add(Version(specifiers[0].version))
    return bounds


def pinned() -> dict[str, set[Version]]:
    """What the constraints files pin."""
    lines = [line.split("#")[0].strip() for path in CONSTRAINTS for line in path.read_text("utf-8").splitlines()]
    pins: dict[str, set[Version]] = {}
    for requirement in (Requirement(line) for line in lines if line):
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        pins.setdefault(requirement.name, set()).add(Version(next(iter(requirement.specifier)).version))
    return pins


@pytest.mark.skipif(not CONSTRAINTS, reason="installed without a checkout")
def test_the_oldest_versions_are_the_lower_bounds_of_setup_cfg():
    bounds, pins = declared(), pinned()
    assert bounds.keys() == pins.keys()
    assert all(min(bounds[name]) <= min(pins[name]) for name in BY_HAND)
    assert {name: min(found) for name, found in bounds.items() if name not in BY_HAND} == {
        name: min(found) for name, found in pins.items() if name not in BY_HAND
    }
    # what an extra raises is what is installed with it
    assert all(found <= pins[name] for name, found in bounds.items() if name not in BY_HAND)


WITHOUT_JSON = """
import datasets
vars(datasets).pop("Json", None)
import hf_gist.callback, hf_gist.offline, hf_gist.trainer
for name in ("hf_gist.commands.main", "hf_gist.gist.stream"):
    try:
        __import__(name)
    except ImportError as error:
        print(error)
"""


def test_only_what_reads_files_needs_json_columns():
    """`datasets` has them from 4.7; LLaMA-Factory takes no `datasets` above 4.0."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_JSON], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("install datasets>=4.7") == 2 and "`hf-gist`" in done.stdout


def test_scoring_works_with_a_torch_that_cannot_set_tf32_apart(monkeypatch):
    """torch before 2.9 has no `fp32_precision`."""

    class Older:
        """`torch.backends.cuda.matmul` has the settings as properties, and raises for others."""

    monkeypatch.setattr(torch.backends.cuda, "matmul", Older())
    with modes._tf32():
        assert not hasattr(torch.backends.cuda.matmul, "fp32_precision")
