"""The sections of the page without figures: settings, selected rows, leaks and costs."""

from pathlib import Path
from typing import Any

import torch

from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.ledger import COSTS, CostLedger, in_units
from hf_gist.data.leaks import TARGET_SET
from hf_gist.data.preparation.findings import cut_sentences
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.selection import Selection
from hf_gist.gist.wording import (
    STRATEGIES,
    alignment_sentence,
    held_out_targets,
    repeats_sentence,
    score_sentence,
    unusable_targets,
)
from hf_gist.report.parts import Section, Table
from hf_gist.report.text import summary_line
from hf_gist.report.wording import count, percent, plural, seconds, short


ROWS_NAMED = 20
SOURCES_LISTED = 50


def asked(selection: Selection) -> Section:
    """The settings of the selection and the selected rows."""
    kept = torch.tensor(selection.indices)
    return Section(
        "asked",
        "Settings and selected rows",
        text=[summary_line(selection)],
        tables=[
            Table("Settings", _asked(selection)),
            Table("Selected rows", _kept(selection, kept)),
            *_source_budget(selection),
        ],
        folded=[settings_table(selection.config), *_provenance(selection.manifest)],
    )


def _asked(selection: Selection) -> list[list[str]]:
    config = selection.config
    rows = [
        ["budget", _budget(config)],
        ["selection rule", STRATEGIES[config.strategy].sentence],
    ]
    if config.strategy not in UNSCORED:
        rows += [
            ["score", score_sentence(config)],
            ["row representation", scorer_of(config).sentence],
            *_loss(selection),
            ["target groups", _groups(selection)],
            ["rank", _rank(selection)],
        ]
    if config.sample_from_top != 1:
        rows.append(["drawn at random from", f"the best {config.sample_from_top:g} times the budget"])
    if config.scoring_cost is not None:
        rows.append(["cost of selecting", f"at most {config.scoring_cost:g} training passes over the pool"])
    return [*rows, ["model", _model(selection.manifest)], ["seed", str(config.seed)]]


def _loss(selection: Selection) -> list[list[str]]:
    """The loss that rows were scored by; selections of older versions do not name it."""
    loss = selection.manifest.get("loss")
    return [] if loss is None or scorer_of(selection.config).forward_only else [["loss of a row", short(str(loss))]]


def _kept(selection: Selection, kept: torch.Tensor) -> list[list[str]]:
    m = selection.measurements
    tokens = int(m.label_tokens[kept].sum())
    all_tokens = int(m.label_tokens.sum())
    size = len(selection.scores)
    rows = [
        ["rows kept", f"{count(len(kept))} of {count(size)} ({percent(len(kept) / size)})"],
        ["labelled tokens kept", f"{count(tokens)} of {count(all_tokens)} ({percent(tokens / max(1, all_tokens))})"],
        ["target rows", count(len(m.target_coordinates))],
    ]
    if lost := unusable_targets(selection.manifest.get("unusable_targets")):
        rows.append(["target rows that cannot be used", short(lost, 200)])
    if held_out := held_out_targets(selection.manifest.get("held_out_targets")):
        rows.append(["target rows held out, to measure the target loss", short(held_out, 200)])
    if aligned := alignment_sentence(selection.manifest.get("alignment")):
        rows.append(["alignment of the best rows", aligned])
    if m.scored is not None:
        rows.append(["rows scored", f"{count(int(m.scored.sum()))}, {_which_scored(selection)}"])
        rows.append(["rows not looked at", count(int((~m.scored).sum()))])
    repeats = repeats_sentence(selection.manifest.get("pool_duplicates"), selection.config.drop_pool_duplicates)
    rows.append(["rows that repeat an earlier row", repeats])
    rows.append(["rows without a labelled token", count(int((m.label_tokens == 0).sum()))])
    rows.append(["rows whose gradient is not finite", count(len(m.not_finite))])
    return rows + [["rows that were cut", short(sentence, 200)] for sentence in cut_sentences(selection.manifest)]


def _which_scored(selection: Selection) -> str:
    """How the rows that were scored were found."""
    drawn = selection.manifest.get("scored_share") is not None
    nearest = "those nearest to a target by their embeddings"
    if selection.config.scoring_cost is None:
        return "a random share of the pool"
    return f"of a random share of the pool, {nearest}" if drawn else nearest


def _source_budget(selection: Selection) -> list[Table]:
    """What each source was to get of the budget and what it got, if any has a share or a limit."""
    by_tokens = selection.config.budget_unit == "tokens"
    reserved = "labelled tokens reserved" if by_tokens else "rows reserved"
    header = ["source", "pool rows", reserved, "most rows", "rows selected"]
    header += ["labelled tokens selected"] if by_tokens else []
    rows = []
    for use in selection.source_uses:
        limits = ["" if limit is None else count(limit) for limit in (use.wanted, use.most)]
        got = [count(use.got), *([count(use.got_units)] if by_tokens else [])]
        rows.append([short(use.name), count(use.pool), *limits, *got])
    left = len(rows) - SOURCES_LISTED
    note = f"{count(left)} more sources are in {MANIFEST}." if left > 0 else ""
    return [Table("Budget by source", rows[:SOURCES_LISTED], header, note)] if rows else []


def _budget(config: GISTConfig) -> str:
    unit = {"rows": "rows", "tokens": "labelled tokens"}[config.budget_unit]
    if isinstance(config.budget, float):
        return f"{percent(config.budget)} of the pool's {unit}"
    return f"{count(config.budget)} {unit}"


def _groups(selection: Selection) -> str:
    column = selection.config.target_group_column
    number = len(selection.group_names)
    return f"{plural(number, 'value')} of the column {short(column)!r}" if column else f"{count(number)} single rows"


def _rank(selection: Selection) -> str:
    config = selection.config
    rule = "fixed" if config.rank is not None else f"the smallest that explains {percent(config.explained_variance)}"
    return f"{count(selection.rank)} of {count(len(selection.singular_values))} ({rule})"


def _model(manifest: dict[str, Any]) -> str:
    model = _mapping(manifest, "model")
    words = [short(str(model[name])) for name in ("name_or_path", "class") if model.get(name)]
    trainable = model.get("trainable_parameters")
    words += [f"{count(trainable)} trainable parameters"] if isinstance(trainable, int) else []
    return ", ".join(words) or "not recorded"


def settings_table(config: GISTConfig | GASTConfig) -> Table:
    """Every setting of a configuration."""
    defaults = type(config)().to_dict()
    rows = [
        [name, short(str(value)), "default" if value == defaults[name] else "set"]
        for name, value in config.to_dict().items()
    ]
    return Table(f"All settings ({type(config).__name__})", rows, ["setting", "value", "given"])


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a manifest; empty if the version that wrote the manifest did not record it."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _provenance(manifest: dict[str, Any]) -> list[Table]:
    rows = [["hf_gist", short(str(manifest["hf_gist"]))]] if "hf_gist" in manifest else []
    rows += [[short(name), short(str(value))] for name, value in _mapping(manifest, "versions").items()]
    for name, words in (("train_dataset", "pool"), ("target_dataset", "target set")):
        data = _mapping(manifest, name)
        if data.get("fingerprint"):
            rows.append([f"fingerprint of the {words}", short(str(data["fingerprint"]))])
    if isinstance(manifest.get("processes"), int):
        rows.append(["processes", count(manifest["processes"])])
    return [Table("Versions and data", rows)] if rows else []


# ---- Leaks ----


def leaks(selection: Selection) -> Section:
    """Pool rows that are also target or evaluation rows."""
    key = "leaks"
    title = "Leaks"
    found = selection.manifest.get("leaks")
    if isinstance(found, str):
        return Section(key, title, missing=f"Duplicates were {short(found, 200)}.")
    if not isinstance(found, dict):
        return Section(key, title, missing=f"{MANIFEST} has no entry on leaks: an earlier version scored these rows.")
    sets = {name: entry for name, entry in found.items() if isinstance(entry, dict)}
    rows = [
        [
            short(name),
            *(count(n) for n in (len(entry.get("rows", [])), entry.get("exact", 0), entry.get("same_words", 0))),
            _named(entry.get("rows", [])),
        ]
        for name, entry in sets.items()
    ]
    header = ["set", "pool rows in it", "same tokens", "only the same words", "row numbers"]
    table = Table("Pool rows that are also in another set", rows, header)
    return Section(key, title, text=_leak_sentences(selection, found, sets), tables=[table])


def _leak_sentences(selection: Selection, found: dict[str, Any], sets: dict[str, Any]) -> list[str]:
    mask = selection.measurements.leaked
    leaked = 0 if mask is None else int(mask.sum())
    selected = 0 if mask is None else int(mask[selection.indices].sum())
    text = [
        f"Rows of the pool that are also in {' or '.join(map(short, sets))}: {count(leaked) if leaked else 'none'}."
    ]
    if leaked and selection.config.drop_target_duplicates:
        text.append("None of them was selected: `drop_target_duplicates` excludes them.")
    elif leaked:
        text.append(f"`drop_target_duplicates` is off: {count(selected)} of them were selected.")
    if not sets.keys() - {TARGET_SET}:
        text.append("No evaluation rows were given, so the pool was not searched for them.")
    elif found.get("targets_in_evaluation"):
        text.append(
            f"{count(found['targets_in_evaluation'])} target rows are also evaluation rows, so metrics on these rows "
            "are not held-out results."
        )
    return text


def _named(rows: list[int]) -> str:
    more = f" and {len(rows) - ROWS_NAMED:,} more" if len(rows) > ROWS_NAMED else ""
    return ", ".join(map(str, rows[:ROWS_NAMED])) + more or "none"


# ---- Costs ----


def costs(selection: Selection, folder: Path) -> Section:
    """The cost ledger; without one, the seconds in the manifest of an older version."""
    key = "costs"
    title = "Costs"
    # the ledger on disk also has the size of the artifacts
    ledger = CostLedger.load(folder)
    if ledger is not None:
        header, *rows = ledger.table()
        return Section(key, title, text=[ledger.break_even()], tables=[Table("Cost ledger", rows, header)])
    phases = _mapping(selection.manifest, "seconds")
    rows = [[short(name).replace("_", " "), seconds(value)] for name, value in phases.items()]
    memory = selection.manifest.get("peak_memory_bytes")
    rows += [["peak memory", in_units(memory)]] if isinstance(memory, int) else []
    if not rows:
        return Section(key, title, missing=f"There is no {COSTS} in the folder, and {MANIFEST} has no times.")
    text = ["This folder has no cost ledger; these are the times of the run that scored the rows."]
    return Section(key, title, text=text, tables=[Table("Time and memory", rows)])
