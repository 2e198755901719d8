"""Collective operations: sums, and errors that are raised on all processes."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor


@contextmanager
def together() -> Iterator[None]:
    """Raise an error of one process on all processes, so that none waits forever.

    Raises:
        RuntimeError: on the processes that did not fail themselves, with the errors of the failed processes.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    state = PartialState()
    if state.num_processes > 1:
        reports = gather_object([f"{type(failure).__name__}: {failure}" if failure else ""])
        others = [f"process {rank} failed: {text}" for rank, text in enumerate(reports) if text]
        if others and failure is None:
            raise RuntimeError("; ".join(others))
    if failure is not None:
        raise failure


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place; each row is non-zero on only one rank, so the sum is exact."""
    state = PartialState()
    if state.num_processes > 1:
        values.copy_(reduce(values.to(state.device), "sum"))
    return values
