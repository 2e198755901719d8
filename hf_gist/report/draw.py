"""The drawings themselves: a curve, histograms, bars and heat maps, each into a matplotlib figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_gist.report.canvas import LIGHT


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spectrum:
    """Share of variance captured by the first `k` directions, and the rank in use.

    Args:
        shares (`np.ndarray`): `[q]`, increasing.
        rank (`int`): between 1 and `q`.
    """

    shares: np.ndarray
    rank: int

    def __call__(self, figure: "Figure") -> None:
        axes, total = figure.subplots(), len(self.shares)
        axes.plot(range(1, total + 1), self.shares, marker="o", markersize=2.5, color=LIGHT["line"])
        axes.axvline(self.rank, color=LIGHT["kept"], linestyle="--")
        left = self.rank > total / 2
        # at the foot of the line, where the curve never is
        axes.annotate(
            f"rank {self.rank:,}: {self.shares[self.rank - 1]:.1%}",
            (self.rank, 0.04),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
        )
        axes.set(xlabel="singular directions of the target gradients", ylabel="share of variance", ylim=(0, 1.03))
        axes.grid()


@dataclass(frozen=True)
class Histogram:
    """Rows of the pool by a number, with the selected ones in front.

    Args:
        edges (`np.ndarray`): `[n + 1]`.
        pool (`np.ndarray`): rows in each bin `[n]`.
        kept (`np.ndarray`): selected rows in each bin `[n]`.
        label (`str`): name of the number.
        cut (`float`, *optional*): the lowest selected value.
        cut_label (`str`): what to call it.
    """

    edges: np.ndarray
    pool: np.ndarray
    kept: np.ndarray
    label: str
    cut: float | None = None
    cut_label: str = ""

    def __call__(self, figure: "Figure") -> None:
        from matplotlib.ticker import NullLocator

        axes = figure.subplots()
        for counts, name, colour in (
            (self.pool, f"pool ({self.pool.sum():,})", "pool"),
            (self.kept, f"selected ({self.kept.sum():,})", "kept"),
        ):
            axes.stairs(counts, self.edges, fill=True, color=LIGHT[colour], label=name, baseline=0.5)
        axes.set(xlabel=self.label, ylabel="rows (logarithmic)", yscale="log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0.5, max(2, self.pool.max() * 2))
        if self.cut is not None:
            axes.axvline(self.cut, color=LIGHT["ink"], linestyle="--", linewidth=1, label=self.cut_label)
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1, handlelength=1.5)
        axes.grid(axis="y")


@dataclass(frozen=True)
class Bars:
    """Shares of several sets, by category.

    Args:
        names (`Sequence[str]`): `n` categories.
        series (`dict[str, tuple[str, np.ndarray]]`): name of each set to the role of its colour and its shares `[n]`.
        sideways (`bool`): one line for each category, for long names.
        label (`str`): name of the categories.
    """

    names: Sequence[str]
    series: dict[str, tuple[str, np.ndarray]]
    sideways: bool
    label: str

    def __call__(self, figure: "Figure") -> None:
        from matplotlib.ticker import PercentFormatter

        axes = figure.subplots()
        largest = max(float(shares.max()) for _, shares in self.series.values())
        percent = PercentFormatter(1, decimals=0 if largest > 0.1 else None)
        places, thickness = np.arange(len(self.names)), 0.8 / len(self.series)
        for number, (name, (colour, shares)) in enumerate(self.series.items()):
            offset = (number - (len(self.series) - 1) / 2) * thickness
            draw = axes.barh if self.sideways else axes.bar
            draw(places + offset, shares, thickness, color=LIGHT[colour], label=name)
        if self.sideways:
            axes.set_yticks(places, self.names)
            axes.invert_yaxis()
            axes.xaxis.set_major_formatter(percent)
            axes.set_xlabel("share of rows")
        else:
            axes.set_xticks(places, self.names, rotation=45, ha="right", rotation_mode="anchor")
            axes.yaxis.set_major_formatter(percent)
            axes.set(ylabel="share of rows", xlabel=self.label)
        axes.grid(axis="x" if self.sideways else "y")
        figure.legend(loc="outside upper left", ncols=3)


@dataclass(frozen=True)
class HeatMaps:
    """Shares by layer and something else, one small map beside the other.

    Args:
        values (`np.ndarray`): `[n, L, x]`; NaN where there is nothing.
        titles (`Sequence[str]`): `n`; without more than one map, none is shown.
        layers (`Sequence[str]`): `L` names.
        columns (`Sequence[str]`): names of the columns, if they have any.
        extent (`tuple[float, float]`, *optional*): first and last value of the columns, if they are a scale.
        label (`str`): name of the columns.
    """

    values: np.ndarray
    titles: Sequence[str]
    layers: Sequence[str]
    label: str
    columns: Sequence[str] = ()
    extent: tuple[float, float] | None = None

    def __call__(self, figure: "Figure") -> None:
        number, layers, width = self.values.shape
        across = 1 if number == 1 else 2
        grid = figure.subplots(-(-number // across), across, squeeze=False, sharex=True, sharey=True)
        finite = self.values[np.isfinite(self.values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        left, right = self.extent if self.extent is not None else (-0.5, width - 0.5)
        image = None
        for place, axes in enumerate(grid.flat):
            if place >= number:
                axes.set_axis_off()
                continue
            # drawn pixel by pixel: the browser scales it, and its size does not grow with the figure
            image = axes.imshow(
                self.values[place],
                aspect="auto",
                cmap="viridis",
                vmin=low,
                vmax=high,
                interpolation="none",
                extent=(left, right, layers - 0.5, -0.5),
            )
            if number > 1:
                axes.set_title(self.titles[place], fontsize=9)
            axes.spines[:].set_visible(False)
            self._ticks(axes)
        figure.supxlabel(self.label, fontsize=10)
        bar = figure.colorbar(image, ax=list(grid.flat), label="share kept", location="top", shrink=0.7, aspect=30)
        bar.outline.set_visible(False)

    def _ticks(self, axes: "Axes") -> None:
        every = -(-len(self.layers) // 24)
        axes.set_yticks(range(0, len(self.layers), every), self.layers[::every], fontsize=8)
        if self.columns:
            axes.set_xticks(range(len(self.columns)), self.columns, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axes.locator_params(axis="x", integer=True, nbins=4)
