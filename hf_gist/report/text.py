"""A selection as text for the terminal: a line and a table."""

from collections import Counter

from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.selection import Selection
from hf_gist.gist.wording import alignment_sentence


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
        _line("kept rows", f"{len(selection.indices):,}", f"of {len(selection.scores):,}"),
        _line("kept labelled tokens", f"{tokens:,}", f"of {int(m.label_tokens.sum()):,}"),
    ]
    if selection.rank:
        lines += [*_subspace_lines(selection), *_loss_line(selection)]
    if aligned := alignment_sentence(selection.manifest.get("alignment")):
        lines.append(f"best rows: {aligned}")
    if m.scored is not None:
        others = f"of {len(m.scored):,}, the others were not looked at"
        lines.append(_line("scored rows", f"{int(m.scored.sum()):,}", others))
    unscorable = int((~m.scorable & m.looked_at).sum())
    if unscorable:
        lines.append(_line("rows that cannot be scored", f"{unscorable:,}"))
    lines += _copies_lines(selection)
    if m.sources is not None:
        lines += ["", *_source_lines(m.sources, selection.indices)]
    return "\n".join(lines)


def _line(name: str, value: str, more: str = "") -> str:
    return f"{name:<28}{value:>12} {more}".rstrip()


def _copies_lines(selection: Selection) -> list[str]:
    """Rows left out because they repeat another row, or rows kept in spite of it."""
    copy_of = selection.measurements.copy_of
    if copy_of is None:
        return []
    if selection.config.drop_pool_duplicates:
        return [_line("repeated rows left out", f"{selection.copies_dropped:,}")]
    kept = copy_of[selection.indices]
    return [_line("repeated rows kept", f"{len(kept) - len(kept.unique()):,}", "drop_pool_duplicates is off")]


def _loss_line(selection: Selection) -> list[str]:
    """The loss that rows were scored by; selections of older versions do not name it."""
    loss = selection.manifest.get("loss")
    return (
        [] if loss is None or scorer_of(selection.config).forward_only else [f"{'scored by the loss':<28}{loss:>12}"]
    )


def _subspace_lines(selection: Selection) -> list[str]:
    kept = float(selection.energy[selection.indices].median())
    scored = float(selection.energy[selection.measurements.scorable].median())
    return [
        _line("rank", str(selection.rank), f"of {len(selection.singular_values)}"),
        _line("target variance explained", f"{selection.explained_variance:.1%}"),
        _line("energy in the subspace", f"{kept:.1%}", f"median of the kept rows, {scored:.1%} of all scored rows"),
    ]


def _source_lines(sources: list[str], indices: list[int]) -> list[str]:
    """Rows kept of each source, and its share of the selection and of the pool."""
    pool = Counter(sources)
    kept = Counter(sources[i] for i in indices)
    width = max(24, *(len(name) for name in pool))
    lines = [f"{'source':<{width}}{'kept':>10}{'of kept':>10}{'of pool':>10}"]
    for name, count in sorted(pool.items(), key=lambda item: (-kept[item[0]], item[0])):
        lines.append(
            f"{name:<{width}}{kept[name]:>10,}{kept[name] / len(indices):>10.1%}{count / len(sources):>10.1%}"
        )
    return lines
