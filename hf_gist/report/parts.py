"""What a page is made of, before it is drawn or written: sections with tables, figures and rows to read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of ready-made words; the first cell of each row names it.

    Args:
        caption (`str`): what it holds.
        rows (`list[list[str]]`): cells.
        header (`list[str]`, *optional*): names of the columns; without it, each row is a name and a value.
        note (`str`): what was left out.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure, and the same in words and numbers for those who do not see it.

    Args:
        key (`str`): name of the PNG file and beginning of all ids.
        title (`str`): what it is.
        sentence (`str`): what it shows, with the numbers.
        draw (`Callable`): draws it into a matplotlib figure.
        table (`Table`): what was drawn.
        height (`float`): in inches.
    """

    key: str
    title: str
    sentence: str
    draw: "Callable[[Figure], None]"
    table: Table
    height: float = 3.0


@dataclass(frozen=True)
class TextSpan:
    """A stretch of a row's text.

    Args:
        kind (`str`): `"prompt"` (no loss on it), `"answer"` (what is learned), or `"text"` if nothing tells them apart.
        text (`str`): its beginning.
        cut (`bool`): whether there is more.
    """

    kind: str
    text: str
    cut: bool = False


@dataclass(frozen=True)
class Reading:
    """One row to read: what is known of it in one line, and its text if there is one."""

    label: str
    pieces: Sequence[TextSpan] = ()
    missing: str = ""


@dataclass(frozen=True)
class ReadingGroup:
    """The rows to read of one target group."""

    title: str
    sentence: str
    parts: Sequence[tuple[str, Sequence[Reading]]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        key (`str`): its id.
        title (`str`): its heading.
        text (`Sequence[str]`): paragraphs.
        tables (`Sequence[Table]`): shown openly.
        plots (`Sequence[Plot]`): figures.
        folded (`Sequence[Table]`): behind a summary line.
        groups (`Sequence[ReadingGroup]`): rows to read.
        missing (`str`): why the section has nothing to show.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    folded: Sequence[Table] = ()
    groups: Sequence[ReadingGroup] = ()
    missing: str = field(default="")
