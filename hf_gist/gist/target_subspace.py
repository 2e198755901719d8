"""The subspace of the target gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_gist.costs.stopwatch import SUBSPACE, TARGETS, Stopwatch
from hf_gist.functional.subspace import basis_slice, spectrum
from hf_gist.gist.scorers.base import CheckpointVectors
from hf_gist.gradients.collect import collect_vectors
from hf_gist.gradients.models import model_device
from hf_gist.gradients.partial import PartialScores
from hf_gist.gradients.passes import DatasetPass


SPAN = "targets"
"""Name of the targets' spectrum among unfinished scores."""


@dataclass(frozen=True)
class TargetSubspace:
    """The subspace of the targets.

    Args:
        singular (`Tensor`): `[q]`.
        u (`Tensor`): `[M', q]`, for the usable target rows.
        usable (`Tensor`): their row numbers `[M']`.
        label_tokens (`Tensor`): their labelled tokens `[M']`.
        basis (`list[dict[str, Tensor]]`): each stage's slices of the basis.
    """

    singular: torch.Tensor
    u: torch.Tensor
    usable: torch.Tensor
    label_tokens: torch.Tensor
    basis: list[dict[str, torch.Tensor]]


def _place(slice_: torch.Tensor, dataset_pass: DatasetPass) -> torch.Tensor:
    """A slice of the basis where it is kept: pinned on the host, if it is copied to a GPU again and again."""
    on_host = model_device(dataset_pass.model).type == "cuda" and slice_.device.type == "cpu"
    return slice_.pin_memory() if on_host else slice_


def find_target_subspace(
    dataset_pass: DatasetPass,
    per_checkpoint: Sequence[CheckpointVectors],
    targets: Any,
    watch: Stopwatch,
    partial: PartialScores | None,
) -> TargetSubspace:
    """Spectrum of the targets' vectors and each stage's slices of the basis."""
    parts: list[dict[str, torch.Tensor]] = []
    for at_checkpoint in per_checkpoint:
        with at_checkpoint.installed():
            vectors, facts = collect_vectors(dataset_pass, targets, "target gradients", at_checkpoint.targets)
        parts.append(vectors)
    usable = (facts.label_tokens > 0) & torch.isfinite(facts.norms)
    if not usable.any():
        raise ValueError("No row of `target_dataset` has a labelled token and a finite gradient.")
    watch.record(TARGETS)
    rows = usable.nonzero().flatten()
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for vectors in parts:
        for name in vectors:
            vectors[name] = vectors[name][rows.to(vectors[name].device)]
            wide = vectors[name].double()
            gram += (wide @ wide.T).cpu()
    kept = partial.kept(SPAN) if partial is not None else None
    if kept is None:
        singular, u = spectrum(gram)
        kept = {"singular": singular, "u": u.contiguous()}
        if partial is not None:
            partial.keep(SPAN, kept)
    # A last digit of difference can turn the eigenvectors: scores of before belong to the eigenvectors of before.
    singular, u = kept["singular"], kept["u"]
    basis = [
        {name: _place(basis_slice(vectors.pop(name), singular, u), dataset_pass) for name in list(vectors)}
        for vectors in parts
    ]
    watch.record(SUBSPACE)
    return TargetSubspace(singular, u, rows, facts.label_tokens[rows], basis)
