"""A plot as a matplotlib figure, as a PNG file, and as SVG whose colours follow the page's light or dark scheme."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from hf_gist.report.parts import Plot
from hf_gist.utils.disk import write


if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.8
"""Of a figure, in inches: at this width its text is readable on a phone without zooming."""

LIGHT = {
    "paper": "#fefefe",
    "ink": "#1b2330",
    "muted": "#56616f",
    "grid": "#dde3ea",
    "pool": "#8792a4",
    "kept": "#c2560b",
    "line": "#1f5fa9",
}
"""Colours by role. The page has a CSS variable for each role, with other values in its dark scheme."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_gist",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": LIGHT["paper"],
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.color": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
    "grid.color": LIGHT["grid"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


class NoFigures(ImportError):
    """matplotlib is not installed."""

    HINT = 'Figures need matplotlib: pip install "hf_gist[report]".'


@contextmanager
def drawn(plot: Plot) -> Iterator["Figure"]:
    """A plot as a matplotlib figure, to be saved inside the `with` block.

    Raises:
        NoFigures: if matplotlib is not installed; the message has the command that installs it.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoFigures(NoFigures.HINT) from error
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # names may use a script that matplotlib's font lacks; in the SVG the browser's fonts are used
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, plot.height), layout="constrained")
        plot.draw(figure)
        yield figure


def save_png(figure: "Figure", path: Path) -> Path:
    """Write a figure with a light background as a PNG file."""
    write(path, partial(figure.savefig, dpi=200, format="png"))
    # the layout is computed; without this it would be computed again for the SVG
    figure.set_layout_engine("none")
    return path


def to_svg(figure: "Figure", key: str, title: str) -> str:
    """A figure as SVG for an HTML page: without a size, with unique ids, with CSS variables as colours, and with a title.

    Args:
        figure (`Figure`): drawn with the colours of `LIGHT`.
        key (`str`): prefix of all ids.
        title (`str`): its accessible name.
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # a style sheet inside the SVG would apply to the whole page
            if _local_name(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local_name(element.tag)
        element.attrib = {
            _local_name(name): _attribute(_local_name(name), value, key) for name, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title, "id": key}
    return ElementTree.tostring(root, encoding="unicode")


def _local_name(name: str) -> str:
    """A tag or attribute name without its XML namespace."""
    return name.rsplit("}", 1)[-1]


def _attribute(name: str, value: str, key: str) -> str:
    """The value of an attribute, with prefixed ids and with CSS variables as colours."""
    if name == "id":
        return f"{key}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{key}-{value[1:]}"
    if name == "clip-path":
        return value.replace("url(#", f"url(#{key}-")
    if name == "style":
        for role, colour in LIGHT.items():
            value = value.replace(colour, f"var(--{role})")
    return value
