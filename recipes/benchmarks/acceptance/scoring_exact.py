"""Correctness of scoring: per-sample gradients, scores, the basis in host memory, a batch that does not fit."""

import copy
import logging
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from acceptance.models import SMALL, Shape, pad, random_rows, tiny_model
from acceptance.record import Result, Steps, checked, release, skipped
from hf_gist import GISTConfig, per_sample_gradients_reference, select
from hf_gist.functional.subspace import basis_slice
from hf_gist.gradients.collect import collect_coordinates, collect_vectors
from hf_gist.gradients.passes import DatasetPass


TOKENS = 256
"""Tokens per batch of the small checks: several rows in a batch, several batches."""

Gradients = list[dict[str, Tensor]]


def library_gradients(model: nn.Module, rows: Any, scoring_dtype: str = "auto") -> Gradients:
    """Per-sample gradients from the batched backward pass, on the CPU."""
    dataset_pass = DatasetPass(model, pad, TOKENS, scoring_dtype, progress=False)
    vectors, _ = collect_vectors(dataset_pass, rows, "rows")
    return [{name: values[row].float().cpu() for name, values in vectors.items()} for row in range(len(rows))]


def reference_gradients(model: nn.Module, rows: Any, autocast: bool = False) -> Gradients:
    """Per-sample gradients from batches of one, in eval mode."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16) if autocast else nullcontext():
        found = per_sample_gradients_reference(model, rows, pad)
    return [{name: value.flatten() for name, value in row.items()} for row in found if row is not None]


def largest_error(found: Gradients, truth: Gradients) -> float:
    """Largest relative error `‖g - g'‖ / ‖g'‖` of a row's whole gradient."""
    errors = []
    for mine, own in zip(found, truth, strict=True):
        difference = torch.cat([mine[name] - own[name] for name in own])
        errors.append(difference.norm() / torch.cat(list(own.values())).norm())
    return float(max(errors))


def _fp32(device: str) -> Result:
    model = tiny_model(device)
    rows = random_rows(24, 6, 40, SMALL.vocabulary)
    error = largest_error(library_gradients(model, rows), reference_gradients(model, rows))
    return checked(error, 1e-5, "relative error, TF32 off")


def _bf16_autocast(device: str) -> Result:
    model = tiny_model(device)
    rows = random_rows(24, 6, 40, SMALL.vocabulary)
    truth = reference_gradients(model, rows)
    error = largest_error(library_gradients(model, rows, "bfloat16"), truth)
    own = largest_error(reference_gradients(model, rows, autocast=True), truth)
    return checked(error, 1.5 * own, "error against fp32; limit 1.5 times that of batches of one")


def _bf16_weights(device: str) -> Result:
    model = tiny_model(device)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    rows = random_rows(24, 6, 40, SMALL.vocabulary)
    truth = reference_gradients(copy.deepcopy(model).float(), rows)
    error = largest_error(library_gradients(model, rows), truth)
    own = largest_error(reference_gradients(model, rows), truth)
    return checked(error, 1.5 * own, "error against fp32; limit 1.5 times that of batches of one")


def _scores(device: str) -> list[Result]:
    pool = random_rows(120, 6, 40, SMALL.vocabulary)
    targets = random_rows(12, 6, 40, SMALL.vocabulary, seed=1)
    config = GISTConfig(budget=0.1, scoring_tokens_per_batch=TOKENS)
    found = {
        where: select(tiny_model(where), pool, targets, config, data_collator=pad, progress=False)
        for where in ("cpu", device)
    }
    difference = (torch.as_tensor(found[device].scores) - torch.as_tensor(found["cpu"].scores)).abs().max()
    differing = len(set(found[device].indices) ^ set(found["cpu"].indices))
    return [
        checked(float(difference), 1e-4, "largest difference of a score to the CPU's"),
        checked(differing, 0, "rows selected on one device only"),
    ]


def _pinned_basis(device: str) -> Result:
    model = tiny_model(device)
    rows = random_rows(24, 6, 40, SMALL.vocabulary)
    generator = torch.Generator().manual_seed(0)
    basis = {
        name: basis_slice(torch.randn(8, p.numel(), generator=generator), torch.ones(8), torch.eye(8).double())
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    dataset_pass = DatasetPass(model, pad, TOKENS, progress=False)
    places: dict[str, Callable[[Tensor], Tensor]] = {
        "device": lambda values: values.to(device),
        "host": lambda values: values.pin_memory() if device == "cuda" else values,
    }
    found = {
        place: collect_coordinates(dataset_pass, rows, {n: put(v) for n, v in basis.items()}, "rows").coordinates
        for place, put in places.items()
    }
    difference = (found["host"] - found["device"]).abs().max() / found["device"].abs().max()
    return checked(float(difference), 1e-6, "relative difference of coordinates, host to device")


class _Messages(logging.Handler):
    """Keeps the messages of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _limited_memory(limit: int):
    """While active, the process may allocate at most `limit` bytes on the device."""
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _split(device: str) -> Result:
    """A batch four times too large, under a limit of a little more than two quarters."""
    if device != "cuda":
        return skipped("the limit needs CUDA; tests/gradients/test_passes.py simulates it on a CPU")
    shape = Shape(512, 4, 8, 1408, 32000)
    model = tiny_model(device, shape=shape)
    rows = random_rows(32, 256, 256, shape.vocabulary)

    def norms(tokens: int) -> Tensor:
        vectors = DatasetPass(model, pad, tokens, progress=False)
        return collect_coordinates(vectors, rows, _no_basis(model), "rows").norms

    norms(2048)  # allocates what the libraries keep
    release()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    small = norms(2048)
    quarter = torch.cuda.max_memory_reserved() - before
    release()
    messages = _Messages()
    logger = logging.getLogger("hf_gist.gradients.passes")
    logger.addHandler(messages)
    try:
        with _limited_memory(before + int(2.6 * quarter)):
            split = norms(8192)
    finally:
        logger.removeHandler(messages)
    halved = sum("did not fit" in text for text in messages.texts)
    error = float(((split - small).abs() / small).max())
    result = checked(error, 1e-4, f"relative error of norms; {halved} batches were split")
    result.passed = bool(result.passed and halved > 0)
    return result


def _no_basis(model: nn.Module) -> dict[str, Tensor]:
    """A basis of one direction for every matrix."""
    return {n: torch.ones(1, p.numel(), device=p.device) for n, p in model.named_parameters() if p.requires_grad}


def steps(device: str) -> Steps:
    """The checks of scoring."""
    yield "per-sample gradients, fp32", lambda: _fp32(device)
    yield "per-sample gradients, bf16 autocast", lambda: _bf16_autocast(device)
    yield "per-sample gradients, bf16 weights", lambda: _bf16_weights(device)
    yield "scores", lambda: _scores(device)
    yield "basis in pinned host memory", lambda: _pinned_basis(device)
    yield "batch that does not fit is split", lambda: _split(device)
