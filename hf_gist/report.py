"""What a selection looks like to a person: a line, a table, and two pictures."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_gist.artifacts import Selection
from hf_gist.disk import write
from hf_gist.subspace import captured_variance


if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def save_selection_figures(selection: Selection, folder: str | Path) -> list[Path]:
    """Write `spectrum.png` and `scores.png`, the first only if there is a spectrum.

    Args:
        selection (`Selection`): what to draw.
        folder (`str` or `Path`): where to write.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: if matplotlib is not installed, saying how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Figures need matplotlib: pip install "hf_gist[report]".') from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    figures = {"spectrum.png": _draw_spectrum, "scores.png": _draw_scores}
    if not selection.rank:
        del figures["spectrum.png"]
    for name, draw in figures.items():
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        draw(figure.subplots(), selection)
        write(folder / name, partial(figure.savefig, dpi=150, format="png"))
        files.append(folder / name)
    return files


def _draw_spectrum(axes: "Axes", selection: Selection) -> None:
    shares = captured_variance(selection.singular_values)
    numbers = range(1, len(shares) + 1)
    axes.plot(numbers, shares, marker="o", markersize=3, color="tab:blue")
    axes.axvline(selection.rank, color="tab:orange", linestyle="--")
    # at the foot of the line, where the curve never is
    axes.annotate(
        f"rank {selection.rank}: {selection.explained_variance:.1%}",
        (selection.rank, 0.04),
        xytext=(-6 if selection.rank > len(shares) / 2 else 6, 0),
        textcoords="offset points",
        ha="right" if selection.rank > len(shares) / 2 else "left",
    )
    axes.set(
        xlabel="singular directions of the target gradients",
        ylabel="share of variance",
        ylim=(0, 1.03),
        title="Target gradient spectrum",
    )
    axes.grid(alpha=0.3)


def _draw_scores(axes: "Axes", selection: Selection) -> None:
    finite = selection.scores[torch.isfinite(selection.scores)]
    kept = selection.scores[torch.tensor(selection.indices)]
    low, high = float(finite.min()), float(finite.max())
    bins = torch.linspace(low, high if high > low else low + 1e-6, 61).tolist()
    axes.hist(finite.numpy(), bins=bins, color="lightgrey", label=f"pool ({len(finite):,})")
    axes.hist(kept.numpy(), bins=bins, color="tab:orange", label=f"selected ({len(kept):,})")
    axes.set(xlabel="alignment with the target set", ylabel="rows", yscale="log", title="Scores")
    axes.legend()
