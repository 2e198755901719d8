"""The subspace of the target gradients."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_gist.costs.stopwatch import SUBSPACE, TARGETS, Stopwatch
from hf_gist.errors import UnusableTargetsWarning
from hf_gist.functional.subspace import basis_slice, spectrum
from hf_gist.gist.checks import check_groups
from hf_gist.gist.scorers.base import CheckpointVectors
from hf_gist.gradients.collect import collect_vectors
from hf_gist.gradients.models import model_device
from hf_gist.gradients.partial import PartialScores
from hf_gist.gradients.passes import DatasetPass


SPECTRUM = "targets"
"""Name of the targets' spectrum in the folder of unfinished scores."""


@dataclass(frozen=True)
class TargetSubspace:
    """The subspace of the target gradients.

    Args:
        singular (`Tensor`): singular values `[q]`.
        u (`Tensor`): left singular vectors `[M', q]`, for the usable target rows.
        usable (`Tensor`): row numbers of the usable target rows `[M']`.
        label_tokens (`Tensor`): labelled tokens of the usable target rows `[M']`.
        basis (`list[dict[str, Tensor]]`): slices of the basis at each checkpoint.
    """

    singular: torch.Tensor
    u: torch.Tensor
    usable: torch.Tensor
    label_tokens: torch.Tensor
    basis: list[dict[str, torch.Tensor]]


def _place(slice_: torch.Tensor, dataset_pass: DatasetPass) -> torch.Tensor:
    """A slice of the basis; in pinned host memory if it is copied to a GPU for every batch."""
    on_host = model_device(dataset_pass.model).type == "cuda" and slice_.device.type == "cpu"
    return slice_.pin_memory() if on_host else slice_


def find_target_subspace(
    dataset_pass: DatasetPass,
    per_checkpoint: Sequence[CheckpointVectors],
    targets: Any,
    watch: Stopwatch,
    partial: PartialScores | None,
    groups: Sequence[str] | None = None,
) -> TargetSubspace:
    """Spectrum of the targets' vectors and the slices of the basis at each checkpoint.

    Args:
        dataset_pass (`DatasetPass`): model, collator and batching.
        per_checkpoint (`Sequence[CheckpointVectors]`): row representations.
        targets: tokenised target rows.
        watch (`Stopwatch`): records the seconds of both phases.
        partial (`PartialScores`, *optional*): saves the spectrum, which saved scores depend on.
        groups (`Sequence[str]`, *optional*): name of each target row's group `[M]`, if they have names.

    Raises:
        ValueError: if no target, or none of a group, has a labelled token and a finite vector.

    Warns:
        UnusableTargetsWarning: if some targets have none.
    """
    parts: list[dict[str, torch.Tensor]] = []
    for at_checkpoint in per_checkpoint:
        with at_checkpoint.installed():
            vectors, facts = collect_vectors(dataset_pass, targets, "target gradients", at_checkpoint.targets)
        parts.append(vectors)
    usable = (facts.label_tokens > 0) & torch.isfinite(facts.norms)
    if not usable.any():
        raise ValueError("No row of `target_dataset` has a labelled token and a finite gradient.")
    check_groups(usable, groups)
    warn_unusable(usable, groups)
    watch.record(TARGETS)
    rows = usable.nonzero().flatten()
    singular, u = _spectrum(_gram_of_rows(parts, rows), partial)
    basis = [
        {name: _place(basis_slice(vectors.pop(name), singular, u), dataset_pass) for name in list(vectors)}
        for vectors in parts
    ]
    watch.record(SUBSPACE)
    return TargetSubspace(singular, u, rows, facts.label_tokens[rows], basis)


def lost_by_group(rows: Sequence[int], groups: Sequence[str] | Mapping[int, str] | None) -> dict[str, int]:
    """Number of these target rows in each group; empty if the groups have no names."""
    return {} if groups is None else dict(sorted(Counter(groups[row] for row in rows).items()))


def warn_unusable(usable: torch.Tensor, groups: Sequence[str] | None) -> None:
    """Warn about the target rows that are not used, with their number in each named group.

    Args:
        usable (`Tensor`): `[M]` bool.
        groups (`Sequence[str]`, *optional*): name of each target row's group `[M]`, if they have names.
    """
    rows = (~usable).nonzero().flatten().tolist()
    if not rows:
        return
    total = Counter(groups or ())
    by_group = [f"{name!r} {lost:,} of {total[name]:,}" for name, lost in lost_by_group(rows, groups).items()]
    warnings.warn(
        f"{len(rows):,} of {len(usable):,} target rows have no labelled token or a gradient that is not finite, and are not "
        f"used{': ' + ', '.join(by_group) if by_group else ''}. Check the prompt mask and the truncation length.",
        UnusableTargetsWarning,
        stacklevel=3,
    )


def _gram_of_rows(parts: list[dict[str, torch.Tensor]], rows: torch.Tensor) -> torch.Tensor:
    """The Gram matrix `[M', M']` of the usable rows; all other rows are removed from `parts`."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for vectors in parts:
        for name in vectors:
            vectors[name] = vectors[name][rows.to(vectors[name].device)]
            wide = vectors[name].double()
            gram += (wide @ wide.T).cpu()
    return gram


def _spectrum(gram: torch.Tensor, partial: PartialScores | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Singular values and vectors; those saved by an interrupted run, if any.

    Rounding can rotate the eigenvectors, so saved scores need the saved eigenvectors.
    """
    kept = partial.kept(SPECTRUM) if partial is not None else None
    if kept is not None:
        return kept["singular"], kept["u"]
    singular, u = spectrum(gram)
    u = u.contiguous()
    if partial is not None:
        partial.keep(SPECTRUM, {"singular": singular, "u": u})
    return singular, u
