"""Forecast of the memory and time that a selection needs, before it starts."""

import os
import sys
from dataclasses import asdict, dataclass
from typing import Any, cast

import psutil
import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.accounting import Sizes, expected_seconds
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import in_units
from hf_gist.costs.stopwatch import SCORING, TARGETS, Stopwatch
from hf_gist.data.rows import row_lengths
from hf_gist.gist.scorers.base import ModelVectors
from hf_gist.gist.scorers.table import scorer_of, vectors_per_checkpoint
from hf_gist.gradients.models import model_device, unwrapped
from hf_gist.gradients.passes import DatasetPass
from hf_gist.utils.guides import guide
from hf_gist.utils.terminal import wrapped


SHARE_TO_USE = 0.9
"""Usable share of the free memory: allocators and other programs need the rest."""

FP32 = 4

MILLION = 1_000_000

SUGGESTED_SKETCH = 8192


@dataclass(frozen=True)
class MemoryPlan:
    """Forecast memory use in bytes, and where the basis is stored.

    Args:
        values (`int`): values per row, `D`: the size of the gradient, or of its sketch.
        targets (`int`): target rows, the maximum rank of the basis.
        basis (`int`): the basis, `D` by the number of targets, with the extra memory needed to compute it.
        coordinates (`int`): coordinates, norms and token counts of all candidates, in host memory.
        activations (`int`): estimate for one scoring batch.
        device_free (`int`): free memory of the model's device.
        host_free (`int`): free memory of the host, for this process.
        placement (`str`): `"device"`, or `"host"`, from which the basis is copied one matrix at a time.
        device (`str`): type of the model's device; on `"cpu"`, device and host are the same memory.
    """

    values: int
    targets: int
    basis: int
    coordinates: int
    activations: int
    device_free: int
    host_free: int
    placement: str
    device: str

    def describe(self) -> str:
        """One line for the user."""
        values = f"{self.values:,}" if self.values < MILLION else f"{self.values / MILLION:,.1f} million"
        place = ""
        free = in_units(self.host_free)
        if self.device != "cpu":
            place = f" on the {self.device if self.placement == 'device' else 'host'}"
            free = f"{in_units(self.device_free)} on the {self.device}, {free} on the host"
        return (
            f"memory: basis {in_units(self.basis)} ({values} values for each of {self.targets:,} targets){place}, coordinates "
            f"{in_units(self.coordinates)}, activations of a batch about {in_units(self.activations)}; free: {free}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def free_memory(device: torch.device) -> tuple[int, int]:
    """Free bytes of the device, and of the host for one of its processes."""
    host = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type != "cuda":
        return host, host
    # what PyTorch keeps for itself and does not use counts as free
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept, host


def activation_bytes(model: nn.Module, tokens: int) -> int:
    """Estimated bytes that a forward pass stores for the backward pass of a batch."""
    config = cast(PreTrainedModel, unwrapped(model)).config.get_text_config()
    hidden = getattr(config, "hidden_size", 0)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layers = getattr(config, "num_hidden_layers", 0)
    size = next(model.parameters()).element_size()
    return tokens * (layers * (12 * hidden + 4 * inner) * size + 3 * getattr(config, "vocab_size", 0) * FP32)


def plan_memory(vectors: ModelVectors, targets: int, rows: int, tokens_per_batch: int) -> MemoryPlan:
    """Decide whether the basis is stored on the device or the host.

    Args:
        vectors (`ModelVectors`): the row representation.
        targets (`int`): target rows.
        rows (`int`): candidates.
        tokens_per_batch (`int`): padded tokens of a scoring batch.

    Raises:
        ValueError: if it fits neither on the device nor on the host, naming settings that need less memory.
    """
    device = model_device(vectors.model)
    device_free, host_free = free_memory(device)
    values = sum(vectors.sizes.values())
    # the basis replaces the targets' gradients one parameter at a time, so only one parameter is in memory twice
    basis = FP32 * targets * (values + max(vectors.sizes.values()))
    coordinates = rows * (FP32 * targets + 3 * FP32 + 8)
    activations = activation_bytes(vectors.model, tokens_per_batch)
    room = {"device": SHARE_TO_USE * device_free - activations, "host": SHARE_TO_USE * host_free - coordinates}
    if device.type == "cpu":
        # device and host share memory
        room = {"device": room["host"] - activations}
    placement = next((place for place, size in room.items() if basis <= size), None)
    if placement is None:
        raise ValueError(
            f"The basis of {targets} targets takes {in_units(basis)}, but only {in_units(device_free)} are free on the "
            f"{device.type} and {in_units(host_free)} on the host. Set `sketch_dim={SUGGESTED_SKETCH}` (not exact) or "
            f"`score_layers`, or use fewer targets. See {guide('costs', 'memory-and-disk')}."
        )
    return MemoryPlan(values, targets, basis, coordinates, activations, device_free, host_free, placement, device.type)


def duration(seconds: float) -> str:
    """A readable duration."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = seconds / 60
    return f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def announce(dataset_pass: DatasetPass, text: str) -> None:
    """Print a line to stderr on the main process, unless progress is off."""
    if dataset_pass.progress and PartialState().is_main_process:
        # stdout is reserved for results
        tqdm.write(wrapped(text), file=sys.stderr)


def forecast_memory(
    dataset_pass: DatasetPass, rows: int, targets: int, config: GISTConfig, announced: bool = True
) -> MemoryPlan | None:
    """The memory that scoring will need; `None` for scorers without a large basis.

    Args:
        dataset_pass (`DatasetPass`): model and batching.
        rows (`int`): candidates.
        targets (`int`): target rows.
        config (`GISTConfig`): how they are scored.
        announced (`bool`): print it on the main process.

    Raises:
        ValueError: if the basis does not fit in memory.
    """
    if config.strategy in UNSCORED or not scorer_of(config).large_basis:
        return None
    plan = plan_memory(
        vectors_per_checkpoint(dataset_pass.model, config, ())[0].candidates,
        targets,
        rows,
        dataset_pass.tokens_per_batch,
    )
    if announced:
        announce(dataset_pass, plan.describe())
    return plan


def forecast_scoring(
    dataset_pass: DatasetPass, targets: Any, pool: Any, label_tokens: Tensor, config: GISTConfig, watch: Stopwatch
) -> None:
    """Forecast scoring time from the time the targets took; recorded in `watch` and printed by the main process.

    Args:
        dataset_pass (`DatasetPass`): model and batching.
        targets: tokenised target rows, already scored.
        pool: tokenised candidates, not yet scored.
        label_tokens (`Tensor`): labelled tokens of the usable targets `[M]`.
        config (`GISTConfig`): how they are scored.
        watch (`Stopwatch`): with the seconds of the targets.
    """
    wanted = row_lengths(targets)
    lengths = row_lengths(pool)
    if wanted is None or lengths is None:
        return
    labelled = int(label_tokens.sum())
    # assumes the same share of labelled tokens as in the targets: candidates are not collated yet
    share = labelled / max(1, int(wanted.sum()))
    done = Sizes(wanted, labelled)
    todo = Sizes(lengths, int(share * int(lengths.sum())))
    work = ModelWork.of(dataset_pass.model)
    forward_only = scorer_of(config).forward_only
    seconds = expected_seconds(work, config, done, todo, watch.seconds[TARGETS], forward_only)
    watch.forecasts[SCORING] = round(seconds, 1)
    announce(
        dataset_pass,
        f"scoring {len(lengths):,} rows of {int(lengths.sum()):,} tokens will take about {duration(seconds)}",
    )
