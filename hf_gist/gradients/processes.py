"""Work shared by several processes: sums, and errors that reach all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor


@contextmanager
def together() -> Iterator[None]:
    """Collective work: an error in one process is raised in all, so that none waits for ever.

    Raises:
        RuntimeError: on the processes that did not fail themselves, with the error of one that did.
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
    """Add up a tensor over all processes, in place; every row is non-zero on one rank only, so the sum is exact."""
    state = PartialState()
    if state.num_processes > 1:
        values.copy_(reduce(values.to(state.device), "sum"))
    return values
