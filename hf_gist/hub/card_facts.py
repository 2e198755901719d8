"""Facts of a selection for its card, as plain values for the templates."""

import dataclasses
import shlex
from collections import Counter
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.leaks import TARGET_SET
from hf_gist.data.preparation.findings import cut_sentences
from hf_gist.data.provenance import files_of
from hf_gist.functional.target_losses import MANIFEST_KEY
from hf_gist.gist.history import ENTRY
from hf_gist.gist.scorers.gist import GIST
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring_cost.looked_at import why_not_looked_at
from hf_gist.gist.selection import Selection
from hf_gist.gist.wording import (
    alignment_sentence,
    held_out_targets,
    repeats_sentence,
    rule_sentence,
    unusable_targets,
)
from hf_gist.hub.markdown import Verbatim, code, one_line


MOST_SOURCES = 50
"""Rows of the table of sources; the artifacts have the rest."""

ROLES = {"train_dataset": "pool", "target_dataset": "targets", "support_dataset": "support"}
"""Datasets in a manifest, and their roles in a run."""

Facts = list[tuple[str, Verbatim]]


def is_gist(selection: Selection) -> bool:
    """Whether the rows were selected by the paper's method, not by a baseline."""
    return selection.method == GIST.title


def looks_at_targets(selection: Selection) -> bool:
    """Whether the rule compares rows with the target set; some baselines do not."""
    return selection.config.strategy not in UNSCORED and selection.config.score != "grad_norm"


def share(part: float, whole: float) -> str:
    """A percentage."""
    return f"{part / whole:.2%}" if whole else "0 %"


def selection_facts(selection: Selection) -> Facts:
    """The selected rows, the rule, and the excluded rows."""
    m = selection.measurements
    config = selection.config
    kept = torch.tensor(selection.indices)
    tokens = int(m.label_tokens[kept].sum())
    all_tokens = int(m.label_tokens.sum())
    facts = [
        ("Rows kept", f"{len(kept):,} of {len(m.norms):,} ({share(len(kept), len(m.norms))})"),
        ("Labelled tokens kept", f"{tokens:,} of {all_tokens:,} ({share(tokens, all_tokens)})"),
        ("Rule", rule_sentence(config)),
    ]
    if config.sample_from_top > 1:
        facts.append(("Drawn", f"at random from the best {config.sample_from_top:g} times the budget"))
    facts += [*_source_rules(selection), *_chosen_again(selection)]
    if config.strategy not in UNSCORED:
        groups = "each row is a group"
        if config.target_group_column is not None:
            groups = f"{len(selection.group_names):,} groups by {code(config.target_group_column)}"
        facts.append(("Target set", f"{len(m.target_coordinates):,} rows, {groups}"))
        if (loss := selection.manifest.get("loss")) is not None and not scorer_of(config).forward_only:
            facts.append(("Loss of a row", loss))
        facts += _subspace(selection)
    facts += _of_targets(selection)
    facts += _left_out(selection)
    facts.append(("Seed", str(config.seed)))
    return [(label, Verbatim(value)) for label, value in facts]


def _of_targets(selection: Selection) -> list[tuple[str, str]]:
    """Target rows held out, alignment of the best rows, and the target loss during training."""
    manifest = selection.manifest
    loss = manifest.get(MANIFEST_KEY) or {}
    found = {
        "Target rows held out": held_out_targets(manifest.get("held_out_targets")),
        "Alignment of the best rows": alignment_sentence(manifest.get("alignment")),
        "Target loss in training": loss.get("sentence"),
        "Warning": loss.get("warning"),
    }
    return [(label, text) for label, text in found.items() if text]


def _source_rules(selection: Selection) -> list[tuple[str, str]]:
    """Shares and largest numbers of rows of the sources, with what they got."""
    unit = {"rows": "rows", "tokens": "labelled tokens"}[selection.config.budget_unit]
    uses = selection.source_uses
    reserved = [f"{code(u.name)} {u.wanted:,} {unit} (got {u.got_units:,})" for u in uses if u.wanted is not None]
    limited = [f"{code(u.name)} {u.most:,} rows (got {u.got:,})" for u in uses if u.most is not None]
    rules = [("Reserved for sources", reserved), ("Largest part of sources", limited)]
    return [(label, ", ".join(found[:MOST_SOURCES])) for label, found in rules if found]


def _chosen_again(selection: Selection) -> list[tuple[str, str]]:
    """How often rows were selected during the training, and how much the selections overlap."""
    records = selection.manifest.get(ENTRY) or []
    config = selection.config
    if len(records) < 2:
        return []
    scored = f", from a random {share(config.reselect_share, 1)} of the pool" if config.reselect_share < 1 else ""
    steps = ", ".join(f"{record['step']:,}" for record in records[:MOST_SOURCES])
    common = ", ".join(share(record["share_in_common"], 1) for record in records[1 : MOST_SOURCES + 1])
    every = "after every pass" if config.reselect_every == 1 else f"after every {config.reselect_every} passes"
    return [
        (
            "Selected",
            f"{len(records):,} times, {every}{scored}; after steps {steps}. The numbers here are of the latest",
        ),
        ("Rows in common with the selection before", common),
    ]


def _subspace(selection: Selection) -> list[tuple[str, str]]:
    config = selection.config
    energy = selection.energy
    facts = [
        (
            "Subspace",
            f"rank {selection.rank} of {len(selection.singular_values)}, with {selection.explained_variance:.1%} of the "
            "variance of the target gradients",
        )
    ]
    if scorer_of(config).in_subspace:
        inside = float(energy[torch.tensor(selection.indices)].median())
        everywhere = float(energy[selection.measurements.scorable].median())
        facts.append(
            ("Gradient energy in it", f"median {inside:.1%} of the kept rows, {everywhere:.1%} of all scored rows")
        )
    shortcuts = ("score_layers", "sketch_dim", "scoring_cost")
    used = [f"{code(name)} = {getattr(config, name)}" for name in shortcuts if getattr(config, name) is not None]
    return facts + ([("Approximations", ", ".join(used))] if used else [])


RECORDED = ("max_length", "dtype", "eval_file", "chat_template", "tokenizer_name_or_path")
"""Flags that the manifest has under their own names."""


def _left_out(selection: Selection) -> list[tuple[str, str]]:
    m = selection.measurements
    leaks = selection.manifest.get("leaks")
    unlabelled = int((m.label_tokens == 0).sum())
    facts = []
    if m.scored is not None:
        why = why_not_looked_at(selection.config, selection.number)
        facts.append(("Rows not looked at", f"{int((~m.scored).sum()):,}, because of {why}"))
    if unlabelled or m.not_finite:
        facts.append(
            (
                "Rows that cannot be scored",
                f"{unlabelled:,} without a labelled token, {len(m.not_finite):,} with a gradient that is not finite",
            )
        )
    if lost := unusable_targets(selection.manifest.get("unusable_targets"), code):
        facts.append(("Targets that cannot be used", lost))
    facts += [("Rows that were cut", sentence) for sentence in cut_sentences(selection.manifest)]
    repeats = repeats_sentence(selection.manifest.get("pool_duplicates"), selection.config.drop_pool_duplicates)
    facts.append(("Rows that repeat an earlier row", repeats))
    if not isinstance(leaks, dict):
        return [*facts, ("Leaks", "not checked for these rows")]
    fate = "excluded" if selection.config.drop_target_duplicates else "not excluded"
    return [*facts, ("Leaks", "; ".join(_leaks_found(leaks, fate)))]


def _leaks_found(leaks: dict[str, Any], fate: str) -> list[str]:
    found = []
    sets = {name: leak for name, leak in leaks.items() if isinstance(leak, dict)}
    named = {TARGET_SET: "the target set", "eval_dataset": "the evaluation set"}
    for key, leak in sets.items():
        # one of several evaluation sets
        name = named.get(key) or f"the evaluation set {code(key)}"
        rows = leak.get("rows", [])
        exact = leak.get("exact", 0)
        if rows:
            found.append(f"{len(rows):,} rows of the pool are also in {name} ({exact:,} with the same tokens), {fate}")
        else:
            found.append(f"no row of the pool is in {name}")
    if not sets.keys() - {TARGET_SET}:
        found.append("no evaluation set was given")
    if leaks.get("targets_in_evaluation"):
        found.append(f"{leaks['targets_in_evaluation']:,} target rows are also evaluation rows")
    return found


def source_counts(selection: Selection) -> tuple[list[tuple[str, int, str, int, str]], int]:
    """Rows of the table of sources, the most kept first, and the number of sources left out."""
    sources = selection.measurements.sources
    if sources is None:
        return [], 0
    pool = Counter(sources)
    kept = Counter(sources[i] for i in selection.indices)
    names = sorted(pool, key=lambda name: (-kept[name], -pool[name], name))
    rows = [
        (name, kept[name], share(kept[name], len(selection.indices)), pool[name], share(pool[name], len(sources)))
        for name in names[:MOST_SOURCES]
    ]
    return rows, len(names) - len(rows)


def dataset_rows(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of data sets: role, name, revision (or digest of the file), configuration and split, and rows."""
    rows = []
    for key, role in ROLES.items():
        if (facts := manifest.get(key)) is None:
            continue
        part = " / ".join(facts[name] for name in ("config_name", "split") if facts.get(name))
        common = {"role": role, "split": part, "rows": facts.get("rows")}
        for origin in facts.get("hub", []):
            rows.append(common | {"name": origin["id"], "revision": origin["revision"]})
        if not facts.get("hub"):
            rows += [common | file for file in _file_rows(facts)]
    return rows


def _file_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Name and digest of every file of a data set; the fingerprint of rows that came from none."""
    files = files_of(facts)
    if any(file.get("sha256") for file in files):
        return [
            {"name": f["file"], "revision": f"sha256 {f['sha256'][:16]}" if "sha256" in f else None} for f in files
        ]
    mark = f"fingerprint {facts['fingerprint']}" if facts.get("fingerprint") else None
    return [{"name": file["file"], "revision": mark} for file in files] or [{"name": None, "revision": mark}]


def hub_ids(manifest: dict[str, Any], key: str = "train_dataset") -> list[str]:
    """Hub ids of the pool, for a card's metadata."""
    return [origin["id"] for origin in (manifest.get(key) or {}).get("hub", [])]


def select_command(selection: Selection, address: str) -> str:
    """The command line that repeats the selection.

    Args:
        selection (`Selection`): with its manifest.
        address (`str`): of the configuration, `hf://user/model`.
    """
    manifest = selection.manifest
    model = manifest.get("model") or {}
    flags: list[tuple[str, Any]] = [("config", address), ("model_name_or_path", model.get("name_or_path") or "MODEL")]
    flags.append(("model_revision", model.get("revision")))
    flags += _source_flags(manifest.get("train_dataset") or {}, "train_file", "dataset", "POOL.jsonl")
    flags += _source_flags(manifest.get("target_dataset") or {}, "target_file", "target_dataset", "TARGETS.jsonl")
    flags.append(("adapter_name_or_path", manifest.get("adapter")))
    warmup = manifest.get("warmup") or {}
    names = [field.name for field in dataclasses.fields(WarmupSettings)]
    if not scorer_of(selection.config).needs_adam:
        names.remove("less_checkpoints")
    flags += [(name, warmup.get(name)) for name in names]
    columns = manifest.get("columns") or {}
    flags.append(("columns", [f"{name}={source}" for name, source in columns.items()] or None))
    flags += [(name, manifest.get(name)) for name in RECORDED]
    flags.append(("output_dir", "selection"))
    # settings of the training, which a command that only selects refuses
    if selection.config.target_holdout:
        flags.append(("target_holdout", 0))
    given = [f"--{name} {_quoted(value)}" for name, value in flags if value is not None]
    given += ["--no-stop_when_target_rises"] if selection.config.stop_when_target_rises else []
    given += ["--skip_bad_rows"] if manifest.get("skipped_rows") or manifest.get("bad_rows") else []
    return "hf-gist select " + " \\\n    ".join(given)


def _quoted(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return " ".join(shlex.quote(one_line(item, 500)) for item in values)


def _source_flags(facts: dict[str, Any], file: str, dataset: str, unknown: str) -> list[tuple[str, Any]]:
    origins = facts.get("hub", [])
    revisions = {origin["revision"] for origin in origins}
    # datasets in several revisions cannot be named by one command
    if len(revisions) != 1 and len(origins) != 1:
        return [(file, [found["file"] for found in files_of(facts)] or unknown)]
    named: list[tuple[str, Any]] = [(f"{dataset}_name", [origin["id"] for origin in origins])]
    named.append((f"{dataset}_revision", origins[0]["revision"]))
    parts = [(f"{dataset}_{name}", facts.get(name)) for name in ("config_name", "split")]
    return [*named, *parts]
