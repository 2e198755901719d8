"""The figures of a selection: spectrum, scores, sources, lengths, energy and overlap, with captions and tables."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED
from hf_gist.functional.subspace import captured_variance
from hf_gist.functional.target_losses import MANIFEST_KEY
from hf_gist.gist.artifacts import SCORES
from hf_gist.gist.history import ENTRY, HISTORY
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.selection import Selection
from hf_gist.report.draw import Bars, Curve, Histogram, Spectrum
from hf_gist.report.parts import NoPlot, Plot, Section, Table
from hf_gist.report.wording import count, percent, seconds, short


BINS = 60
"""Bins of a drawn histogram."""

BINS_LISTED = 20
"""Rows of a histogram's table; divides `BINS`."""

SOURCES_DRAWN = 12
SOURCES_LISTED = 100
DIRECTIONS_LISTED = 40
SELECTIONS_LISTED = 100
POINTS_LISTED = 60


# ---- Spectrum ----


def spectrum(selection: Selection) -> Plot | NoPlot:
    """Share of the target gradients' variance by number of singular directions, with the chosen rank."""
    title = "Target gradient spectrum"
    if not selection.rank:
        return NoPlot(title, "Nothing was scored, so there is no spectrum.")
    total = len(selection.singular_values)
    shares = captured_variance(selection.singular_values)
    sentence = (
        f"The first {count(selection.rank)} of {count(total)} singular directions, the chosen rank, explain "
        f"{percent(selection.explained_variance)} of the target gradients' variance; the first alone explains "
        f"{percent(float(shares[0]))}."
    )
    table = _spectrum_table(selection.singular_values, shares, selection.rank)
    return Plot(title, sentence, Spectrum(shares.numpy(), selection.rank), table)


def _spectrum_table(singular_values: Tensor, shares: Tensor, rank: int) -> Table:
    total = len(singular_values)
    rows = [
        [str(k + 1), f"{float(singular_values[k]):.4g}", percent(float(shares[k])), "yes" if k < rank else "no"]
        for k in _spaced_indices(total, DIRECTIONS_LISTED, rank - 1)
    ]
    note = f"{count(len(rows))} of {count(total)} directions, evenly spaced." if len(rows) < total else ""
    return Table(
        "Singular values", rows, ["direction", "singular value", "cumulative share of variance", "used"], note
    )


def _spaced_indices(size: int, limit: int, wanted: int) -> list[int]:
    """At most `limit` evenly spaced indices below `size`, among them `wanted` and the next one."""
    if size <= limit:
        return list(range(size))
    spaced = {round(place) for place in np.linspace(0, size - 1, limit - 2)}
    return sorted(spaced | {wanted, min(wanted + 1, size - 1)})


# ---- Scores and energy ----


def scores(selection: Selection) -> Plot | NoPlot:
    """Histogram of the pool's scores, with the lowest selected score."""
    title = "Scores and threshold"
    if selection.config.strategy in UNSCORED:
        return NoPlot(title, f"The rows were chosen by a {selection.method}, which does not use scores.")
    finite = selection.scores[torch.isfinite(selection.scores)]
    kept = selection.scores[selection.indices]
    sentence = (
        f"The scores of {count(len(finite))} rows range from {float(finite.min()):.3f} to {float(finite.max()):.3f}, "
        f"with a median of {float(finite.median()):.3f}; the median of the {count(len(kept))} selected rows is "
        f"{float(kept.median()):.3f}. {_cut_sentence(selection, finite, float(kept.min()))}"
    )
    label = "gradient norm" if selection.config.score == "grad_norm" else "score: alignment with the targets"
    cut_label = "threshold" if _is_threshold(selection) else "lowest selected"
    drawing = _histogram(finite, kept, label, cut=(float(kept.min()), cut_label))
    return Plot(title, sentence, drawing, _histogram_table(title, drawing))


def _is_threshold(selection: Selection) -> bool:
    """Whether every row above the lowest selected score was selected."""
    config = selection.config
    of_sources = config.source_shares or config.source_max
    return config.strategy != "round_robin" and config.sample_from_top == 1 and not of_sources


def _cut_sentence(selection: Selection, finite: Tensor, cut: float) -> str:
    if _is_threshold(selection):
        return f"The threshold is {cut:.3f}: every row above it was selected."
    above = int((finite >= cut).sum())
    return (
        f"The lowest selected score is {cut:.3f}. It is not a threshold: {count(above)} rows have at least this score, "
        "and some of them were selected."
    )


def energy(selection: Selection) -> Plot | NoPlot:
    """Histogram of the energy fractions of the pool and of the selection."""
    title = "Energy fraction"
    if not selection.rank:
        return NoPlot(title, "Nothing was scored, so there is no target subspace.")
    pool = selection.energy[selection.measurements.scorable]
    kept = selection.energy[selection.indices]
    sentence = (
        f"The share of a row's squared gradient norm that is inside the subspace has a median of "
        f"{percent(float(kept.median()))} for the selected rows and {percent(float(pool.median()))} for the pool."
    )
    text = [_energy_text(selection)]
    drawing = _histogram(pool, kept, "share inside the subspace", limits=(0, 1))
    return Plot(title, sentence, drawing, _histogram_table(title, drawing), text=text)


def _energy_text(selection: Selection) -> str:
    """What the energy fraction means for the score that rows were chosen by."""
    scorer = scorer_of(selection.config)
    where = "The energy fraction is the share of a row's squared gradient norm inside the subspace of the targets."
    if scorer.forward_only:
        return "The energy fraction is the share of a row's squared norm inside the space that the targets span."
    if selection.config.score == "grad_norm":
        return f"{where} The score, the norm of the whole gradient, does not depend on it."
    if scorer.in_subspace and selection.config.score == "subspace_cosine" and selection.rank > 1:
        return (
            f"{where} The score measures how well the projection of a row's gradient aligns with the targets: where the "
            "fraction is small, most of the gradient is outside the subspace, and the score ignores that part."
        )
    return (
        f"{where} The score compares whole gradients: where the fraction is small, most of the gradient has nothing in common "
        "with the targets, and the score is low."
    )


def _histogram(
    pool: Tensor,
    kept: Tensor,
    label: str,
    cut: tuple[float | None, str] = (None, ""),
    limits: tuple[float, float] | None = None,
) -> Histogram:
    """Counts of `pool` `[N]` and `kept` `[K]` in `BINS` equal bins.

    Args:
        pool (`Tensor`): values of the pool.
        kept (`Tensor`): values of the selected rows.
        label (`str`): name of the value.
        cut (`tuple`): lowest selected value, if it is to be marked, and its name.
        limits (`tuple`, *optional*): of the bins; by default the smallest and the largest value of the pool.
    """
    low, high = limits or (float(pool.min()), float(pool.max()))
    if high <= low:
        # all rows have the same value: the bins still need a width
        high = low + max(1e-6, abs(low) * 1e-6)
    edges = np.linspace(low, high, BINS + 1)
    pool_counts, kept_counts = (np.histogram(values.double().numpy(), edges)[0] for values in (pool, kept))
    return Histogram(edges, pool_counts, kept_counts, label, *cut)


def _histogram_table(title: str, histogram: Histogram) -> Table:
    step = BINS // BINS_LISTED
    edges = histogram.edges
    rows = [
        [
            f"{edges[i]:.3f} to {edges[i + step]:.3f}",
            count(histogram.pool[i : i + step].sum()),
            count(histogram.kept[i : i + step].sum()),
        ]
        for i in range(0, BINS, step)
    ]
    return Table(title, rows, [histogram.label, "pool rows", "selected rows"])


# ---- Sources ----


def sources(selection: Selection) -> Plot | NoPlot:
    """Share of each source in the pool and in the selection."""
    title = "Pool and selection by source"
    names = selection.measurements.sources
    if names is None:
        return NoPlot(title, "No sources were recorded. Set `source_column` to the column of the pool that has them.")
    pool = Counter(names)
    kept = Counter(names[i] for i in selection.indices)
    order = sorted(pool, key=lambda name: (-kept[name], -pool[name], name))
    first = order[0]
    sentence = (
        f"{short(first)!r} has the most selected rows: {percent(kept[first] / kept.total())} of the selection and "
        f"{percent(pool[first] / pool.total())} of the pool. {count(sum(kept[name] > 0 for name in order))} of "
        f"{count(len(order))} sources have selected rows."
    )
    bars = _source_bars(order, pool, kept)
    height = 1.1 + 0.3 * len(bars.names)
    return Plot(title, sentence, bars, _source_table(title, order, pool, kept), height)


def _source_table(title: str, order: Sequence[str], pool: Counter[str], kept: Counter[str]) -> Table:
    rows = []
    for name in order[:SOURCES_LISTED]:
        of_pool = pool[name] / pool.total()
        of_kept = kept[name] / kept.total()
        cells = [count(pool[name]), percent(of_pool), count(kept[name]), percent(of_kept), f"{of_kept / of_pool:.2f}"]
        rows.append([short(name), *cells])
    left = len(order) - len(rows)
    note = f"{count(left)} more sources with fewer selected rows are in {SCORES}." if left else ""
    header = ["source", "pool rows", "of pool", "selected rows", "of selection", "ratio of the two shares"]
    return Table(title, rows, header, note)


def _source_bars(order: Sequence[str], pool: Counter[str], kept: Counter[str]) -> Bars:
    """The first sources by name, and the others as one bar if they are too many."""
    drawn = order if len(order) <= SOURCES_DRAWN else order[: SOURCES_DRAWN - 1]
    labels = [short(name, 22) for name in drawn]
    of_pool, of_kept = ([counts[name] / counts.total() for name in drawn] for counts in (pool, kept))
    if len(drawn) < len(order):
        labels.append(f"{count(len(order) - len(drawn))} other sources")
        of_pool.append(1 - sum(of_pool))
        of_kept.append(1 - sum(of_kept))
    series = {"pool": ("pool", np.array(of_pool)), "selected": ("kept", np.array(of_kept))}
    return Bars(labels, series, horizontal=True, label="source")


# ---- Lengths ----


def lengths(selection: Selection) -> Plot:
    """Labelled tokens of the rows in the pool, in the selection and in the target set."""
    title = "Pool and selection by length"
    m = selection.measurements
    tokens = {"pool": m.label_tokens, "selected": m.label_tokens[selection.indices], "targets": m.target_label_tokens}
    names, counts = _length_counts(tokens)
    medians = {name: int(values.median()) if len(values) else 0 for name, values in tokens.items()}
    sentence = (
        f"The median row has {count(medians['selected'])} labelled tokens in the selection, {count(medians['pool'])} in "
        f"the pool and {count(medians['targets'])} in the target set."
    )
    shares = {name: own / max(1, len(tokens[name])) for name, own in counts.items()}
    colours = {"pool": "pool", "selected": "kept", "targets": "line"}
    series = {name: (colours[name], own) for name, own in shares.items()}
    bars = Bars(names, series, horizontal=False, label="labelled tokens")
    return Plot(title, sentence, bars, _length_table(title, names, counts, shares), 3.2)


def _length_table(
    title: str, names: Sequence[str], counts: dict[str, np.ndarray], shares: dict[str, np.ndarray]
) -> Table:
    """One row per length bin, with the number and the share of the rows of each set."""
    rows = [
        [name, *(cell for key in counts for cell in (count(counts[key][at]), percent(shares[key][at])))]
        for at, name in enumerate(names)
    ]
    header = ["labelled tokens", "pool rows", "of pool", "selected rows", "of selection", "target rows", "of targets"]
    return Table(title, rows, header)


def _length_counts(tokens: dict[str, Tensor]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names of the length bins 0, 1, 2, 3-4, 5-8, 9-16, ... between the shortest and the longest row, and rows in each.

    Args:
        tokens (`dict[str, Tensor]`): name of a set to the labelled tokens of its rows.
    """
    longest = max(int(values.max()) for values in tokens.values() if len(values))
    last = int(np.ceil(np.log2(max(2, longest + 1))))
    edges = np.array([0, 1, *(2**power + 1 for power in range(last + 1))])
    counts = {name: np.histogram(values.numpy(), edges)[0] for name, values in tokens.items()}
    used = np.nonzero(np.sum(list(counts.values()), axis=0))[0]
    first = int(used[0])
    stop = int(used[-1]) + 1
    names = [_range(edges[i], edges[i + 1] - 1) for i in range(first, stop)]
    return names, {name: own[first:stop] for name, own in counts.items()}


def _range(first: int, last: int) -> str:
    return count(first) if first == last else f"{count(first)}-{count(last)}"


# ---- Selections of a run ----


def overlap(selection: Selection) -> Plot | NoPlot:
    """Share of each selection of a run that is also in the one before it, and in the first."""
    title = "Overlap of the selections"
    records = selection.manifest.get(ENTRY) or []
    if len(records) < 2:
        return NoPlot(
            title, "Rows were selected once. With `reselect_every`, they are chosen again during the training."
        )
    later = records[1:]
    before = [record["in_common"][-1] / record["rows"] for record in later]
    first = [record["in_common"][0] / record["rows"] for record in later]
    chance = len(selection.indices) / len(selection.scores)
    sentence = (
        f"Rows were selected {count(len(records))} times. Of the rows of a selection, {percent(min(before))} to "
        f"{percent(max(before))} were also in the one before it, and {percent(first[-1])} of the latest were in the first. "
        f"Random rows would have about {percent(chance)} in common."
    )
    series = {"also in the one before": ("kept", np.array(before)), "also in the first": ("line", np.array(first))}
    names = [f"{count(record['number'])} (step {count(record['step'])})" for record in later]
    bars = Bars(names, series, horizontal=False, label="selection")
    return Plot(title, sentence, bars, _overlap_table(title, records), 3.2)


def _overlap_table(title: str, records: Sequence[dict[str, Any]]) -> Table:
    """One row per selection: its step, rows, cost, and the rows in common with the one before and the first."""
    rows = []
    for record in records[:SELECTIONS_LISTED]:
        common = record["in_common"]
        cost = record["selection_passes"]
        cells = [
            count(record["step"]),
            count(record["rows"]),
            *(count(common[at]) if common else "" for at in (-1, 0)),
        ]
        rows.append([str(record["number"]), *cells, seconds(record["seconds"]), "" if cost is None else f"{cost:.3f}"])
    left = len(records) - len(rows)
    note = f"{count(left)} more selections are in {HISTORY}." if left > 0 else ""
    header = ["selection", "after step", "rows", "in the one before", "in the first", "time", "passes over the pool"]
    return Table(title, rows, header, note)


# ---- The target loss ----


def target_loss(selection: Selection) -> Plot | NoPlot:
    """The loss of the target rows during the training on the selection."""
    title = "Target loss during training"
    found = selection.manifest.get(MANIFEST_KEY)
    if not isinstance(found, dict) or not found.get("points"):
        return NoPlot(title, "It is measured by GISTDataSelectorCallback, until the end of the training.")
    points = found["points"]
    steps = np.array([point["step"] for point in points])
    losses = np.array([math.nan if point["loss"] is None else point["loss"] for point in points])
    text = [short(found["warning"], 1000)] if found.get("warning") else []
    sentence = short(found["sentence"], 400)
    curve = Curve(steps, losses, [short(point["event"], 22) for point in points], "optimizer steps", "mean loss")
    return Plot(title, sentence[:1].upper() + sentence[1:], curve, _loss_table(title, points, found), text=text)


def _loss_table(title: str, points: Sequence[dict[str, Any]], found: dict[str, Any]) -> Table:
    rows = []
    for point in _spaced(points, POINTS_LISTED):
        loss, change = (_number(point[name]) for name in ("loss", "change"))
        rows.append(
            [short(point["event"]), count(point["step"]), loss, change, f"{point['standard_error_of_change']:.4f}"]
        )
    kind = "held out from the selection" if found.get("held_out") else "that the selection was made with"
    more = f" {count(len(rows))} of {count(len(points))} measurements." if len(rows) < len(points) else ""
    note = f"Mean over {count(points[0]['rows'])} target rows {kind}.{more}"
    return Table(
        title, rows, ["measured", "step", "loss", "change from the first", "standard error of the change"], note
    )


def _spaced(points: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` evenly spaced points, the first and the last among them."""
    places = np.unique(np.linspace(0, len(points) - 1, min(limit, len(points))).round().astype(int))
    return [points[place] for place in places]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


# ---- All of them ----


FIGURES: dict[str, Callable[[Selection], Plot | NoPlot]] = {
    "spectrum": spectrum,
    "scores": scores,
    "sources": sources,
    "lengths": lengths,
    "energy": energy,
    "overlap": overlap,
    "target_loss": target_loss,
}
"""The figures of a selection by key, in order. The page, the PNG files and TensorBoard show all of them."""


def figure_section(key: str, selection: Selection) -> Section:
    """The section of one of [`FIGURES`]."""
    plot = FIGURES[key](selection)
    if isinstance(plot, NoPlot):
        return Section(key, plot.title, missing=plot.reason)
    return Section(key, plot.title, text=plot.text, plots={key: plot})
