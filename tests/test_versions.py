"""The oldest releases that `setup.cfg` declares are the ones that the job `oldest` of `.ci/run` installs."""

import configparser

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import ROOT


OLDEST = ROOT / ".ci" / "oldest.txt"


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


def pinned() -> dict[str, Version]:
    """What the constraints file pins."""
    lines = [line.split("#")[0].strip() for line in OLDEST.read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    assert all([s.operator for s in r.specifier] == ["=="] for r in requirements)
    return {r.name: Version(next(iter(r.specifier)).version) for r in requirements}


@pytest.mark.skipif(not OLDEST.exists(), reason="installed without a checkout")
def test_the_oldest_versions_are_the_lower_bounds_of_setup_cfg():
    assert declared() == {name: {version} for name, version in pinned().items()}
