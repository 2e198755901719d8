"""Offline GIST: measure a pool against a target set, then choose. The callback runs the same code inside training."""

import dataclasses
import platform
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from torch.utils.data import IterableDataset

from hf_gist.artifacts import Measurements, Selection
from hf_gist.collect import (
    Pass,
    check_dtype,
    collect_coordinates,
    collect_gradients,
    model_device,
    per_sample_backward,
    scoring_mode,
    to_device,
)
from hf_gist.config import GISTConfig
from hf_gist.errors import UnscorableRowsWarning
from hf_gist.lora import TrackedModule, find_tracked, model_identity
from hf_gist.losses import loss_kind
from hf_gist.rows import (
    IGNORE_INDEX,
    Collator,
    check_batch,
    fetch_rows,
    keep_columns,
    read_column,
    row_lengths,
    signature_columns,
)
from hf_gist.selection import rows_in_budget
from hf_gist.subspace import basis_slice, spectrum, target_coordinates
from hf_gist.version import __version__


ROWS_LOOKED_AT = 256
"""Rows of the pool that are collated before the work starts, to see that they carry labels."""


class Stopwatch:
    """Seconds per phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End the phase that is running."""
        now = time.perf_counter()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now


def scalar_columns(dataset: Any) -> dict[str, list[Any]]:
    """The columns of a target set that could name groups: strings, integers and booleans."""
    if isinstance(dataset, Dataset):
        rows = dataset.with_format(None)
        columns = {name: list(rows[name]) for name in rows.column_names}
    else:
        rows = [dataset[i] for i in range(len(dataset))]
        shared = set.intersection(*(set(row) for row in rows)) if rows and isinstance(rows[0], dict) else set()
        columns = {name: [row[name] for row in rows] for name in rows[0] if name in shared} if shared else {}
    return {
        name: values
        for name, values in columns.items()
        if len({type(value) for value in values}) == 1 and isinstance(values[0], str | int)
    }


def group_columns(targets: Any, config: GISTConfig) -> dict[str, list[Any]]:
    """The columns of the target set that could name groups, the configured one among them, as text.

    Raises:
        ValueError: if the configured column is missing.
    """
    columns, group = scalar_columns(targets), config.target_group_column
    if group is not None:
        columns[group] = [str(value) for value in read_column(targets, group, "target_group_column")]
    return columns


def check_dataset(dataset: Any, argument: str) -> None:
    """Refuse datasets without a length, and empty ones.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(dataset, dict):
        raise ValueError(f"`{argument}` is a dict of splits ({', '.join(map(str, dataset))}); pass one of them.")
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{argument}` is a streaming dataset ({type(dataset).__name__}); GIST needs row numbers. Load it as a map "
            "style dataset (`streaming=False`), or `Dataset.from_generator`."
        )
    if len(dataset) == 0:
        raise ValueError(f"`{argument}` is empty.")


def labelled_tokens(batch: dict[str, Any], kind: str) -> torch.Tensor:
    """Labelled tokens of each row of a batch `[B]`, as the loss counts them."""
    labels = batch["labels"]
    if kind == "classification":
        return torch.ones(len(labels), dtype=torch.long)
    return ((labels[:, 1:] if kind == "causal" else labels) != IGNORE_INDEX).sum(1)


def check_labels(dataset: Any, collator: Collator, model: nn.Module, argument: str, rows: Sequence[int]) -> None:
    """Collate some rows and see that they can be told apart and that at least one has a labelled token.

    Raises:
        ValueError: naming the argument, if not.
    """
    kind, total = loss_kind(model), 0
    for start in range(0, len(rows), 16):
        chunk = rows[start : start + 16]
        batch = collator(fetch_rows(dataset, chunk))
        check_batch(batch, len(chunk), f"`{argument}`")
        total += int(labelled_tokens(batch, kind).sum())
    if total == 0:
        raise ValueError(
            f"No labelled token in {len(rows)} rows of `{argument}`: every label is {IGNORE_INDEX}, so there is no loss "
            "and no gradient. Check the prompt mask and the truncation length."
        )


def check_inputs(model: nn.Module, pool: Any, targets: Any, config: GISTConfig, collator: Collator) -> None:
    """Everything that can be known to be wrong before any work starts.

    Raises:
        ValueError: naming the argument, its value and what to do.
    """
    check_dataset(pool, "train_dataset")
    check_dataset(targets, "target_dataset")
    rows_in_budget(config.budget, config.budget_unit, len(pool))
    tracked = find_tracked(model)
    check_dtype(model, config.scoring_dtype)
    check_labels(targets, collator, model, "target_dataset", range(len(targets)))
    generator = torch.Generator().manual_seed(config.seed)
    check_labels(
        pool,
        collator,
        model,
        "train_dataset",
        torch.randperm(len(pool), generator=generator)[:ROWS_LOOKED_AT].tolist(),
    )
    for dataset, argument in ((targets, "target_dataset"), (pool, "train_dataset")):
        _try_longest(model, dataset, collator, tracked, argument)


def _try_longest(
    model: nn.Module, dataset: Any, collator: Collator, tracked: Sequence[TrackedModule], argument: str
) -> None:
    """One backward on the two longest rows: what cannot work should fail now, not after the warm-up.

    Raises:
        ValueError: naming the argument.
    """
    lengths = row_lengths(dataset) or [0] * len(dataset)
    rows = sorted(range(len(dataset)), key=lambda i: -lengths[i])[:2]
    batch = to_device(collator(fetch_rows(dataset, rows)), model_device(model))
    if not labelled_tokens(batch, loss_kind(model)).any():
        return
    try:
        with scoring_mode(model):
            per_sample_backward(model, batch, tracked, lambda name, gradient: None)
    except IndexError as error:
        raise ValueError(
            f"The longest row of `{argument}` has {max(lengths)} tokens, and the model fails on it ({error}). Cut rows to "
            "the model's number of positions."
        ) from error


def _fingerprint(dataset: Any) -> dict[str, Any]:
    return {"rows": len(dataset), "fingerprint": getattr(dataset, "_fingerprint", None)}


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the allocator on a GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _manifest(model: nn.Module, pool: Any, targets: Any, config: GISTConfig, watch: Stopwatch) -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "hf_gist": __version__,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "model": model_identity(model) | {"trainable_parameters": trainable},
        "train_dataset": _fingerprint(pool),
        "target_dataset": _fingerprint(targets),
        "seed": config.seed,
        "processes": PartialState().num_processes,
        "seconds": watch.seconds,
        "peak_memory_bytes": peak_memory_bytes(next(model.parameters()).device),
    }


def _warn_unscorable(measurements: Measurements) -> None:
    unlabelled = int((measurements.label_tokens == 0).sum())
    bad = int((~measurements.scorable).sum()) - unlabelled
    if unlabelled or bad:
        warnings.warn(
            f"{unlabelled} candidate rows have no labelled token and {bad} have a gradient that is not finite; they "
            "are left out of the selection and counted in the manifest.",
            UnscorableRowsWarning,
            stacklevel=3,
        )


def measure(
    run: Pass, pool: Any, targets: Any, watch: Stopwatch, columns: dict[str, list[Any]], sources: list[str] | None
) -> Measurements:
    """Target gradients, their spectrum, and every candidate's coordinates.

    Args:
        run (`Pass`): model, collator and batching.
        pool: tokenised candidates, `N` rows.
        targets: tokenised targets, `M` rows.
        watch (`Stopwatch`): gets the seconds of each phase.
        columns (`dict[str, list]`): columns of the targets to group by later.
        sources (`list[str]`, *optional*): the source of each candidate.

    Raises:
        ValueError: if no target has a usable gradient.
    """
    gradients, facts = collect_gradients(run, targets, "target gradients")
    usable = (facts.label_tokens > 0) & torch.isfinite(facts.norms)
    if not usable.any():
        raise ValueError("No row of `target_dataset` has a labelled token and a finite gradient.")
    rows = usable.nonzero().flatten()
    watch.lap("target_gradients")
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for name in gradients:
        gradients[name] = gradients[name][rows.to(gradients[name].device)]
        wide = gradients[name].double()
        gram += (wide @ wide.T).cpu()
    singular, u = spectrum(gram)
    basis = {name: basis_slice(gradients.pop(name), singular, u) for name in list(gradients)}
    watch.lap("subspace")
    coordinates, facts = collect_coordinates(run, pool, basis, "scoring candidates")
    watch.lap("scoring")
    measurements = Measurements(
        coordinates=coordinates,
        norms=facts.norms,
        label_tokens=facts.label_tokens,
        singular_values=singular,
        target_coordinates=target_coordinates(singular, u),
        target_columns={name: [values[i] for i in rows.tolist()] for name, values in columns.items()},
        sources=sources,
    )
    _warn_unscorable(measurements)
    return measurements


def measure_and_choose(
    run: Pass, pool: Any, targets: Any, config: GISTConfig, columns: dict[str, list[Any]], sources: list[str] | None
) -> Selection:
    """[`measure`], then [`Selection.choose`], with a manifest. The inputs are taken as checked."""
    watch = Stopwatch()
    measurements = measure(run, pool, targets, watch, columns, sources)
    selection = Selection.choose(measurements, config, {})
    watch.lap("selection")
    return dataclasses.replace(selection, manifest=_manifest(run.model, pool, targets, config, watch))


def prepare(
    model: nn.Module, candidates: Any, targets: Any, config: GISTConfig, collator: Collator
) -> tuple[Any, Any, dict[str, list[Any]], list[str] | None]:
    """Check what [`select`] is given, and take from it what scoring needs.

    Returns:
        `tuple`: pool and targets cut to the model's columns, the columns of the targets to group by, and the source of
        each candidate if there is a `source_column`.

    Raises:
        ValueError: see [`select`].
    """
    check_dataset(candidates, "candidates")
    check_dataset(targets, "targets")
    sources = None
    if config.source_column is not None:
        sources = [str(value) for value in read_column(candidates, config.source_column, "source_column")]
    columns = group_columns(targets, config)
    accepted = signature_columns(model)
    pool, targets = keep_columns(candidates, accepted), keep_columns(targets, accepted)
    check_inputs(model, pool, targets, config, collator)
    return pool, targets, columns, sources


def select(
    model: nn.Module,
    candidates: Any,
    targets: Any,
    config: GISTConfig | None = None,
    *,
    data_collator: Collator,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> Selection:
    """Select the candidates whose LoRA gradients align best with those of the targets (paper GIST).

    The adapter should have seen a short warm-up first: with LoRA's `B` at zero only half of its gradients say anything.

    Args:
        model (`PeftModel`): a model with trainable LoRA layers; it is left as it was.
        candidates: the pool, `N` tokenised rows (a `datasets.Dataset` or any sized dataset of dicts).
        targets: `M` tokenised rows that stand for what the model should become good at.
        config (`GISTConfig`, *optional*): what to select and how.
        data_collator (`Callable`): rows to a padded batch with `labels`, the one used for training.
        output_dir (`str` or `Path`, *optional*): where to write the artifacts.
        progress (`bool`, defaults to `True`): show progress bars.

    Returns:
        `Selection`: the selected rows, scores and measurements.

    Raises:
        ValueError: for inputs that cannot be selected from, before any gradient is taken.
    """
    config = config or GISTConfig()
    pool, targets, columns, sources = prepare(model, candidates, targets, config, data_collator)
    run = Pass(model, data_collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress)
    selection = measure_and_choose(run, pool, targets, config, columns, sources)
    if output_dir is not None and PartialState().is_main_process:
        selection.save(output_dir)
    return selection
