"""What a selection looks like on a terminal: a line and a table."""

from collections import Counter

import torch

from hf_gist.gist.selection import Selection


def summary_line(selection: Selection, steps: int | None = None) -> str:
    """One sentence on what was kept."""
    kept, size = len(selection.indices), len(selection.scores)
    line = f"{selection.method}: kept {kept:,} of {size:,} rows ({kept / size:.2%})"
    if selection.method == "GIST":
        line += (
            f" by {len(selection.group_names)} target group(s), rank {selection.rank} of "
            f"{len(selection.singular_values)} ({selection.explained_variance:.1%} of the target gradients' variance)"
        )
    return f"{line}; training on them for {steps:,} steps." if steps is not None else f"{line}."


def summary_table(selection: Selection) -> str:
    """Kept rows, rank, variance kept, and each source's share of the selection against its share of the pool."""
    m, kept = selection.measurements, torch.tensor(selection.indices)
    lines = [
        f"{'kept rows':<28}{len(selection.indices):>12,} of {len(selection.scores):,}",
        f"{'kept label tokens':<28}{int(m.label_tokens[kept].sum()):>12,} of {int(m.label_tokens.sum()):,}",
    ]
    if selection.rank:
        lines += [
            f"{'rank':<28}{selection.rank:>12} of {len(selection.singular_values)}",
            f"{'target variance kept':<28}{selection.explained_variance:>12.1%}",
            f"{'energy in the subspace':<28}{float(selection.energy[kept].median()):>12.1%} median of the kept rows, "
            f"{float(selection.energy[m.scorable].median()):.1%} of all",
        ]
    if m.scored is not None:
        lines.append(f"{'passed on by the prefilter':<28}{int(m.scored.sum()):>12,}")
    unscorable = int((~m.scorable & (torch.tensor(True) if m.scored is None else m.scored)).sum())
    if unscorable:
        lines.append(f"{'rows that cannot be scored':<28}{unscorable:>12,}")
    if m.sources is not None:
        lines += ["", *_source_lines(m.sources, selection.indices)]
    return "\n".join(lines)


def _source_lines(sources: list[str], indices: list[int]) -> list[str]:
    pool, kept = Counter(sources), Counter(sources[i] for i in indices)
    width = max(24, *(len(name) for name in pool))
    lines = [f"{'source':<{width}}{'kept':>10}{'of kept':>10}{'of pool':>10}"]
    for name, count in sorted(pool.items(), key=lambda item: (-kept[item[0]], item[0])):
        lines.append(
            f"{name:<{width}}{kept[name]:>10,}{kept[name] / len(indices):>10.1%}{count / len(sources):>10.1%}"
        )
    return lines
