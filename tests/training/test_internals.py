"""The private names that the library relies on are still there, and all of them are listed."""

import ast
import importlib
import inspect
import re
from importlib.util import find_spec

import pytest

from hf_gist.training import internals
from hf_gist.training.internals import INTERNALS, Internal
from tests.test_layout import modules


def resolve(path):
    """The class or module at a dotted path."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{path} is gone")


def is_there(entry):
    owner = resolve(entry.owner)
    if entry.set_by == "class":
        return hasattr(owner, entry.name)
    # only instances have it: the class, or one that it inherits from, names it in its code
    sources = [inspect.getsource(cls) for cls in inspect.getmro(owner) if cls is not object]
    return any(re.search(rf"\b{entry.name}\b", text) for text in sources)


def check(entry):
    assert is_there(entry), f"{entry.owner}.{entry.name} is gone: {entry.why}"


@pytest.mark.parametrize("entry", INTERNALS, ids=lambda entry: f"{entry.owner}.{entry.name}")
def test_the_name_is_still_there(entry):
    if entry.owner.startswith("trl") and find_spec("trl") is None:
        pytest.skip("TRL is not installed")
    assert entry.why
    check(entry)


@pytest.mark.parametrize("set_by", ["class", "source"])
def test_a_name_that_is_gone_fails_with_its_reason(set_by):
    with pytest.raises(AssertionError, match="_renamed_away is gone: a reason"):
        check(Internal("transformers.Trainer", "_renamed_away", "a reason", set_by))


def private_names_used():
    """Private attributes that the package reads or sets and does not define itself."""
    used, own = {}, set()
    for name, path in modules().items():
        if name == internals.__name__:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if (
                        isinstance(target, ast.Attribute)
                        and isinstance(target.value, ast.Name)
                        and target.value.id == "self"
                    ):
                        own.add(target.attr)
                    elif isinstance(target, ast.Name):
                        own.add(target.id)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                used.setdefault(node.attr, name)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr")
            ):
                attribute = node.args[1]
                if isinstance(attribute, ast.Constant) and re.match("_[a-z]", attribute.value):
                    used.setdefault(attribute.value, name)
    return {name: module for name, module in used.items() if name not in own}


OWN_OVERRIDES = {"_save_checkpoint", "_load_optimizer_and_scheduler"}
"""Defined by `GASTMixin` because the Trainer calls them."""


def test_every_private_name_is_listed():
    listed = {entry.name for entry in INTERNALS}
    unlisted = {name: module for name, module in private_names_used().items() if name not in listed}
    assert not unlisted, "add them to INTERNALS, with the reason"
    assert OWN_OVERRIDES <= listed


def test_every_entry_is_used():
    text = "".join(path.read_text(encoding="utf-8") for name, path in modules().items() if name != internals.__name__)
    assert not [entry.name for entry in INTERNALS if entry.name not in text and entry.name != "_instances"]
