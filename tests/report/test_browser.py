"""The report in a headless Chromium: visible figures, contrast, keyboard, screen reader, no outside requests."""

import pytest

from hf_gist.report import keep_examples, write_report
from tests.helpers.browser import Browser, find_browser
from tests.helpers.reports import HOSTILE, STORABLE, selection_of
from tests.report.test_gast import table_of


pytestmark = pytest.mark.figures


SIZES = """[...document.querySelectorAll("figure svg")].map(e => {const r = e.getBoundingClientRect();
    return [e.id, r.width, r.height, e.querySelectorAll("path, image").length]})"""
CONTRASTS = """(() => {
    const light = c => {const v = c.map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]};
    const parse = text => text.match(/[0-9.]+/g).map(Number);
    const behind = e => {for (; e; e = e.parentElement) {const c = parse(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c.slice(0, 3)} return [255, 255, 255]};
    const found = [];
    for (const e of document.querySelectorAll("body *")) {
        if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || !e.checkVisibility()) continue;
        const style = getComputedStyle(e), ink = parse(e.closest("svg") ? style.fill : style.color).slice(0, 3);
        const pair = [light(ink), light(behind(e))].sort((a, b) => b - a);
        found.push([(pair[0] + 0.05) / (pair[1] + 0.05), e.tagName, e.textContent.slice(0, 30)]);
    }
    return found})()"""


@pytest.fixture(scope="module")
def browser():
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium or Chrome on the PATH: apt-get install chromium, or set CHROME_PATH")
    running = Browser(executable)
    yield running
    running.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with everything in it: a selection, a GAST training, and hostile names."""
    folder = tmp_path_factory.mktemp("report")
    table_of(40, groups=12, columns=HOSTILE[:6]).write(folder)
    leaks = {"target_dataset": {"rows": [3], "exact": 1, "same_words": 0}, "targets_in_evaluation": 0}
    selection = selection_of(sources=STORABLE, leaked=[3], manifest={"leaks": leaks, "seconds": {"scoring": 3.0}})
    selection.save(folder / "gist")
    rows = [{"prompt": HOSTILE[i % len(HOSTILE)], "completion": "word " * 400} for i in range(400)]
    keep_examples(folder / "gist", selection, rows, rows)
    return write_report(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_the_figures_are_visible_and_there_are_no_errors_or_requests(browser, page, width, scheme):
    browser.open(page, width, scheme=scheme)
    sizes = browser.value(SIZES)
    assert [name for name, *_ in sizes] == [
        f"plot-{key}"
        for key in ("spectrum", "scores", "sources", "lengths", "energy", "gast_selection", "gast_history")
    ]
    assert all(width * 0.4 < wide <= width and high > 150 and drawn > 5 for _, wide, high, drawn in sizes)
    assert browser.told("Runtime.exceptionThrown") == [] and browser.told("Runtime.consoleAPICalled") == []
    assert browser.told("Log.entryAdded") == []
    urls = [request["request"]["url"] for request in browser.told("Network.requestWillBeSent")]
    assert urls and all(url.startswith((page.as_uri(), "data:")) for url in urls)
    # no horizontal scrolling, also with all details open
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_the_dark_scheme_changes_page_and_figures(browser, page):
    colours = {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        colours[scheme] = browser.value(
            """["html", "figure svg text", "#plot-scores path[style*='--kept']"].map(s => {
                const style = getComputedStyle(document.querySelector(s)); return [style.backgroundColor, style.fill]})"""
        )
    (paper, _), (_, ink), (_, kept) = colours["light"]
    (dark_paper, _), (_, dark_ink), (_, dark_kept) = colours["dark"]
    assert paper != dark_paper and ink != dark_ink and kept != dark_kept


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, page, scheme):
    browser.open(page, scheme=scheme)
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    found = browser.value(CONTRASTS)
    assert len(found) > 200 and [entry for entry in found if entry[0] < 4.5] == []


def test_the_text_in_figures_is_readable_on_a_phone(browser, page):
    browser.open(page, 375)
    heights = browser.value(
        """[...document.querySelectorAll("svg text")].filter(e => e.textContent.trim()).map(e => {
            const m = e.getCTM(); return e.getBBox().height * Math.hypot(m.a, m.b)})"""
    )
    assert heights and min(heights) > 7


@pytest.mark.parametrize("width", [1200, 390])
def test_the_first_screen_holds_the_answers(browser, page, width):
    browser.open(page, width, 844)
    bottoms = browser.value("[...document.querySelectorAll('dd')].map(e => e.getBoundingClientRect().bottom)")
    assert len(bottoms) == 3 and max(bottoms) < 844
    sizes = browser.value(
        "[...document.querySelectorAll('dt, dd')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 16


def test_the_keyboard_reaches_and_opens_everything(browser, page):
    browser.open(page)
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "Skip to the content"
    assert browser.value("document.activeElement.getBoundingClientRect().left") > 0
    seen = []
    for _ in range(200):
        browser.press("Tab")
        tag = browser.value("document.activeElement.tagName")
        if tag == "BODY":
            break
        seen.append(tag)
        assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid", tag
        if tag == "SUMMARY" and seen.count("SUMMARY") == 1:
            browser.press("Enter", "\r")
            assert browser.value("document.activeElement.parentElement.open") is True
    assert seen.count("A") == browser.value("document.querySelectorAll('nav a').length")
    assert seen.count("SUMMARY") == browser.value("document.querySelectorAll('summary').length")


def test_the_accessibility_tree_has_names_and_structure(browser, page):
    browser.open(page)
    nodes = [node for node in browser("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    by_role = {}
    for node in nodes:
        by_role.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert len(by_role["image"]) == 7 and all(by_role["image"])
    assert {"banner", "main", "navigation", "contentinfo"} <= by_role.keys()
    assert "Settings and selected rows" in by_role["heading"] and all(by_role["heading"])
    assert all(by_role["link"]) and all(by_role["table"])
    assert browser.value("document.documentElement.lang") == "en" and browser.value("document.title")


def test_hostile_names_are_text_in_a_real_browser(browser, page):
    browser.open(page)
    assert browser.value("document.scripts.length + document.images.length") == 0
    assert browser.value("document.body.textContent.includes('<script>alert(1)</script>')") is True
    assert (
        browser.value("[...document.querySelectorAll('*')].some(e => e.onmouseover || e.onfocus || e.onerror)")
        is False
    )
    assert browser.told("Page.javascriptDialogOpening") == []
