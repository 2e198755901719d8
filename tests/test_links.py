"""Every relative link and anchor of the documentation exists, also those that the code names."""

import ast
from pathlib import Path

import pytest

import hf_gist
from hf_gist.commands.main import COMMANDS, build_parser
from hf_gist.utils.guides import guide
from tests import ROOT
from tests.helpers.markdown import GUIDES, README, RECIPES, links, sections, slug, text_of


DOCUMENTS = [README, RECIPES, *GUIDES, ROOT / ".github" / "CONTRIBUTING.md", *ROOT.glob("recipes/*/*.md")]
pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not a checkout")

ON_GITHUB = "../../actions/"
"""Pages of the repository on GitHub that are no files."""


def broken(path: Path, text: str) -> list[str]:
    """The relative links of a text that lead nowhere."""
    found = []
    for target in links(text):
        if target.startswith(("https://", "http://", ON_GITHUB)):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in sections(file))):
            found.append(target)
    return found


@pytest.mark.parametrize("path", sorted(set(DOCUMENTS)), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    assert broken(path, text_of(path)) == []


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("[a](recipes/README.md#recipes)", []),
        ("[a](recipes/README.md#no-such-heading)", ["recipes/README.md#no-such-heading"]),
        ("[a](no_such_file.md)", ["no_such_file.md"]),
        ("[a](#when-to-use-it-and-when-not) [b](#nothing)", ["#nothing"]),
        ('<img src="no_picture.png">', ["no_picture.png"]),
        ("`[a](in_code.md)` [b](https://example.org/x)", []),
    ],
)
def test_broken_links_are_found(text, targets):
    assert broken(README, text) == targets


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("What's new? `a_b` & c", "whats-new-a_b--c"),
        ("A [link](x.md), 5 %", "a-link-5-"),
        ("GAST: the gate", "gast-the-gate"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert slug(heading) == anchor


def named_guides() -> list[tuple[str, tuple]]:
    """Every call of `guide` in the package, with its file."""
    calls = []
    for path in Path(hf_gist.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "guide":
                calls.append((path.name, tuple(ast.literal_eval(argument) for argument in node.args)))
    return calls


@pytest.mark.parametrize(("file", "arguments"), named_guides())
def test_the_guides_that_the_code_names_exist(file, arguments):
    path, _, anchor = guide(*arguments).partition("#")
    assert (ROOT / path).exists() and (not anchor or anchor in sections(ROOT / path)), file


def test_errors_and_help_name_guides(capsys):
    assert len(named_guides()) >= 10
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            build_parser().parse_args([name, "--help"])
        assert COMMANDS[name].guide in "".join(capsys.readouterr().out.split())
