"""The figures of a selection: spectrum, scores, sources, lengths and energy, each with its words and its table."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED
from hf_gist.functional.subspace import captured_variance
from hf_gist.gist.artifacts import SCORES
from hf_gist.gist.selection import Selection
from hf_gist.report.draw import Bars, Histogram, Spectrum
from hf_gist.report.parts import Plot, Section, Table
from hf_gist.report.wording import count, percent, short


BINS, TABLE_BINS = 60, 20
SOURCES_DRAWN, SOURCES_LISTED = 12, 100
DIRECTIONS_LISTED = 40
OTHER = "other sources"


def spectrum(selection: Selection) -> Section:
    """Singular values of the target gradients, with the chosen rank."""
    key, title = "spectrum", "Target gradient spectrum"
    if not selection.rank:
        return Section(key, title, missing="Nothing was scored, so there is no spectrum.")
    singular, rank = selection.singular_values, selection.rank
    shares = captured_variance(singular)
    sentence = (
        f"The first {count(rank)} of {count(len(singular))} singular directions, the chosen rank, hold "
        f"{percent(selection.explained_variance)} of the target gradients' variance; the first alone holds "
        f"{percent(float(shares[0]))}."
    )
    rows = [
        [str(k + 1), f"{float(singular[k]):.4g}", percent(float(shares[k])), "yes" if k < rank else "no"]
        for k in _some(len(singular), DIRECTIONS_LISTED, rank - 1)
    ]
    note = f"Some of {count(len(singular))} directions." if len(rows) < len(singular) else ""
    table = Table("Singular values", rows, ["direction", "singular value", "share of variance up to it", "used"], note)
    return Section(key, title, plots=[Plot(key, title, sentence, Spectrum(shares.numpy(), rank), table)])


def _some(size: int, limit: int, wanted: int) -> list[int]:
    """Up to `limit` of `size` numbers, evenly spread, with `wanted` and its successor among them."""
    if size <= limit:
        return list(range(size))
    spread = {round(place) for place in np.linspace(0, size - 1, limit - 2)}
    return sorted(spread | {wanted, min(wanted + 1, size - 1)})


# ---- Scores and energy ----


def _is_cut(selection: Selection) -> bool:
    """Whether everything above the lowest selected score was selected."""
    return selection.config.strategy != "round_robin" and selection.config.sample_from_top == 1


def scores(selection: Selection) -> Section:
    """Scores of the pool, with the cut."""
    key, title = "scores", "Scores and the cut"
    if selection.config.strategy in UNSCORED:
        return Section(key, title, missing=f"The rows were chosen by a {selection.method}, which looks at no score.")
    finite = selection.scores[torch.isfinite(selection.scores)]
    kept = selection.scores[selection.indices]
    cut = float(kept.min())
    if _is_cut(selection):
        ending = f"The cut is at {cut:.3f}: every row above it was selected."
    else:
        above = int((finite >= cut).sum())
        ending = (
            f"The lowest selected score is {cut:.3f}. It is no threshold: {count(above)} rows have at least this score, "
            "and the strategy chose among them."
        )
    sentence = (
        f"The scores of {count(len(finite))} rows lie between {float(finite.min()):.3f} and {float(finite.max()):.3f}, "
        f"with a median of {float(finite.median()):.3f}; the median of the {count(len(kept))} selected rows is "
        f"{float(kept.median()):.3f}. {ending}"
    )
    label = "norm of the gradient" if selection.config.score == "grad_norm" else "score: alignment with the targets"
    cut_label = "cut" if _is_cut(selection) else "lowest selected"
    return Section(key, title, plots=[_histogram(key, title, sentence, finite, kept, label, cut, cut_label)])


def energy(selection: Selection) -> Section:
    """Energy fractions of the pool and of the selection."""
    key, title = "energy", "Energy fraction"
    if not selection.rank:
        return Section(key, title, missing="Nothing was scored, so there is no subspace to be inside of.")
    pool, kept = selection.energy[selection.measurements.scorable], selection.energy[selection.indices]
    sentence = (
        f"The share of a row's squared gradient norm that lies in the subspace has a median of "
        f"{percent(float(kept.median()))} for the selected rows and {percent(float(pool.median()))} for the pool."
    )
    text = [
        "A score inside the subspace says how well a row points along the targets there, not how much of its gradient "
        "is there. This is that share: where it is small, most of the row's gradient does something else."
    ]
    label = "share inside the subspace"
    return Section(key, title, text=text, plots=[_histogram(key, title, sentence, pool, kept, label, limits=(0, 1))])


def _histogram(
    key: str,
    title: str,
    sentence: str,
    pool: Tensor,
    kept: Tensor,
    label: str,
    cut: float | None = None,
    cut_label: str = "",
    limits: tuple[float, float] | None = None,
) -> Plot:
    low, high = limits or (float(pool.min()), float(pool.max()))
    # rows that all score alike still need a bin of some width
    high = high if high > low else low + max(1e-6, abs(low) * 1e-6)
    edges = np.linspace(low, high, BINS + 1)
    drawn = Histogram(
        edges, *(np.histogram(v.double().numpy(), edges)[0] for v in (pool, kept)), label, cut, cut_label
    )
    wide = BINS // TABLE_BINS
    rows = [
        [f"{edges[i]:.3f} to {edges[i + wide]:.3f}", *(count(v[i : i + wide].sum()) for v in (drawn.pool, drawn.kept))]
        for i in range(0, BINS, wide)
    ]
    return Plot(key, title, sentence, drawn, Table(title, rows, [label, "pool rows", "selected rows"]))


# ---- Sources and lengths ----


def sources(selection: Selection) -> Section:
    """Sources in the pool and in the selection."""
    key, title = "sources", "Pool against selection, by source"
    names = selection.measurements.sources
    if names is None:
        return Section(key, title, missing="No source is known. Name the pool's column with `source_column`.")
    pool, kept = Counter(names), Counter(names[i] for i in selection.indices)
    order = sorted(pool, key=lambda name: (-kept[name], -pool[name], name))
    shares = {name: (pool[name] / len(names), kept[name] / len(selection.indices)) for name in order}
    first = order[0]
    sentence = (
        f"{short(first)!r} has the most selected rows: {percent(shares[first][1])} of the selection and "
        f"{percent(shares[first][0])} of the pool. {count(sum(kept[name] > 0 for name in order))} of "
        f"{count(len(order))} sources have selected rows."
    )
    rows = [
        [
            short(name),
            count(pool[name]),
            percent(of_pool),
            count(kept[name]),
            percent(of_kept),
            f"{of_kept / of_pool:.2f}",
        ]
        for name, (of_pool, of_kept) in list(shares.items())[:SOURCES_LISTED]
    ]
    left = len(order) - len(rows)
    note = f"{count(left)} more sources with fewer selected rows are in {SCORES}." if left else ""
    header = ["source", "pool rows", "of pool", "selected rows", "of selection", "times its share of the pool"]
    drawn = order if len(order) <= SOURCES_DRAWN else order[: SOURCES_DRAWN - 1]
    table = np.array([shares[name] for name in drawn])
    labels = [short(name, 22) for name in drawn]
    if len(drawn) < len(order):
        table = np.vstack([table, 1 - table.sum(0)])
        labels.append(f"{count(len(order) - len(drawn))} {OTHER}")
    bars = Bars(labels, {"pool": ("pool", table[:, 0]), "selected": ("kept", table[:, 1])}, True, "source")
    height = 1.1 + 0.3 * len(labels)
    return Section(key, title, plots=[Plot(key, title, sentence, bars, Table(title, rows, header, note), height)])


def lengths(selection: Selection) -> Section:
    """Labelled tokens in the pool, in the selection and in the target set."""
    key, title = "lengths", "Pool against selection, by length"
    m = selection.measurements
    sets = {"pool": m.label_tokens, "selected": m.label_tokens[selection.indices], "targets": m.target_label_tokens}
    last = int(np.ceil(np.log2(max(2, max(int(v.max()) for v in sets.values() if len(v)) + 1))))
    # 0, 1, 2, 3-4, 5-8, 9-16, ...
    edges = np.array([0, 1, *(2**power + 1 for power in range(last + 1))])
    counts = {name: np.histogram(v.numpy(), edges)[0] for name, v in sets.items()}
    used = np.nonzero(sum(counts.values()))[0]
    bins = range(used[0], used[-1] + 1)
    names = [_range(edges[i], edges[i + 1] - 1) for i in bins]
    colours = {"pool": "pool", "selected": "kept", "targets": "line"}
    series = {name: (colours[name], counts[name][bins.start : bins.stop] / max(1, len(v))) for name, v in sets.items()}
    medians = {name: int(v.median()) if len(v) else 0 for name, v in sets.items()}
    sentence = (
        f"The median row has {count(medians['selected'])} labelled tokens in the selection, {count(medians['pool'])} in "
        f"the pool and {count(medians['targets'])} in the target set."
    )
    rows = [
        [names[at], *(cell for name in sets for cell in (count(counts[name][i]), percent(series[name][1][at])))]
        for at, i in enumerate(bins)
    ]
    header = ["labelled tokens", "pool rows", "of pool", "selected rows", "of selection", "target rows", "of targets"]
    plot = Plot(key, title, sentence, Bars(names, series, False, "labelled tokens"), Table(title, rows, header), 3.2)
    return Section(key, title, plots=[plot])


def _range(first: int, last: int) -> str:
    return count(first) if first == last else f"{count(first)}-{count(last)}"
