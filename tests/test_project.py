"""The files beside the code: workflows, hooks and templates parse and agree with `setup.cfg`."""

import configparser
import re

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from hf_gist import __version__
from tests import ROOT


FILES = [*sorted(ROOT.glob(".github/**/*.yml")), ROOT / ".pre-commit-config.yaml"]
MINORS = [f"3.{minor}" for minor in range(8, 20)]

pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not a checkout")


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def classified() -> list[str]:
    """The Python versions that the classifiers name."""
    return re.findall(r"Python :: (3\.\d+)$", setup()["metadata"]["classifiers"], re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_yaml_files_parse(path):
    assert isinstance(load(path), dict)


def test_the_tests_run_on_the_python_versions_that_are_declared():
    required = SpecifierSet(setup()["options"]["python_requires"])
    jobs = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == classified()
    assert [minor for minor in MINORS if minor in required][: len(classified())] == classified()
    for job in jobs.values():
        versions = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
        assert all(version in classified() or "matrix" in version for version in versions)


def test_the_workflow_runs_jobs_of_the_script():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    called = re.findall(r"run: \.ci/run (\w+)$", text, re.MULTILINE)
    defined = re.findall(r"^(\w+)\(\) \{$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(called) == {"checks", "newest", "oldest"} and set(called) <= set(defined)


def test_hooks_use_a_ruff_that_setup_cfg_allows():
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"]
    revision = next(repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit"))
    lines = setup()["options.extras_require"]["test"].split("\n")
    ruff = next(Requirement(line) for line in lines if line.startswith("ruff"))
    assert Version(revision) in ruff.specifier


def test_the_changelog_has_a_section_for_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)$", text, re.MULTILINE)
