"""Drawing into a matplotlib figure: a curve, histograms, bars and heat maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_gist.report.canvas import LIGHT


LETTER_WIDTH = 0.019
LETTER_HEIGHT = 0.12
"""Space that a letter of a point's name takes, as a share of the axes: names that would overlap are left out."""


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


FEW_ROWS = 20
"""A histogram with fewer rows in its highest bin is not logarithmic."""


@dataclass(frozen=True)
class Spectrum:
    """Share of variance explained by the first `k` directions, and the chosen rank.

    Args:
        shares (`np.ndarray`): `[q]`, increasing.
        rank (`int`): between 1 and `q`.
    """

    shares: np.ndarray
    rank: int

    def __call__(self, figure: "Figure") -> None:
        axes = figure.subplots()
        total = len(self.shares)
        axes.plot(range(1, total + 1), self.shares, marker="o", markersize=2.5, color=LIGHT["line"])
        axes.axvline(self.rank, color=LIGHT["kept"], linestyle="--")
        left = self.rank > total / 2
        # near the bottom, where it cannot overlap the curve
        axes.annotate(
            f"rank {self.rank:,}: {self.shares[self.rank - 1]:.1%}",
            (self.rank, 0.04),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
        )
        axes.set(xlabel="singular directions of the target gradients", ylabel="share of variance", ylim=(0, 1.03))
        axes.locator_params(axis="x", integer=True)
        axes.grid()


@dataclass(frozen=True)
class Curve:
    """A value measured at some points of a training.

    Args:
        steps (`np.ndarray`): where it was measured `[n]`, increasing.
        values (`np.ndarray`): `[n]`; NaN where it is not finite.
        names (`Sequence[str]`): of the points; only a few are written.
        along (`str`): name of the horizontal axis.
        label (`str`): name of the value.
    """

    steps: np.ndarray
    values: np.ndarray
    names: Sequence[str]
    along: str
    label: str

    def __call__(self, figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        axes.plot(self.steps, self.values, marker="o", markersize=3.5, color=LIGHT["line"])
        for at in self._named():
            axes.annotate(
                self.names[at],
                (self.steps[at], self.values[at]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="right" if at == len(self.steps) - 1 else "left",
            )
        axes.set(xlabel=self.along, ylabel=self.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(y=0.15)
        axes.grid()

    def _named(self) -> list[int]:
        """The points whose names are written: the last, the first, and those in between that leave them readable."""
        finite = np.isfinite(self.values)
        places = [at for at in range(len(self.steps)) if finite[at]]
        across = max(float(np.ptp(self.steps)), 1e-12)
        up = max(float(np.ptp(self.values[finite])) if places else 0.0, 1e-12)
        taken: dict[int, tuple[float, float, float]] = {}
        for at in [*places[-1:], *places[:-1]]:
            width = LETTER_WIDTH * len(self.names[at])
            left = float(self.steps[at] - self.steps[0]) / across - (width if at == len(self.steps) - 1 else 0)
            height = float(self.values[at]) / up
            apart = (
                left >= right or left + width <= start or abs(height - other) > LETTER_HEIGHT
                for start, right, other in taken.values()
            )
            if all(apart):
                taken[at] = (left, left + width, height)
        return sorted(taken)


@dataclass(frozen=True)
class Histogram:
    """Histogram of a value over the pool, with that of the selected rows in front.

    Args:
        edges (`np.ndarray`): `[n + 1]`.
        pool (`np.ndarray`): rows in each bin `[n]`.
        kept (`np.ndarray`): selected rows in each bin `[n]`.
        label (`str`): name of the value.
        cut (`float`, *optional*): the lowest selected value, drawn as a line.
        cut_label (`str`): name of that line.
    """

    edges: np.ndarray
    pool: np.ndarray
    kept: np.ndarray
    label: str
    cut: float | None = None
    cut_label: str = ""

    def __call__(self, figure: "Figure") -> None:
        axes = figure.subplots()
        for counts, name, colour in (
            (self.pool, f"pool ({self.pool.sum():,})", "pool"),
            (self.kept, f"selected ({self.kept.sum():,})", "kept"),
        ):
            axes.stairs(counts, self.edges, fill=True, color=LIGHT[colour], label=name, baseline=self._baseline)
        axes.set(xlabel=self.label, ylabel="rows")
        self._scale(axes)
        if self.cut is not None:
            axes.axvline(self.cut, color=LIGHT["ink"], linestyle="--", linewidth=1, label=self.cut_label)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.5)
        axes.grid(axis="y")

    @property
    def _baseline(self) -> float:
        """Where the bars begin: below one row on a logarithmic axis; few rows have a linear one."""
        return 0.5 if self.pool.max() >= FEW_ROWS else 0

    def _scale(self, axes: "Axes") -> None:
        """Scale and ticks of the numbers of rows."""
        from matplotlib.ticker import NullLocator

        if not self._baseline:
            axes.locator_params(axis="y", integer=True)
            return
        axes.set(ylabel="rows (logarithmic)", yscale="log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(self._baseline, self.pool.max() * 2)


@dataclass(frozen=True)
class Bars:
    """Shares of several sets, by category.

    Args:
        names (`Sequence[str]`): `n` categories.
        series (`dict[str, tuple[str, np.ndarray]]`): name of each set to the role of its colour and its shares `[n]`.
        horizontal (`bool`): horizontal bars, for long names.
        label (`str`): name of the categories.
    """

    names: Sequence[str]
    series: dict[str, tuple[str, np.ndarray]]
    horizontal: bool
    label: str

    def __call__(self, figure: "Figure") -> None:
        axes = figure.subplots()
        draw = axes.barh if self.horizontal else axes.bar
        places = np.arange(len(self.names))
        thickness = 0.8 / len(self.series)
        for number, (name, (colour, shares)) in enumerate(self.series.items()):
            offset = (number - (len(self.series) - 1) / 2) * thickness
            draw(places + offset, shares, thickness, color=LIGHT[colour], label=name)
        self._label_axes(axes, places)
        axes.grid(axis="x" if self.horizontal else "y")
        figure.legend(loc="outside upper left", ncols=3)

    def _label_axes(self, axes: "Axes", places: np.ndarray) -> None:
        from matplotlib.ticker import PercentFormatter

        largest = max(float(shares.max()) for _, shares in self.series.values())
        percent = PercentFormatter(1, decimals=0 if largest > 0.1 else None)
        if self.horizontal:
            axes.set_yticks(places, self.names)
            axes.invert_yaxis()
            axes.xaxis.set_major_formatter(percent)
            axes.set_xlabel("share of rows")
        else:
            axes.set_xticks(places, self.names, rotation=45, ha="right", rotation_mode="anchor")
            axes.yaxis.set_major_formatter(percent)
            axes.set(ylabel="share of rows", xlabel=self.label)


@dataclass(frozen=True)
class Dots:
    """One value per name with its error, as dots in rows with the numbers beside them.

    Args:
        names (`Sequence[str]`): `n` names, from top to bottom.
        values (`Sequence[float]`): `n` values; one that is not finite has no dot.
        errors (`Sequence[float]`): `n` standard errors; 0 where they are not known.
        label (`str`): name of the value.
        colours (`Sequence[str]`): role of the colour of each dot.
        limits (`tuple[float, float]`, *optional*): of the axis; a value outside of them is an arrow at its edge.
    """

    names: Sequence[str]
    values: Sequence[float]
    errors: Sequence[float]
    label: str
    colours: Sequence[str]
    limits: tuple[float, float] | None = None

    def __call__(self, figure: "Figure") -> None:
        axes = figure.subplots()
        points = zip(self.values, self.errors, self.colours, strict=True)
        for place, (value, error, colour) in enumerate(points):
            low, high = self.limits or (value, value)
            if value < low or value > high:
                marker = "<" if value < low else ">"
                axes.plot(min(max(value, low), high), place, marker, color=LIGHT[colour], clip_on=False)
            else:
                axes.errorbar(value, place, xerr=error, fmt="o", color=LIGHT[colour], capsize=3)
            axes.annotate(
                f"{value:.3f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False
            )
        axes.set_yticks(range(len(self.names)), self.names)
        axes.set_ylim(len(self.names) - 0.5, -0.5)
        axes.set(xlabel=self.label, xlim=self.limits)
        axes.grid()


@dataclass(frozen=True)
class HeatMaps:
    """Shares by layer (rows of a map) and by a second variable (its columns), as one or several maps.

    Args:
        values (`np.ndarray`): `n` maps of `L` layers and `x` columns `[n, L, x]`; NaN where there is no sample.
        titles (`Sequence[str]`): `n` titles; a single map shows none.
        layers (`Sequence[str]`): `L` names.
        label (`str`): name of the second variable.
        columns (`Sequence[str]`): names of the `x` columns, if the second variable is categorical.
        extent (`tuple[float, float]`, *optional*): limits of the second variable, if it is numeric.
    """

    values: np.ndarray
    titles: Sequence[str]
    layers: Sequence[str]
    label: str
    columns: Sequence[str] = ()
    extent: tuple[float, float] | None = None

    def __call__(self, figure: "Figure") -> None:
        number = len(self.values)
        across = 1 if number == 1 else 2
        grid = figure.subplots(-(-number // across), across, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[number:]:
            axes.set_axis_off()
        images = [self._map(axes, place) for place, axes in enumerate(grid.flat[:number])]
        figure.supxlabel(self.label, fontsize=10)
        bar = figure.colorbar(images[0], ax=list(grid.flat), label="share kept", location="top", shrink=0.7, aspect=30)
        bar.outline.set_visible(False)

    def _map(self, axes: "Axes", place: int) -> "AxesImage":
        """Draw one map; all of them have the same colour scale."""
        _, layers, width = self.values.shape
        left, right = self.extent if self.extent is not None else (-0.5, width - 0.5)
        edges = (left, right, layers - 0.5, -0.5)
        low, high = self._value_range()
        # without interpolation the image has one pixel per value, however large the figure
        image = axes.imshow(
            self.values[place], aspect="auto", cmap="viridis", interpolation="none", vmin=low, vmax=high, extent=edges
        )
        if len(self.values) > 1:
            axes.set_title(self.titles[place], fontsize=9)
        axes.spines[:].set_visible(False)
        self._ticks(axes)
        return image

    def _value_range(self) -> tuple[float, float]:
        finite = self.values[np.isfinite(self.values)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)

    def _ticks(self, axes: "Axes") -> None:
        every = -(-len(self.layers) // 24)
        axes.set_yticks(range(0, len(self.layers), every), self.layers[::every], fontsize=8)
        if self.columns:
            axes.set_xticks(range(len(self.columns)), self.columns, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.locator_params(axis="x", integer=True, nbins=4)
