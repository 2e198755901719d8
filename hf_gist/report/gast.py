"""The part of the page on GAST: which samples trained which layer, in the whole run and over time."""

from pathlib import Path

import numpy as np
import torch

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.table import HISTORY_FILE, PICTURE_FILE, RUN_FILE, TABLE_FILE, SelectionTable
from hf_gist.report.asked import settings_table
from hf_gist.report.draw import HeatMaps
from hf_gist.report.parts import Plot, Section, Table
from hf_gist.report.wording import count, percent, plural, short
from hf_gist.utils.disk import read, read_json


KEY, TITLE = PICTURE_FILE.removesuffix(".png"), "GAST: who trained which layer"
COLUMNS_DRAWN, LAYERS_LISTED, SPANS_LISTED = 10, 100, 24


def gast_sections(folder: Path) -> list[Section]:
    """What a GAST run left in its output folder.

    Raises:
        ValueError: if a file is damaged.
    """
    table, run = SelectionTable.read(folder), _run(folder)
    return [_asked(table, run), _layers(table)]


def _run(folder: Path) -> tuple[GASTConfig, int, int] | None:
    """Configuration, optimizer steps and support gradients of the run, if they were written down."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    values = read_json(path)
    return read(
        path, lambda _: (GASTConfig.from_dict(values["config"]), int(values["steps"]), int(values["supports"]))
    )


def _asked(table: SelectionTable, run: tuple[GASTConfig, int, int] | None) -> Section:
    kept, seen = float(table.kept.sum()), float(table.seen.sum()) * len(table.groups)
    rows = [
        ["layers (groups of matrices)", count(len(table.groups))],
        ["samples with a label seen", count(table.seen.sum())],
        ["share kept by a layer", percent(kept / max(1.0, seen))],
    ]
    folded = []
    if run is not None:
        config, steps, supports = run
        keep = percent(config.keep) if isinstance(config.keep, float) else plural(config.keep, "sample")
        rows = [["mode", config.mode], ["asked to keep", f"{keep} of a batch"], ["support", config.support], *rows]
        rows += [["optimizer steps", count(steps)], ["support gradients", count(supports)]]
        folded = [settings_table(config)]
    return Section("gast", "GAST: what was asked and done", tables=[Table("Asked and done", rows)], folded=folded)


def _drawn(table: SelectionTable) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """The columns with the most samples, the others added up: names, kept `[P, L, S']` and seen `[P, S']`."""
    order = table.seen.sum(0).argsort(descending=True, stable=True)
    if len(order) <= COLUMNS_DRAWN:
        order = order.sort().values
        return [table.columns[i] for i in order.tolist()], table.kept, table.seen
    first, others = order[: COLUMNS_DRAWN - 1], order[COLUMNS_DRAWN - 1 :]
    kept = torch.cat([table.kept[..., first], table.kept[..., others].sum(-1, keepdim=True)], -1)
    seen = torch.cat([table.seen[..., first], table.seen[..., others].sum(-1, keepdim=True)], -1)
    return [*(table.columns[i] for i in first.tolist()), f"{len(others):,} others"], kept, seen


def _layers(table: SelectionTable) -> Section:
    if not table.seen.any():
        return Section(KEY, TITLE, missing="No batch was masked, so no layer kept or dropped anything.")
    names, kept, seen = _drawn(table)
    used = seen.sum(0) > 0
    names = [name for name, shown in zip(names, used.tolist(), strict=True) if shown]
    small = SelectionTable(table.groups, names, kept[..., used], seen[:, used], table.span_steps)
    text = [
        "A layer keeps some samples of each batch and learns from those alone. A layer that prefers some kind of sample "
        "is brighter there; equal colours mean that the kinds are treated alike.",
        f"The numbers behind it are in {TABLE_FILE} and, over time, in {HISTORY_FILE}.",
    ]
    return Section(KEY, TITLE, text=text, plots=[_whole_run(small), _over_time(small)])


def _layer_names(table: SelectionTable) -> list[str]:
    """Names without what they all begin with."""
    parts = [name.split(".") for name in table.groups]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [short(".".join(p[shared:]), 24) for p in parts]


def _whole_run(table: SelectionTable) -> Plot:
    rates, layers = table.rates(), _layer_names(table)
    at = int(rates.flatten().nan_to_num(-1).argmax())
    lowest = int(rates.flatten().nan_to_num(2).argmin())
    most, least = (divmod(place, len(table.columns)) for place in (at, lowest))
    sentence = (
        f"Layer {layers[most[0]]} kept the largest share, {percent(float(rates[most]))} of the samples of "
        f"{short(table.columns[most[1]])!r}; layer {layers[least[0]]} the smallest, {percent(float(rates[least]))} of "
        f"{short(table.columns[least[1]])!r}."
    )
    columns = [short(name, 20) for name in table.columns]
    drawn = HeatMaps(rates[None].numpy(), [""], layers, "", columns)
    rows = [
        [layer, *(percent(rate) for rate in row)]
        for layer, row in list(zip(layers, rates.tolist(), strict=True))[:LAYERS_LISTED]
    ]
    left = len(layers) - len(rows)
    note = f"{plural(left, 'more layer')} in {TABLE_FILE}." if left else ""
    listed = Table("Share of the samples kept, by layer", rows, ["layer", *columns], note)
    return Plot(KEY, "Share of samples kept by each layer", sentence, drawn, listed, _height(len(layers), 1))


def _over_time(table: SelectionTable) -> Plot:
    starts, rates = table.rates_over_time()
    layers, columns = _layer_names(table), [short(name, 26) for name in table.columns]
    first, last = starts[0], starts[-1] + table.span_steps
    sentence = (
        f"Each map is one kind of sample: layers from top to bottom, time from left to right with "
        f"{plural(table.span_steps, 'optimizer step')} to a column; a gap means that there was no such sample. "
        f"{_largest_change(table)}"
    )
    values = rates.permute(2, 1, 0).numpy()
    drawn = HeatMaps(values, columns, layers, "optimizer step", extent=(first, last))
    by_kind = (table.kept.sum(1) / (table.seen * len(layers)))[first // table.span_steps :][: len(starts)]
    rows = [
        [
            f"{count(start)}-{count(start + table.span_steps - 1)}",
            *("none" if np.isnan(r) else percent(r) for r in row),
        ]
        for start, row in list(zip(starts, by_kind.tolist(), strict=True))[:SPANS_LISTED]
    ]
    listed = Table("Share of the samples kept, mean over the layers", rows, ["steps", *columns])
    height = _height(min(len(layers), 16), -(-len(columns) // 2))
    return Plot("gast_history", "Share of samples kept by each layer, over time", sentence, drawn, listed, height)


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


def _height(layers: int, down: int) -> float:
    return min(1.6 + down * (0.5 + 0.11 * layers), 14)
