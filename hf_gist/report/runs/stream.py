"""The page of a selection from a stream, which has the scores and rows of what was selected, and counts of the rest."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_gist.config.gist import GISTConfig
from hf_gist.data.preparation.findings import cut_sentences
from hf_gist.data.provenance import RowSource
from hf_gist.report.asked import settings_table
from hf_gist.report.draw import Bars
from hf_gist.report.examples import text_spans
from hf_gist.report.parts import Opening, Plot, RowGroup, RowText, Section, Table
from hf_gist.report.runs.opening import target_sentence
from hf_gist.report.wording import count, percent, plural, seconds, short
from hf_gist.utils.disk import read, read_json


STREAM_FILE = "stream.json"
"""Written by `hf-gist select --streaming`, which writes no manifest."""

SELECTED_FILES = ("selected.parquet", "selected.jsonl")
"""Names of the file of selected rows that `hf-gist select` writes."""

PARTS = 10
"""Parts of the stream in the figure."""

EXAMPLES = 3
"""Rows shown with the highest scores, and as many with the lowest."""


class StreamRun:
    """A selection from a stream, read from its folder.

    Args:
        folder (`Path`): output folder of `hf-gist select --streaming`.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / STREAM_FILE
        self.values: dict[str, Any] = read_json(path)
        self.indices = read(path, lambda _: [int(row) for row in self.values["indices"]])
        self.scores = read(path, lambda _: [float(score) for score in self.values["scores"]])
        self.seen = read(path, lambda _: int(self.values["seen"]))
        self.config: GISTConfig | None = read(path, lambda _: self._config())

    def _config(self) -> GISTConfig | None:
        return GISTConfig.from_dict(self.values["config"]) if "config" in self.values else None

    @cached_property
    def rows(self) -> Dataset | list:
        """The selected rows, best first; empty if their file is no longer in the folder, or has another length."""
        path = next((self.folder / name for name in SELECTED_FILES if (self.folder / name).is_file()), None)
        if path is None or not self.indices:
            return []
        # reading raw rows needs a newer `datasets` than the callbacks, which write pages too
        from hf_gist.data.reading.load import read_rows

        rows = read_rows(RowSource(str(path)), "train_file", self.values.get("columns")).rows
        return rows if len(rows) == len(self.indices) else []

    def opening(self) -> Opening:
        """The first sentences."""
        kept = len(self.indices)
        selected = f"{count(kept)} of {plural(self.seen, 'row')} of a stream ({percent(kept / max(1, self.seen))})"
        targets = self.values.get("targets")
        if isinstance(targets, int):
            selected += f": those that match the {plural(targets, 'target row')} best"
        took = self.values.get("seconds")
        cost = f"Selecting took {seconds(took)}; the stream was read once." if took else "Not recorded in this folder."
        return Opening(f"{selected}.", target_sentence({}, trained=False), cost)

    def sections(self) -> list[Section]:
        """All sections, in order."""
        return [self._settings(), self._positions(), self._examples()]

    # ---- Sections ----

    def _settings(self) -> Section:
        rows = [["rows kept", f"{count(len(self.indices))} of {count(self.seen)}"]]
        for name, title in (
            ("unscorable", "rows that cannot be scored"),
            ("pool_duplicates_dropped", "repeated rows"),
        ):
            known = name in self.values
            rows.append([title, count(self.values[name]) if known else "not recorded"])
        rows += [["rows left out", count(len(self.values["skipped_rows"]))]] if "skipped_rows" in self.values else []
        rows += [["rows that were cut", short(sentence, 200)] for sentence in cut_sentences(self.values)]
        if self.scores:
            ordered = sorted(self.scores)
            shown = (ordered[-1], ordered[len(ordered) // 2], ordered[0])
            rows.append(["scores of the selected rows", "best {:.3f}, median {:.3f}, lowest {:.3f}".format(*shown)])
        rows += [[name, short(str(self.values[name]))] for name in ("model", "adapter") if self.values.get(name)]
        folded = [] if self.config is None else [settings_table(self.config)]
        return Section("asked", "Selected rows", tables=[Table("Selected rows", rows)], folded=folded)

    def _positions(self) -> Section:
        """Where in the stream the selected rows are: few at its end may mean that its order matters."""
        title = "Position in the stream"
        if not self.indices:
            return Section("positions", title, missing="No row was selected.")
        edges = np.linspace(0, self.seen, min(PARTS, self.seen) + 1).round().astype(int)
        counts = np.histogram(self.indices, edges)[0]
        names = [f"{count(first)}-{count(last - 1)}" for first, last in zip(edges[:-1], edges[1:], strict=True)]
        most = int(counts.argmax())
        sentence = (
            f"Rows {names[most]} of the stream have the most selected rows, {count(counts[most])} of "
            f"{count(len(self.indices))}."
        )
        bars = Bars(names, {"selected": ("kept", counts / counts.sum())}, horizontal=True, label="rows of the stream")
        table = Table(title, [[n, count(c)] for n, c in zip(names, counts, strict=True)], ["rows", "selected rows"])
        return Section(
            "positions", title, plots={"positions": Plot(title, sentence, bars, table, 1.1 + 0.3 * len(names))}
        )

    def _examples(self) -> Section:
        title = "Example rows"
        if not len(self.rows):
            missing = f"There is no {' or '.join(SELECTED_FILES)} with the selected rows in the folder."
            return Section("rows", title, missing=missing)
        places = range(len(self.rows))
        parts = [("Best", list(places[:EXAMPLES])), ("Lowest of the selected", list(places[EXAMPLES:][-EXAMPLES:]))]
        shown = [(name, [self._row(place) for place in part]) for name, part in parts if part]
        group = RowGroup("Selected rows", f"{plural(len(self.rows), 'row')}.", shown)
        return Section("rows", title, text=["Rows are numbered from 0 in the order of the stream."], groups=[group])

    def _row(self, place: int) -> RowText:
        label = f"row {self.indices[place]}, score {self.scores[place]:.3f}"
        return RowText(label, text_spans(self.rows[place]), "The row has no text in a known format.")
