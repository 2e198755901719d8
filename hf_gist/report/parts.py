"""The content of the page before it is drawn and written: sections with tables, figures and example rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of formatted cells; the first cell of each row is its heading.

    Args:
        caption (`str`): the title of the table.
        rows (`Sequence[Sequence[str]]`): cells.
        header (`Sequence[str]`): names of the columns; without it, each row is a name and a value.
        note (`str`): what the table leaves out.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure, with its content also as a sentence and as a table, for accessibility.

    Args:
        title (`str`): its heading and accessible name.
        sentence (`str`): the caption: the result, with its numbers.
        draw (`Callable`): draws it into a matplotlib figure.
        table (`Table`): the numbers that are drawn.
        height (`float`): in inches.
        text (`Sequence[str]`): paragraphs above the figure.
    """

    title: str
    sentence: str
    draw: "Callable[[Figure], None]"
    table: Table
    height: float = 3.0
    text: Sequence[str] = ()


@dataclass(frozen=True)
class NoPlot:
    """A figure that the artifacts have no data for.

    Args:
        title (`str`): the heading that the figure would have.
        reason (`str`): why there is none, as a sentence.
    """

    title: str
    reason: str


@dataclass(frozen=True)
class TextSpan:
    """A part of a row's text.

    Args:
        kind (`str`): `"prompt"` (no loss on it), `"answer"` (its tokens are trained on), or `"text"` if the row does not
            distinguish them.
        text (`str`): its beginning.
        cut (`bool`): whether there is more.
    """

    kind: str
    text: str
    cut: bool = False


@dataclass(frozen=True)
class RowText:
    """One example row.

    Args:
        label (`str`): row number, score and other facts, on one line.
        spans (`Sequence[TextSpan]`): its text, if available.
        missing (`str`): why there is no text.
    """

    label: str
    spans: Sequence[TextSpan] = ()
    missing: str = ""


@dataclass(frozen=True)
class RowGroup:
    """The example rows of one target group.

    Args:
        title (`str`): the name of the group.
        sentence (`str`): how many rows match it best, and how many of them were selected.
        parts (`Sequence[tuple[str, Sequence[RowText]]]`): a heading (`"Best"`) and its rows, several times.
    """

    title: str
    sentence: str
    parts: Sequence[tuple[str, Sequence[RowText]]]


@dataclass(frozen=True)
class Opening:
    """The three answers at the top of the page, for a reader who does not know the methods.

    Args:
        selected (`str`): what was selected, which samples were trained on, or what was compared.
        target (`str`): whether the target got better, or how to find out.
        cost (`str`): what it cost.
        headings (`tuple[str, str, str]`): the question that each of them answers.
    """

    selected: str
    target: str
    cost: str
    headings: tuple[str, str, str] = ("What was selected", "Did the target get better?", "Cost")

    def answers(self) -> list[tuple[str, str]]:
        """Heading and answer, in order."""
        return list(zip(self.headings, (self.selected, self.target, self.cost), strict=True))


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        key (`str`): its HTML id.
        title (`str`): its heading.
        text (`Sequence[str]`): paragraphs.
        tables (`Sequence[Table]`): always visible.
        plots (`Mapping[str, Plot]`): figures by key; the key is the name of the PNG file and the prefix of the SVG's ids.
        folded (`Sequence[Table]`): collapsed tables.
        groups (`Sequence[RowGroup]`): example rows.
        missing (`str`): why the section has no content; it is then listed at the end of the page.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Mapping[str, Plot] = field(default_factory=dict)
    folded: Sequence[Table] = ()
    groups: Sequence[RowGroup] = ()
    missing: str = ""


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Args:
        opening (`Opening`): the first sentences.
        parts (`Sequence[tuple[Sequence[Section], Path]]`): sections, with the folder for the PNG files of their figures.
        absent (`Sequence[tuple[str, str]]`): title and reason of content that the run does not have.
        title (`str`): heading of the page.
    """

    opening: Opening
    parts: Sequence[tuple[Sequence[Section], Path]]
    absent: Sequence[tuple[str, str]] = ()
    title: str = "Data selection report"

    @property
    def sections(self) -> list[Section]:
        """All sections, in order."""
        return [section for part, _ in self.parts for section in part]

    @property
    def plots(self) -> dict[str, Plot]:
        """The figures of all sections by key."""
        return {key: plot for section in self.sections for key, plot in section.plots.items()}
