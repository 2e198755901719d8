"""The reference is that of the code: all names, settings and flags."""

import dataclasses

import pytest

import hf_gist
from hf_gist.commands.main import COMMANDS, build_parser
from hf_gist.config import GASTConfig, GISTConfig
from tests import ROOT
from tests.helpers import reference
from tests.helpers.markdown import sections


PAGES = reference.pages()
FOLDER = reference.GUIDES / "reference"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_pages_are_those_of_the_code(path):
    assert path.read_text(encoding="utf-8") == PAGES[path], "run python -m tests.helpers.reference"


def test_there_is_no_other_page():
    assert {*FOLDER.iterdir()} == {path for path in PAGES if path.parent == FOLDER}


def test_every_public_name_has_a_section_or_settings():
    found = {anchor for path in PAGES for anchor in sections(path)}
    assert {name.lower() for name in hf_gist.__all__ if name != "__version__"} <= found


@pytest.mark.parametrize("cls", [GISTConfig, GASTConfig])
def test_the_ranges_are_those_of_the_checks(cls):
    """A value out of range is refused with the words of the reference."""
    text = sections(FOLDER / "settings.md")[cls.__name__.lower()]
    numbers = {f.name for f in dataclasses.fields(cls) if f.type in (int, float, int | float)}
    numbers |= {f.name for f in dataclasses.fields(cls) if f.type in (int | None, float | None)}
    for name in numbers:
        with pytest.raises(ValueError) as caught:
            cls(**{name: -2})
        # the range comes before what the setting excludes
        words = next(part for part in str(caught.value).split("; ") if f"`{name}`" in part)
        words = words.partition("must be ")[2].partition(", got")[0]
        (entry,) = [line for line in text.splitlines() if line.startswith(f"- **`{name}`**")]
        assert f"; {words})" in entry


def test_every_flag_is_there():
    parser = build_parser()
    text = (FOLDER / "commands.md").read_text(encoding="utf-8")
    settings = (FOLDER / "settings.md").read_text(encoding="utf-8")
    commands = next(action for action in parser._actions if action.dest == "command").choices
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        for action in command._actions:
            if action.dest != "help" and f"- **`{action.dest}`**" not in settings:
                names = action.option_strings or [action.metavar]
                assert f"`{names[0]}`" in sections(FOLDER / "commands.md")[f"hf-gist-{name}"], text


@pytest.mark.parametrize(
    ("doc", "lines"),
    [
        ("One\nline.\n\nArgs:\n    a_b (`int`): what\n        it is.\n    c: other.\n",
         ["One line.", "", "Arguments:", "", "- `a_b` (`int`): what it is.", "- `c`: other."]),
        ("Text of [`~a.b`].\n\nReturns:\n    `dict[str, int]`: first\n    second.",
         ["Text of `a.b`.", "", "Returns:", "", "- `dict[str, int]`: first second."]),
        ("T.\n\nExample:\n    ```python\n    x = 1\n\n    y(x)\n    ```\n",
         ["T.", "", "Example:", "", "```python", "x = 1", "", "y(x)", "```"]),
        ("T.\n\nRaises:\n    a.b.Error: never.", ["T.", "", "Raises:", "", "- `a.b.Error`: never."]),
    ],
)  # fmt: skip
def test_docstrings_as_markdown(doc, lines):
    assert reference.markdown(doc) == lines


def test_the_reference_is_in_the_repository():
    assert (ROOT / "recipes" / "guides" / "reference.md").exists()
