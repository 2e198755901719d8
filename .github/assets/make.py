"""Make the pictures of README.md and of the guides from a run of the demo.

    hf-gist demo && python .github/assets/notebook.py     # gist_demo/, and gist_demo/tutorial/ with a GAST run
    python .github/assets/make.py gist_demo --frontier frontier.png

Writes PNG files next to this script, and what they show: `alt.json` has a text for each, `demo.json` the numbers of the
demo. Figures of the report are named by their keys (`spectrum`, `gast_selection`, ...); a figure that no run in the folder
has is skipped with a message, and an earlier picture of it is kept. Screenshots need Chromium or Chrome.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image


HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from hf_gist.commands.demo.result import GIST, RANDOM, UNTRAINED, WHOLE  # noqa: E402
from hf_gist.report.canvas import LIGHT, STYLE, drawn, save_png  # noqa: E402
from hf_gist.report.page import DARK, REPORT, content_of, write_report  # noqa: E402
from hf_gist.report.parts import Plot  # noqa: E402
from tests.helpers.browser import Browser, find_browser  # noqa: E402


ALT = "alt.json"
NUMBERS = "demo.json"
FIGURES = ("spectrum", "scores", "sources", "gast_selection", "gast_history", "target_loss")
"""Figures of the report that are pictures of README.md or of a guide, by key."""

SCREENSHOTS = {
    "report-light": (1000, 800, "light"),
    "report-dark": (1000, 800, "dark"),
    "report-phone": (390, 844, "light"),
}
"""Width and height in pixels of CSS, and colour scheme."""

SCALE = 2
"""Pixels of a screenshot to one of CSS, for sharp text on most screens."""

BARS = {UNTRAINED: "no fine-tuning", RANDOM: "random rows", WHOLE: "the whole pool", GIST: "rows chosen by GIST"}
COLOURS = 64
"""Of the palette of a picture: fewer than 256 halve its size, and text and flat areas stay as they are."""

LIMIT = 1_500_000
"""Bytes of all pictures together."""

Alt = dict[str, str]


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


# ---- The result of the demo ----


def demo_numbers(folder: Path) -> dict[str, Any]:
    """Losses, rows and steps of a demo, and how many target rows it found."""
    values = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    names = ("seed", "losses", "rows", "steps", "kept", "found", "hidden", "found_by_chance")
    return {name: values[name] for name in names}


def demo_picture(numbers: dict[str, Any], colours: dict[str, str], path: Path) -> None:
    """The losses as bars with their numbers.

    Args:
        numbers (`dict`): of [`demo_numbers`].
        colours (`dict[str, str]`): by the roles of the report.
        path (`Path`): of the PNG file.
    """
    roles = {UNTRAINED: "pool", RANDOM: "pool", WHOLE: "pool", GIST: "kept"}
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 2.5), layout="constrained", facecolor=colours["paper"])
        axes = figure.subplots()
        for place, name in enumerate(BARS):
            loss = numbers["losses"][name]
            axes.barh(place, loss, 0.62, color=colours[roles[name]])
            axes.annotate(
                f"{loss:.2f}", (loss, place), (5, 0), textcoords="offset points", va="center", color=colours["ink"]
            )
        axes.set_yticks(range(len(BARS)), [_bar_name(numbers, name) for name in BARS], color=colours["ink"])
        figure.suptitle(
            "Loss on held-out target rows (lower is better)", x=0.01, ha="left", color=colours["ink"], fontsize=10
        )
        axes.set(xlim=(0, 1.15 * max(numbers["losses"].values())), xticks=[])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        save_png(figure, path)


def _bar_name(numbers: dict[str, Any], name: str) -> str:
    """A bar's name with its rows and steps."""
    if name == UNTRAINED:
        return BARS[name]
    return f"{BARS[name]}\n{numbers['rows'][name]:,} rows, {numbers['steps'][name]} steps"


def demo_alt(numbers: dict[str, Any]) -> str:
    """What the picture shows, with its numbers."""
    parts = [f"{BARS[name]} {numbers['losses'][name]:.2f}" for name in BARS]
    return f"Bar chart of the loss on held-out target rows in the demo: {', '.join(parts)}. Lower is better."


def demo_pictures(folder: Path) -> Alt:
    """The result in light and dark."""
    numbers = demo_numbers(folder)
    (HERE / NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    alt = demo_alt(numbers)
    for scheme, colours in (("light", LIGHT), ("dark", DARK)):
        demo_picture(numbers, colours, HERE / f"demo-{scheme}.png")
    return {f"demo-{scheme}.png": alt for scheme in ("light", "dark")}


# ---- Figures of the report ----


def runs_in(folder: Path) -> Iterator[Path]:
    """Folders that the report can be written on: the folder itself and those in it, those higher up first."""
    for place in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())], key=lambda p: len(p.parts)):
        if any((place / name).is_file() for name in ("gist/manifest.json", "gast_history.parquet")):
            yield place


def plots_in(folder: Path) -> dict[str, Plot]:
    """The figures of the reports on all runs in a folder by key; of several with one key, that of the first run."""
    found: dict[str, Plot] = {}
    for run in runs_in(folder):
        found = content_of(run).plots | found
    return found


def figure_pictures(folder: Path, keys: tuple[str, ...]) -> Alt:
    """Figures of the report by key; those that no run has are skipped with a message."""
    plots = plots_in(folder)
    alt = {}
    for key in keys:
        if key not in plots:
            say(f"skipped {key}: no run in {folder} has this figure; they have {', '.join(plots)}")
            continue
        with drawn(plots[key]) as figure:
            save_png(figure, HERE / f"{key}.png")
        alt[f"{key}.png"] = f"{plots[key].title}. {plots[key].sentence}"
    return alt


# ---- Screenshots ----


def screenshots(folder: Path) -> Alt:
    """The first screen of the demo's report; none without a browser."""
    executable = find_browser()
    if executable is None:
        say("skipped the screenshots: no Chromium or Chrome on the PATH; install one, or set CHROME_PATH")
        return {}
    answers = " ".join(
        f"{question.rstrip('?')}: {answer}" for question, answer in content_of(folder).opening.answers()
    )
    browser = Browser(executable)
    try:
        for name, (width, height, scheme) in SCREENSHOTS.items():
            browser.open(folder / REPORT, width, height, scheme)
            browser("Emulation.setScrollbarsHidden", hidden=True)
            size = {"width": width, "height": height, "deviceScaleFactor": SCALE, "mobile": width < 600}
            browser("Emulation.setDeviceMetricsOverride", **size)
            browser.screenshot(HERE / f"{name}.png", whole=False)
    finally:
        browser.close()
    views = {"report-light": "in light colours", "report-dark": "in dark colours", "report-phone": "on a phone"}
    return {f"{name}.png": f"First screen of a report {view}. {answers}" for name, view in views.items()}


# ---- All of them ----


def compress(path: Path) -> None:
    """Reduce the colours of a PNG file to a palette."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def make(folder: Path, keys: tuple[str, ...], frontier: Path | None) -> Alt:
    """Make all pictures of which the folder has the data; returns the text of each file.

    Args:
        folder (`Path`): output folder of `hf-gist demo`.
        keys (`tuple[str, ...]`): figures of the report.
        frontier (`Path`, *optional*): figure of `recipes/benchmarks/frontier.py`, which is copied.

    Raises:
        ValueError: if the pictures are too large.
    """
    write_report(folder)
    alt = demo_pictures(folder) | figure_pictures(folder, keys) | screenshots(folder)
    if frontier is not None:
        shutil.copyfile(frontier, HERE / "frontier.png")
        alt["frontier.png"] = (
            "Loss after training, minus that of random rows, against the cost of selecting, by method."
        )
    for name in alt:
        compress(HERE / name)
    size = sum(path.stat().st_size for path in HERE.glob("*.png"))
    if size > LIMIT:
        raise ValueError(f"The pictures have {size:,} bytes, more than {LIMIT:,}: make fewer or smaller ones.")
    return alt


def main() -> None:
    """Make the pictures, and add their texts to `alt.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Output folder of `hf-gist demo`.")
    parser.add_argument("--figures", nargs="*", default=FIGURES, help="Keys of figures of the report.")
    parser.add_argument("--frontier", type=Path, help="The frontier.png of recipes/benchmarks/frontier.py.")
    flags = parser.parse_args()
    alt = make(flags.folder, tuple(flags.figures), flags.frontier)
    path = HERE / ALT
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(before | alt, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    say("\n".join(f"{name:<24}{(HERE / name).stat().st_size:>9,}" for name in alt))


if __name__ == "__main__":
    main()
