"""The report: one HTML file without scripts or external requests, and its figures as PNG files."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hf_gist.config.files import FOLDER
from hf_gist.costs.ledger import CostLedger
from hf_gist.gast.table import HISTORY_FILE
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.selection import Selection
from hf_gist.report import asked
from hf_gist.report.canvas import LIGHT, NoFigures, drawn, save_png, to_svg
from hf_gist.report.charts import FIGURES, figure_section
from hf_gist.report.examples import read_examples
from hf_gist.report.gast import NO_SELECTION, PAGE_TITLE, gast_sections
from hf_gist.report.parts import Content, Opening, Plot, Section
from hf_gist.report.reading import rows_to_read
from hf_gist.report.runs.opening import GAST_HEADINGS, of_selection
from hf_gist.report.runs.stream import STREAM_FILE, StreamRun
from hf_gist.report.wording import visible
from hf_gist.utils.disk import write
from hf_gist.version import __version__


REPORT = "report.html"
TEMPLATE_FILE = "report.html.jinja"
DARK = {
    "paper": "#12161d",
    "ink": "#e7ebf1",
    "muted": "#a9b3c1",
    "grid": "#2c3541",
    "pool": "#7f8b9e",
    "kept": "#ff9d55",
    "line": "#7ab5f3",
}
"""The colours of the dark scheme, by the roles of `canvas.LIGHT`."""


# ---- Input ----


def selection_folder(folder: Path) -> Path | None:
    """The folder of the selection's artifacts: `folder` itself, or `gist` in it (output folder of a Trainer)."""
    return next((place for place in (folder, folder / FOLDER) if (place / MANIFEST).is_file()), None)


def _nothing(folder: Path) -> ValueError:
    """The error for a folder without artifacts."""
    if not folder.is_dir():
        return ValueError(f"`{folder}`: no such folder. Give the output folder of `hf-gist select` or a training run.")
    return ValueError(
        f"`{folder}` has nothing to report on: no {MANIFEST} (a selection) in it or in {FOLDER}/, no {STREAM_FILE} (a "
        f"selection from a stream) and no {HISTORY_FILE} (a GAST training run). Give the output folder of "
        "`hf-gist select`, `hf-gist compare` or a training run."
    )


def _output_path(folder: Path, output_file: str | os.PathLike | None) -> Path:
    path = Path(output_file) if output_file is not None else folder / REPORT
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"`--output_file {path}` must be a file in an existing folder.")
    return path


# ---- Content ----


def selection_sections(selection: Selection, folder: Path) -> list[Section]:
    """All sections on a selection, in order.

    Args:
        selection (`Selection`): what was selected.
        folder (`Path`): the folder of its artifacts.

    Raises:
        ValueError: if an artifact is damaged.
    """
    return [
        asked.asked(selection),
        *(figure_section(key, selection) for key in FIGURES),
        rows_to_read(selection, read_examples(folder, selection)),
        asked.leaks(selection),
        asked.costs(selection, folder),
    ]


# ---- Figures ----


def _plots(sections: Sequence[Section]) -> dict[str, Plot]:
    """The plots of all sections by key."""
    return {key: plot for section in sections for key, plot in section.plots.items()}


def _remove_others(plots: dict[str, Plot], folder: Path) -> None:
    """Remove the figures of an earlier selection in a folder that this one does not have."""
    for key in FIGURES.keys() - plots.keys():
        (folder / f"{key}.png").unlink(missing_ok=True)


def _draw(sections: Sequence[Section], folder: Path) -> dict[str, Markup]:
    """Write every figure as a PNG file to `folder`, and return it as SVG by its key.

    Raises:
        NoFigures: if matplotlib is not installed.
    """
    figures = {}
    plots = _plots(sections)
    if any(section.key in FIGURES for section in sections):
        _remove_others(plots, folder)
    for key, plot in plots.items():
        with drawn(plot) as figure:
            save_png(figure, folder / f"{key}.png")
            # safe as markup: the XML writer has escaped all text
            figures[key] = Markup(to_svg(figure, f"plot-{key}", plot.title))
    return figures


def save_selection_figures(selection: Selection, folder: str | Path) -> list[Path]:
    """Write the figures of a selection as PNG files, `KEY.png` for each key of `charts.FIGURES`.

    Args:
        selection (`Selection`): what was selected; figures that it has no data for are left out.
        folder (`str` or `Path`): where to write; created if it does not exist. Figures of an earlier selection that this
            one does not have are removed.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: if matplotlib is not installed; the message has the command that installs it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    plots = _plots([figure_section(key, selection) for key in FIGURES])
    _remove_others(plots, folder)
    for key, plot in plots.items():
        with drawn(plot) as figure:
            files.append(save_png(figure, folder / f"{key}.png"))
    return files


# ---- Writing ----


def _escape_hidden(value: object) -> Markup | str:
    """A value for the template, with invisible characters made visible; markup of this module is left unchanged."""
    return value if isinstance(value, Markup) else visible(str(value))


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("hf_gist.report"),
        autoescape=True,
        finalize=_escape_hidden,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(
    sections: Sequence[Section],
    figures: Mapping[str, Markup],
    absent: Sequence[tuple[str, str]],
    opening: Opening | None = None,
    title: str = Content.title,
) -> str:
    """The HTML of the page.

    Args:
        sections (`Sequence[Section]`): in order; those without content are listed at the end.
        figures (`Mapping[str, Markup]`): SVG by the key of the plot; empty if matplotlib is not installed.
        absent (`Sequence[tuple[str, str]]`): title and reason of other content that is missing.
        opening (`Opening`, *optional*): the first sentences.
        title (`str`): heading of the page.
    """
    missing = [(section.title, section.missing) for section in sections if section.missing]
    shown = [section for section in sections if not section.missing]
    plots = [key for section in shown for key in section.plots]
    return (
        _environment()
        .get_template(TEMPLATE_FILE)
        .render(
            title=title,
            answers=[] if opening is None else opening.answers(),
            sections=shown,
            absent=[*missing, *absent],
            figures=figures,
            hint=NoFigures.HINT if plots and not figures else "",
            light=LIGHT,
            dark=DARK,
            version=__version__,
        )
    )


def write_report(
    folder: str | os.PathLike, output_file: str | os.PathLike | None = None, selection: Selection | None = None
) -> Path:
    """Write a report on a selection, a GAST training run or both as one HTML file, and its figures as PNG files.

    The page has no scripts and makes no requests. Without matplotlib it has the numbers as tables, and the command that
    installs matplotlib.

    Args:
        folder (`str` or `Path`): output folder of `hf-gist select` or of a Trainer. The PNG files are written next to the
            artifacts.
        output_file (`str` or `Path`, *optional*): where to write the page; by default `report.html` in `folder`.
        selection (`Selection`, *optional*): the selection in `folder`, if it is loaded already.

    Returns:
        `Path`: the page.

    Raises:
        ValueError: if the folder has no artifacts, one of them is damaged, or `output_file` cannot be a file.
    """
    folder = Path(folder)
    return write_page(content_of(folder, selection), folder, output_file)


def write_page(content: Content, folder: Path, output_file: str | os.PathLike | None = None) -> Path:
    """Write a page and its figures; see [`write_report`].

    Args:
        content (`Content`): what is on it.
        folder (`Path`): of the run.
        output_file (`str` or `Path`, *optional*): where to write the page; by default `report.html` in `folder`.

    Raises:
        ValueError: if `output_file` cannot be a file.
    """
    path = _output_path(folder, output_file)
    figures = _all_figures(content.parts)
    text = render(content.sections, figures, content.absent, content.opening, content.title)
    write(path, partial(_write_text, text))
    return path


def content_of(folder: Path, selection: Selection | None = None) -> Content:
    """The content of the page on a selection, from a stream or not, on a GAST training run, or on both.

    Args:
        folder (`Path`): output folder of `hf-gist select` or of a Trainer.
        selection (`Selection`, *optional*): the selection in `folder`, if it is loaded already.

    Raises:
        ValueError: if the folder has no artifacts, or one of them is damaged.
    """
    artifacts = selection_folder(folder)
    openings = []
    parts: list[tuple[list[Section], Path]] = []
    absent = []
    if artifacts is not None:
        selection = selection or Selection.load(artifacts)
        openings.append(of_selection(selection, CostLedger.load(artifacts)))
        parts.append((selection_sections(selection, artifacts), artifacts))
    elif (folder / STREAM_FILE).is_file():
        run = StreamRun(folder)
        openings.append(run.opening())
        parts.append((run.sections(), folder))
    else:
        absent.append(("Selection of rows", NO_SELECTION))
    if (folder / HISTORY_FILE).is_file():
        opening, sections = gast_sections(folder)
        openings.append(opening)
        parts.append((sections, folder))
    else:
        absent.append(("GAST", f"There is no {HISTORY_FILE}, which is written at the end of a GAST training run."))
    if not openings:
        raise _nothing(folder)
    selected = " ".join(opening.selected for opening in openings)
    opening = dataclasses.replace(openings[0], selected=selected)
    return Content(opening, parts, absent, PAGE_TITLE if opening.headings == GAST_HEADINGS else Content.title)


def _all_figures(by_folder: Sequence[tuple[Sequence[Section], Path]]) -> dict[str, Markup]:
    """The figures of all sections as SVG, written as PNG files too; empty if matplotlib is not installed."""
    figures: dict[str, Markup] = {}
    try:
        for sections, folder in by_folder:
            figures |= _draw(sections, folder)
    except NoFigures:
        return {}
    return figures


def _write_text(text: str, name: str) -> None:
    Path(name).write_text(text, encoding="utf-8")
