"""The module layout and the public names that scripts rely on."""

import ast
from pathlib import Path

import pytest

import hf_gist


PACKAGE = Path(hf_gist.__file__).parent
PURE = {
    "config",
    "errors",
    "gate",
    "markdown",
    "masking",
    "measurements",
    "persample",
    "selection",
    "sketch",
    "subspace",
    "version",
}
FRONT = {
    "__init__",
    "__main__",
    "callback",
    "cli",
    "compare",
    "demo",
    "flags",
    "pipeline",
    "plan",
    "publish",
    "stream",
    "trainer",
    "workspace",
}
ONE_WAY_OUT = {(PACKAGE / "config.py", "hf_gist.hub")}
"""Imports that point the other way, inside a function: `GISTConfig.from_pretrained` must be a method of the class."""
OUTSIDE_OF_PURE = {"transformers", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "trl"}


def group_of(module: str) -> int:
    return 0 if module in PURE else 2 if module in FRONT else 1


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "hf_gist" else {node.module}
            )
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_from_front_to_edges_to_pure(path):
    own = group_of(module_of(path))
    for name in imports_of(path):
        if (path, name) in ONE_WAY_OUT:
            assert name not in imports_of(path, everywhere=False), f"{path.name} imports {name} when it is loaded"
            continue
        parts = name.split(".")
        if parts[0] == "hf_gist" and len(parts) > 1:
            assert group_of(parts[1]) <= own, f"{path.name} imports {name}"
        if own == 0:
            assert parts[0] not in OUTSIDE_OF_PURE, f"{path.name} is pure but imports {name}"


def test_public_names():
    names = {"GISTConfig", "GISTDataSelectorCallback", "GASTConfig", "GASTTrainer", "GASTMixin"}
    names |= {"select", "Selection", "per_sample_gradients_reference"}
    assert names <= set(hf_gist.__all__)
    assert all(hasattr(hf_gist, name) for name in hf_gist.__all__)


def test_top_level_is_what_was_asked_for():
    top = PACKAGE.parent
    if not (top / "setup.cfg").exists():
        pytest.skip("installed without a checkout")
    allowed = {"setup.cfg", "setup.py", "README.md", "hf_gist", "tests", "recipes", "CHANGELOG.md", "LICENSE"}
    built = {"build", "dist", "hf_gist.egg-info", "gist_demo", "__pycache__"}
    found = {path.name for path in top.iterdir() if not path.name.startswith(".")}
    assert found - built == allowed
