"""README.md: its length, first screen, badges, citations, and where its numbers come from."""

import configparser
import json
import re
from urllib.parse import unquote

import pytest

from hf_gist import __version__
from hf_gist.hub.templating import citations
from tests import ROOT
from tests.helpers import markdown
from tests.helpers.markdown import README, text_of


pytestmark = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not a checkout")

GUIDE_LINES = 200
README_LINES = 150


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def paragraphs(text: str) -> list[str]:
    """Paragraphs, items of lists and rows of tables, without code blocks and comments."""
    return [part for part in re.split(r"\n\n|\n(?=[-|#] )", markdown.prose(text)) if part.strip()]


def linked_tables(paragraph: str) -> list[str]:
    """The numbers in the tables of the sections that a paragraph links to."""
    found = []
    for target in markdown.links(paragraph):
        path, _, anchor = target.partition("#")
        if anchor:
            found += markdown.table_numbers(markdown.sections(README.parent / path)[anchor])
    return found


def missing_numbers(paragraph: str) -> list[str]:
    """The numbers of a paragraph that are in no table that it links to."""
    known = linked_tables(paragraph)
    return [n for n in markdown.numbers(paragraph) if not any(markdown.is_rounded(n, exact) for exact in known)]


@pytest.mark.parametrize("paragraph", paragraphs(text_of(README)), ids=lambda text: text[:40])
def test_every_number_is_in_a_table_that_the_paragraph_links_to(paragraph):
    if "img.shields.io" in paragraph:
        return  # see `test_the_badges_agree_with_setup_cfg`
    assert missing_numbers(paragraph) == []


@pytest.mark.parametrize(
    ("paragraph", "missing"),
    [
        ("whole pool 2.27, selection 2.70 ([w](recipes/README.md#against-the-whole-pool))", []),
        ("whole pool 2.28, selection 2.70 ([w](recipes/README.md#against-the-whole-pool))", ["2.28"]),
        ("1,433 steps ([w](recipes/README.md#against-the-whole-pool)), `budget=0.3`", []),
        ("2.27 without a link", ["2.27"]),
        ("2.27 of another table ([g](recipes/README.md#gast-quality))", ["2.27"]),
        ('<img src="x.png" alt="a loss of 2.99">', ["2.99"]),
        ("4 rows of ZeRO-2 ([w](recipes/README.md#against-the-whole-pool))", ["4"]),
    ],
)
def test_a_number_that_is_in_no_table_is_found(paragraph, missing):
    assert missing_numbers(paragraph) == missing


def test_readme_and_guides_are_short():
    lengths = {str(path.relative_to(ROOT)): len(text_of(path).splitlines()) for path in [README, *markdown.GUIDES]}
    limits = dict.fromkeys(lengths, GUIDE_LINES) | {"README.md": README_LINES}
    assert {name: lines for name, lines in lengths.items() if lines > limits[name]} == {}


def test_no_table_is_wider_than_a_phone_can_show():
    """Three columns at most; wider ones are in recipes/README.md."""
    for path in [README, *markdown.GUIDES]:
        rows = [line for line in markdown.prose(text_of(path)).splitlines() if re.match(r"\|[-|: ]+\|$", line)]
        assert all(row.strip("|").count("|") <= 2 for row in rows), path


def test_the_two_commands_are_on_the_first_screen():
    head = "\n".join(text_of(README).splitlines()[:45])
    assert 'pip install -e ".[report]" && hf-gist demo' in head and 'pip install -e ".[test]" && pytest' in head


def test_the_first_screen_has_a_picture_with_a_text():
    head = "\n".join(text_of(README).splitlines()[:20])
    (picture,) = re.findall(r"<picture>.*?</picture>", head, re.DOTALL)
    assert "prefers-color-scheme: dark" in picture and len(re.search(r'alt="([^"]+)"', picture)[1]) > 60


def test_the_table_of_the_demo_has_the_numbers_of_the_picture():
    made = json.loads((ROOT / ".github" / "assets" / "demo.json").read_text(encoding="utf-8"))
    found = markdown.table_numbers(markdown.sections(markdown.RECIPES)["the-demo"])
    for name in ("random", "whole pool", "GIST"):
        row = [f"{made['rows'][name]:,}", str(made["steps"][name]), f"{made['losses'][name]:.4f}"]
        assert any(found[at : at + 3] == row for at in range(len(found))), name
    assert f"{made['losses']['untrained']:.4f}" in found


def test_every_guide_is_in_the_table_of_guides():
    guides = {path for path in markdown.GUIDES if path.parent.name == "guides"}
    linked = {(README.parent / target.partition("#")[0]).resolve() for target in markdown.links(text_of(README))}
    assert guides <= linked


def test_the_badges_agree_with_setup_cfg():
    text = unquote(text_of(README)).replace("--", "-")
    versions = re.findall(r"Python :: (3\.\d+)$", setup()["metadata"]["classifiers"], re.MULTILINE)
    assert f"badge/python-{' | '.join(versions)}-blue" in text and f"[![Python {', '.join(versions)}]" in text
    assert f"badge/license-{setup()['metadata']['license']}-blue" in text
    assert (ROOT / ".github" / "workflows" / "ci.yml").exists() and "actions/workflows/ci.yml/badge.svg" in text


def test_the_citations_are_those_of_the_cards():
    (text,) = [text for language, text in markdown.blocks(README) if language == "bibtex"]
    assert text.startswith(citations().strip() + "\n")
    assert text.count("@") == 3 and f"version = {{{__version__}}}" in text


def test_the_versions_in_the_guide_are_those_of_setup_cfg():
    text = markdown.sections(ROOT / "recipes" / "guides" / "frameworks.md")["versions"].replace("\n", " ")
    required = dict(line.split(">=") for line in setup()["options"]["install_requires"].split() if ">=" in line)
    for name in ("torch", "transformers", "peft", "accelerate", "datasets"):
        assert f"{name} {required[name]}" in text
    extra = dict(line.split(">=") for line in setup()["options.extras_require"]["trl"].split())
    assert f"TRL ({extra['trl']} or newer) need datasets {extra['datasets']}" in text
