"""One HTML file that holds everything: found in a folder, drawn, and written without a script or an outside request."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_gist.config.files import FOLDER
from hf_gist.gast.table import HISTORY_FILE
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.selection import Selection
from hf_gist.report import asked, charts
from hf_gist.report.canvas import LIGHT, NoFigures, drawn, save_png, to_svg
from hf_gist.report.examples import read_examples
from hf_gist.report.gast import gast_sections
from hf_gist.report.parts import Plot, Section
from hf_gist.report.reading import rows_to_read
from hf_gist.report.wording import visible
from hf_gist.utils.disk import write
from hf_gist.version import __version__


REPORT = "report.html"
TEMPLATE = "report.html.jinja"
STREAM = "stream.json"

DARK = {
    "paper": "#12161d",
    "ink": "#e7ebf1",
    "muted": "#a9b3c1",
    "grid": "#2c3541",
    "pool": "#7f8b9e",
    "kept": "#ff9d55",
    "line": "#7ab5f3",
}
"""The dark values of `canvas.LIGHT`."""


# ---- Finding ----


def selection_folder(folder: Path) -> Path | None:
    """Where a selection lies: in the folder itself, or below the output folder of a Trainer."""
    return next((place for place in (folder, folder / FOLDER) if (place / MANIFEST).is_file()), None)


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"`{folder}`: no such folder. Give the output folder of `hf-gist select` or of a training.")
    if selection_folder(folder) is None and not (folder / HISTORY_FILE).is_file():
        if (folder / STREAM).is_file():
            raise ValueError(
                f"`{folder}` holds a selection from a stream (`--streaming`), which keeps no scores to report on. Select "
                "without `--streaming` for a report."
            )
        raise ValueError(
            f"`{folder}` has nothing to report on: no {MANIFEST} (a selection) in it or in {FOLDER}/, and no "
            f"{HISTORY_FILE} (a GAST training). Give the output folder of `hf-gist select` or of a training."
        )


# ---- Content ----


def selection_sections(selection: Selection, folder: Path) -> list[Section]:
    """All there is to say of a selection whose artifacts lie in `folder`."""
    return [
        asked.asked(selection),
        charts.spectrum(selection),
        charts.scores(selection),
        charts.sources(selection),
        charts.lengths(selection),
        charts.energy(selection),
        rows_to_read(selection, read_examples(folder, selection)),
        asked.leaks(selection),
        asked.costs(selection, folder),
    ]


def _draw(sections: Sequence[Section], folder: Path) -> dict[str, Markup]:
    """Every figure as a PNG file in `folder`, and as SVG by its key."""
    found = {}
    for plot in _plots(sections):
        with drawn(plot) as figure:
            save_png(figure, folder / f"{plot.key}.png")
            # our own drawing: what is text in it was escaped by the XML writer
            found[plot.key] = Markup(to_svg(figure, f"plot-{plot.key}", plot.title))
    return found


def _plots(sections: Sequence[Section]) -> list[Plot]:
    return [plot for section in sections for plot in section.plots]


def save_selection_figures(selection: Selection, folder: str | Path) -> list[Path]:
    """Write the figures of a selection as PNG files: `spectrum`, `scores`, `sources`, `lengths` and `energy`.

    Args:
        selection (`Selection`): what to draw; what it has no data for is left out.
        folder (`str` or `Path`): where to write.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: if matplotlib is not installed, saying how to install it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    makers = (charts.spectrum, charts.scores, charts.sources, charts.lengths, charts.energy)
    files = []
    for plot in _plots([make(selection) for make in makers]):
        with drawn(plot) as figure:
            files.append(save_png(figure, folder / f"{plot.key}.png"))
    return files


# ---- Writing ----


def _shown(value: Any) -> Any:
    """What the template writes: nothing hidden in it, whatever it is and wherever it came from."""
    return value if isinstance(value, Markup) else visible(str(value))


def render(sections: Sequence[Section], figures: dict[str, Markup], absent: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        sections (`Sequence[Section]`): in order; those without data are named at the end.
        figures (`dict[str, Markup]`): SVG by the key of the plot; none where matplotlib is missing.
        absent (`Sequence[tuple[str, str]]`): further things that are not there, and why.
    """
    environment = Environment(
        loader=PackageLoader("hf_gist.report"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    missing = [(section.title, section.missing) for section in sections if section.missing]
    return environment.get_template(TEMPLATE).render(
        sections=[section for section in sections if not section.missing],
        absent=[*missing, *absent],
        figures=figures,
        hint=NoFigures.HINT if not figures else "",
        light=LIGHT,
        dark=DARK,
        version=__version__,
    )


def write_report(
    folder: str | os.PathLike, output_file: str | os.PathLike | None = None, selection: Selection | None = None
) -> Path:
    """Write what is known of a selection, a GAST training or both as one HTML file, and its figures as PNG files.

    The page holds no script and asks for nothing: everything is inside it. Without matplotlib it has the numbers as
    tables and says how to get the figures.

    Args:
        folder (`str` or `Path`): output folder of `hf-gist select` or of a Trainer. The PNG files go beside the artifacts.
        output_file (`str` or `Path`, *optional*): where to write; by default `report.html` in `folder`.
        selection (`Selection`, *optional*): the selection in the folder, if it is in memory already.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: if the folder has no artifacts, or one of them is damaged.
    """
    folder = Path(folder)
    _check(folder)
    path = Path(output_file) if output_file is not None else folder / REPORT
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"`--output_file {path}` must be a file in a folder that exists.")
    sections, absent, figures = [], [], {}
    place = selection_folder(folder)
    try:
        if place is None:
            absent.append(("Selection", f"There is no {MANIFEST}, so nothing was selected in this folder."))
        else:
            sections += selection_sections(selection or Selection.load(place), place)
            figures |= _draw(sections, place)
        if (folder / HISTORY_FILE).is_file():
            gast = gast_sections(folder)
            sections += gast
            figures |= _draw(gast, folder)
        else:
            absent.append(("GAST", f"There is no {HISTORY_FILE}, which a GAST training writes at its end."))
    except NoFigures:
        figures = {}
    text = render(sections, figures, absent)
    write(path, partial(_write_text, text))
    return path


def _write_text(text: str, name: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
