"""The map of the code: one order of packages, no circles, small files and functions, and the public names."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import pytest

import hf_gist


PACKAGE = Path(hf_gist.__file__).parent

ORDER = [
    "version",  # of the package
    "errors",  # named warnings
    "utils",  # files, terminal
    "config",  # what the user sets
    "functional",  # arithmetic on tensors
    "data",  # rows, tokens, duplicates, origins
    "gradients",  # peft and transformers models: hooks, losses, passes
    "costs",  # operations, seconds, the ledger, the manifest
    "gist | gast",  # the two methods, which do not know each other
    "report",  # the page
    "hub",  # cards and uploads
    "training",  # inside a running Trainer
    "callback | trainer | offline",  # GISTDataSelectorCallback, GASTTrainer, select()
    "frameworks",  # other people's training programs
    "commands",  # hf-gist
    "__main__",
    "__init__",
]
"""A module imports its own package and what stands before it; imports inside functions count."""

RANK = {name.strip(): rank for rank, line in enumerate(ORDER) for name in line.split("|")}
OF_FUNCTIONAL = {"torch", "numpy", "hf_gist", *sys.stdlib_module_names}
FILES_IN_A_FOLDER, LINES, MEDIAN_LINES, FUNCTION_LINES, FUNCTION_P90 = 13, 400, 130, 50, 17
SHORT = {"callback.py": 149, "trainer.py": 199}


def package_of(module: str) -> str:
    """`gist` of `hf_gist.gist.scoring`; `__init__` of `hf_gist` itself."""
    return (module.split(".") + ["__init__"])[1]


@cache
def modules() -> dict[str, Path]:
    paths = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imports_of(path: Path) -> set[str]:
    """Full names of all that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def graph() -> dict[str, set[str]]:
    """Module to the modules of the package that it imports."""
    return {
        name: {
            target if target in modules() else target.rpartition(".")[0]
            for target in imports_of(path)
            if target.split(".")[0] == "hf_gist"
        }
        for name, path in modules().items()
    }


def test_every_module_has_a_place_in_the_order():
    unknown = {name for name in modules() if package_of(name) not in RANK}
    assert not unknown, f"give {sorted(unknown)} a place in ORDER"
    assert all(target in modules() for targets in graph().values() for target in targets)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_follow_the_order(name):
    own = package_of(name)
    for target in graph()[name]:
        other = package_of(target)
        assert other == own or RANK[other] < RANK[own], f"{name} imports {target}"


def test_no_circle_of_imports():
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in finished:
            return
        for target in sorted(graph()[name]):
            visit(target, (*path, name))
        finished.add(name)

    for name in modules():
        visit(name, ())
    assert finished == set(modules())


def test_functional_is_arithmetic():
    for name, path in modules().items():
        if package_of(name) == "functional":
            assert {target.split(".")[0] for target in imports_of(path)} <= OF_FUNCTIONAL, name


def function_lengths() -> dict[str, int]:
    """Lines of every function without its docstring."""
    lengths = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node, clean=False)
                lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
                lengths[f"{name}.{node.name}:{node.lineno}"] = lines
    return lengths


def test_files_and_functions_are_small():
    folders: dict[Path, list[Path]] = {}
    for path in modules().values():
        folders.setdefault(path.parent, []).append(path)
    assert {str(f): len(p) for f, p in folders.items() if len(p) > FILES_IN_A_FOLDER} == {}
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules().values()
    }
    assert {name: n for name, n in lines.items() if n > SHORT.get(name, LINES)} == {}
    assert median(lines.values()) <= MEDIAN_LINES
    functions = function_lengths()
    assert {name: n for name, n in functions.items() if n > FUNCTION_LINES} == {}
    assert quantiles(functions.values(), n=10)[-1] <= FUNCTION_P90


def test_public_names():
    names = {"GISTConfig", "GISTDataSelectorCallback", "GASTConfig", "GASTTrainer", "GASTMixin"}
    names |= {"select", "Selection", "per_sample_gradients_reference"}
    assert names <= set(hf_gist.__all__)
    assert all(hasattr(hf_gist, name) for name in hf_gist.__all__)
    assert set(hf_gist.__all__) <= set(dir(hf_gist))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_gist.nothing


def in_a_new_process(code: str, *options: str) -> str:
    result = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_configuration_alone_imports_no_framework():
    heavy = ["transformers", "peft", "datasets", "accelerate", "torch", "trl"]
    code = f"import json, sys; from hf_gist import GISTConfig; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    assert json.loads(in_a_new_process(code)) == []


def test_import_without_the_resource_module():
    """As on Windows, where psutil does without it too."""
    code = "import psutil, sys; sys.modules['resource'] = None; import hf_gist; [getattr(hf_gist, n) for n in hf_gist.__all__]"
    assert in_a_new_process(code) == ""


def test_import_emits_no_warning():
    code = "import hf_gist; [getattr(hf_gist, n) for n in hf_gist.__all__]"
    assert in_a_new_process(code, "-W", "error") == ""


def test_top_level_is_what_was_asked_for():
    top = PACKAGE.parent
    if not (top / "setup.cfg").exists():
        pytest.skip("installed without a checkout")
    allowed = {"setup.cfg", "setup.py", "README.md", "hf_gist", "tests", "recipes", "CHANGELOG.md", "LICENSE"}
    built = {"build", "dist", "hf_gist.egg-info", "gist_demo", "__pycache__"}
    # a user's virtual environment may be in the checkout
    here = [path for path in top.iterdir() if not (path / "pyvenv.cfg").exists()]
    found = {path.name for path in here if not path.name.startswith(".")}
    assert found - built == allowed
