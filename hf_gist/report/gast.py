"""The GAST sections of the page: which samples updated which layer, in the whole run and over time."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.groups import MODEL_NAME
from hf_gist.gast.table import HISTORY_FILE, PICTURE_FILE, RUN_FILE, TABLE_FILE, SelectionTable
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.report.asked import settings_table
from hf_gist.report.draw import HeatMaps
from hf_gist.report.parts import Opening, Plot, Section, Table
from hf_gist.report.runs.opening import of_gast
from hf_gist.report.wording import count, percent, plural, short
from hf_gist.utils.disk import read, read_json


KEY = PICTURE_FILE.removesuffix(".png")
EACH_LAYER = "Each layer is updated only by the samples of a batch that it keeps"
TITLE = "GAST: which samples updated which layer"
PAGE_TITLE = "Sample selection in training (GAST)"
NO_SELECTION = (
    f"There is no {MANIFEST} in this folder, so no rows were selected before the training: GAST chooses among the samples "
    "of each batch."
)
COLUMNS_DRAWN = 10
LAYERS_LISTED = 100
SPANS_LISTED = 24


def gast_sections(folder: Path) -> tuple[Opening, list[Section]]:
    """The first sentences and the sections on a GAST run.

    Args:
        folder (`Path`): output folder of the training.

    Raises:
        ValueError: if a file is damaged.
    """
    table = SelectionTable.read(folder)
    run = _run(folder)
    facts = None if run is None else (run[0].mode, *run[1:])
    opening = of_gast(len(table.groups), _share_kept(table), facts, table.groups == [MODEL_NAME])
    return opening, [_settings(table, run), _layers(table)]


def _share_kept(table: SelectionTable) -> float:
    """Share of the samples that a layer kept, over all layers."""
    return float(table.kept.sum()) / max(1.0, float(table.seen.sum()) * len(table.groups))


def _run(folder: Path) -> tuple[GASTConfig, int, int] | None:
    """Configuration, optimizer steps and support gradients of the run; `None` if they were not written."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    return read(
        path, lambda _: (GASTConfig.from_dict(values["config"]), int(values["steps"]), int(values["supports"]))
    )


def _settings(table: SelectionTable, run: tuple[GASTConfig, int, int] | None) -> Section:
    rows = [
        ["layers (groups of matrices)", count(len(table.groups))],
        ["samples with a label seen", count(float(table.seen.sum()))],
        ["share kept by a layer", percent(_share_kept(table))],
    ]
    folded = []
    if run is not None:
        config, steps, supports = run
        rows = [*_asked(config), *rows, ["optimizer steps", count(steps)]]
        if config.support in ("dataset", "momentum"):
            rows.append(["support gradients", count(supports)])
        folded = [settings_table(config)]
    return Section("gast", "GAST: settings and totals", tables=[Table("Settings and totals", rows)], folded=folded)


def _asked(config: GASTConfig) -> list[list[str]]:
    """How samples are chosen, as rows of the table."""
    keep = percent(config.keep) if isinstance(config.keep, float) else plural(config.keep, "sample")
    rule = ["keep", f"{keep} of a batch"]
    if config.mode == "positive":
        rule = ["keep", f"samples with a cosine above {config.threshold:g}"]
    support = config.support if config.support_file is None else "a saved gradient"
    rows = [["mode", config.mode], rule, ["support", support]]
    if config.group_by == "model":
        rows.append(["mask", "one for the whole model" + (", chosen greedily" if config.redundancy else "")])
    return rows


def _largest_columns(table: SelectionTable) -> tuple[list[str], Tensor, Tensor]:
    """The columns with the most samples, and the sum of the others: names, kept `[P, L, S']` and seen `[P, S']`."""
    order = table.seen.sum(0).argsort(descending=True, stable=True)
    if len(order) <= COLUMNS_DRAWN:
        order = order.sort().values
        return [table.columns[i] for i in order.tolist()], table.kept, table.seen
    first = order[: COLUMNS_DRAWN - 1]
    others = order[COLUMNS_DRAWN - 1 :]
    kept = torch.cat([table.kept[..., first], table.kept[..., others].sum(-1, keepdim=True)], -1)
    seen = torch.cat([table.seen[..., first], table.seen[..., others].sum(-1, keepdim=True)], -1)
    return [*(table.columns[i] for i in first.tolist()), f"{len(others):,} others"], kept, seen


def _drawn_table(table: SelectionTable) -> SelectionTable:
    """The table cut to the columns that are drawn."""
    names, kept, seen = _largest_columns(table)
    used = seen.sum(0) > 0
    names = [name for name, shown in zip(names, used.tolist(), strict=True) if shown]
    return SelectionTable(table.groups, names, kept[..., used], seen[:, used], table.span_steps)


def _layers(table: SelectionTable) -> Section:
    if not table.seen.any():
        return Section(KEY, TITLE, missing="No batch was masked, so every layer was updated by all samples.")
    drawn = _drawn_table(table)
    masked = "All layers are updated by the same samples of a batch" if table.groups == [MODEL_NAME] else EACH_LAYER
    text = [
        f"{masked}. A brighter cell means that the layer "
        "kept a larger share of that kind of sample; equal colours mean equal shares.",
        f"The numbers are in {TABLE_FILE} and, over time, in {HISTORY_FILE}.",
    ]
    return Section(KEY, TITLE, text=text, plots={key: make(drawn) for key, make in FIGURES.items()})


def _layer_names(table: SelectionTable) -> list[str]:
    """Module names without their common prefix."""
    parts = [name.split(".") for name in table.groups]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [short(".".join(p[shared:]), 24) for p in parts]


# ---- The whole run ----


def whole_run(table: SelectionTable) -> Plot:
    """Share of the samples of each column that each layer kept in the whole run."""
    rates = table.rates()
    layers = _layer_names(table)
    columns = [short(name, 20) for name in table.columns]
    drawn = HeatMaps(rates[None].numpy(), [""], layers, "", columns)
    rows = [[layer, *(percent(rate) for rate in row)] for layer, row in zip(layers, rates.tolist(), strict=True)]
    left = len(layers) - LAYERS_LISTED
    note = f"{plural(left, 'more layer')} in {TABLE_FILE}." if left > 0 else ""
    header = ["layer", *columns]
    listed = Table("Share of the samples kept, by layer", rows[:LAYERS_LISTED], header, note)
    return Plot(
        "Share of samples kept by each layer", _extremes(table, layers), drawn, listed, _height(len(layers), 1)
    )


def _layer(name: str) -> str:
    """The name of a layer within a sentence."""
    return f"the {name}" if name == MODEL_NAME else f"layer {name}"


def _extremes(table: SelectionTable, layers: Sequence[str]) -> str:
    """Which layer kept the largest share of a column, and which the smallest."""
    rates = table.rates()
    highest = divmod(int(rates.flatten().nan_to_num(-1).argmax()), len(table.columns))
    lowest = divmod(int(rates.flatten().nan_to_num(2).argmin()), len(table.columns))
    first = _layer(layers[highest[0]])
    return (
        f"{first[0].upper()}{first[1:]} kept the largest share, {percent(float(rates[highest]))} of the samples of "
        f"{short(table.columns[highest[1]])!r}; {_layer(layers[lowest[0]])} the smallest, {percent(float(rates[lowest]))} "
        f"of {short(table.columns[lowest[1]])!r}."
    )


# ---- Over time ----


def over_time(table: SelectionTable) -> Plot:
    """Share of the samples of each column that each layer kept, by optimizer step."""
    starts, rates = table.rates_over_time()
    layers = _layer_names(table)
    columns = [short(name, 26) for name in table.columns]
    sentence = (
        f"Each map shows one kind of sample: layers from top to bottom, time from left to right with "
        f"{plural(table.span_steps, 'optimizer step')} per column; a gap means that there was no sample of that kind. "
        f"{_largest_change(table)}"
    )
    limits = (starts[0], starts[-1] + table.span_steps)
    drawn = HeatMaps(rates.permute(2, 1, 0).numpy(), columns, layers, "optimizer step", extent=limits)
    caption = "Share of the samples kept, mean over the layers"
    listed = Table(caption, _rows_over_time(table, starts), ["steps", *columns])
    height = _height(min(len(layers), 16), -(-len(columns) // 2))
    return Plot("Share of samples kept by each layer, over time", sentence, drawn, listed, height)


def _rows_over_time(table: SelectionTable, starts: range) -> list[list[str]]:
    """For each span of steps, the mean share over the layers of each column's samples."""
    shares = table.kept.sum(1) / (table.seen * len(table.groups))
    rows = []
    for start in starts[:SPANS_LISTED]:
        cells = ["none" if np.isnan(share) else percent(share) for share in shares[start // table.span_steps].tolist()]
        rows.append([f"{count(start)}-{count(start + table.span_steps - 1)}", *cells])
    return rows


def _largest_change(table: SelectionTable) -> str:
    """The kind of sample whose share changed most between the halves of the run."""
    used = table.seen.sum(1).nonzero().flatten()
    middle = int(used[len(used) // 2])
    halves = [
        table.kept[part].sum((0, 1)) / (table.seen[part].sum(0) * len(table.groups))
        for part in (slice(0, middle), slice(middle, None))
    ]
    change = (halves[1] - halves[0]).nan_to_num(0)
    most = int(change.abs().argmax())
    if not change[most]:
        return "No kind's share changed between the halves of the run."
    before, after = (percent(float(half[most])) for half in halves)
    return (
        f"{short(table.columns[most])!r} changed most: the layers kept {before} of it in the first half of the run and "
        f"{after} in the second."
    )


def _height(layers: int, maps_down: int) -> float:
    """Height in inches of a figure with `maps_down` heat maps in a column."""
    return min(1.6 + maps_down * (0.5 + 0.11 * layers), 14)


FIGURES: dict[str, Callable[[SelectionTable], Plot]] = {KEY: whole_run, "gast_history": over_time}
"""The figures of a GAST run by key, in order."""
