"""A selection as text for the terminal: a line and a table."""

from collections import Counter

import torch

from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.selection import Selection
from hf_gist.gist.wording import alignment_sentence
from hf_gist.report.wording import short
from hf_gist.utils.terminal import in_columns, named


SOURCE_WIDTH = 50
"""Longest name of a source in the table."""

SOURCES_LISTED = 20


def summary_line(selection: Selection, steps: int | None = None) -> str:
    """One sentence: method, rows kept and rank.

    Args:
        selection (`Selection`): what was selected.
        steps (`int`, *optional*): optimizer steps of the training on it, if one follows.
    """
    kept = len(selection.indices)
    size = len(selection.scores)
    line = f"{selection.method}: kept {kept:,} of {size:,} rows ({kept / size:.2%})"
    if selection.method == "GIST":
        line += (
            f" with {len(selection.group_names)} target group(s), rank {selection.rank} of "
            f"{len(selection.singular_values)} ({selection.explained_variance:.1%} of the target gradients' variance)"
        )
    return f"{line}; training on them for {steps:,} steps." if steps is not None else f"{line}."


def summary_table(selection: Selection) -> str:
    """A plain text table: rows and tokens kept, rank, variance, energy, and the sources of the selection and the pool."""
    m = selection.measurements
    tokens = int(m.label_tokens[selection.indices].sum())
    lines = [
        named("kept rows", f"{len(selection.indices):,} of {len(selection.scores):,}"),
        named("kept labelled tokens", f"{tokens:,} of {int(m.label_tokens.sum()):,}"),
    ]
    if selection.rank:
        lines += [*_subspace_lines(selection), *_loss_line(selection)]
    if aligned := alignment_sentence(selection.manifest.get("alignment")):
        lines.append(named("best rows", aligned))
    if m.scored is not None:
        scored = f"{int(m.scored.sum()):,} of {len(m.scored):,}; the others were not looked at"
        lines.append(named("scored rows", scored))
    unscorable = int((~m.scorable & m.looked_at).sum())
    if unscorable:
        lines.append(named("rows that cannot be scored", f"{unscorable:,}"))
    lines += _copies_lines(selection)
    if m.sources is not None:
        lines += ["", *_source_lines(m.sources, selection.indices)]
    return "\n".join(lines)


def _copies_lines(selection: Selection) -> list[str]:
    """Rows left out because they repeat another row, or rows kept in spite of it."""
    copy_of = selection.measurements.copy_of
    if copy_of is None:
        return []
    if selection.config.drop_pool_duplicates:
        found = int((copy_of != torch.arange(len(copy_of))).sum())
        others = f" of {found:,} found; the others cannot be selected for another reason"
        dropped = selection.copies_dropped
        return [named("repeated rows left out", f"{dropped:,}{others if found > dropped else ''}")]
    kept = copy_of[selection.indices]
    return [named("repeated rows kept", f"{len(kept) - len(kept.unique()):,}; drop_pool_duplicates is off")]


def _loss_line(selection: Selection) -> list[str]:
    """The loss that rows were scored by; selections of older versions do not name it."""
    loss = selection.manifest.get("loss")
    return [] if loss is None or scorer_of(selection.config).forward_only else [named("scored by the loss", loss)]


def _subspace_lines(selection: Selection) -> list[str]:
    kept = float(selection.energy[selection.indices].median())
    scored = float(selection.energy[selection.measurements.scorable].median())
    return [
        named("rank", f"{selection.rank} of {len(selection.singular_values)}"),
        named("target variance explained", f"{selection.explained_variance:.1%}"),
        named("energy in the subspace", f"{kept:.1%} (median of the kept rows), {scored:.1%} (of all scored rows)"),
    ]


def _source_lines(sources: list[str], indices: list[int]) -> list[str]:
    """Rows kept of each source, and its share of the selection and of the pool; the first sources only."""
    pool = Counter(sources)
    kept = Counter(sources[i] for i in indices)
    order = sorted(pool, key=lambda name: (-kept[name], -pool[name], name))
    rows = [["source", "kept", "of kept", "of pool"]]
    for name in order[:SOURCES_LISTED]:
        shares = (kept[name] / len(indices), pool[name] / len(sources))
        rows.append([short(name, SOURCE_WIDTH), f"{kept[name]:,}", *(f"{share:.1%}" for share in shares)])
    left = len(order) - SOURCES_LISTED
    more = [f"and {left:,} more sources, with {sum(kept[name] for name in order[SOURCES_LISTED:]):,} kept rows"]
    return [*in_columns(rows).split("\n"), *(more if left > 0 else [])]
