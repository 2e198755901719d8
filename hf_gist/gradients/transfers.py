"""Copies between host and device that the host does not wait for, so that the device never waits for the host."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor


T = TypeVar("T")


class HostCopy:
    """A copy to the host, queued behind the computation of the values.

    Args:
        values (`Tensor`): on any device; not changed afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._copied: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.current_stream(values.device).record_event()

    def wait(self) -> Tensor:
        """The values on the host, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.cpu()


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """The items, each after the next one has been made: results of a batch are read while the next one is computed.

    If making the next item fails, the last one is still returned before the error is raised.
    """
    waiting: list[T] = []
    try:
        for item in items:
            yield from waiting
            waiting = [item]
    except (Exception, KeyboardInterrupt):
        yield from waiting
        raise
    yield from waiting


class BasisSlices:
    """The slices of a basis on the device of the model.

    Args:
        basis (`dict[str, Tensor]`): part to its slice `[q, n]`, on the device or in pinned host memory.
        device (`torch.device`): of the model.
    """

    def __init__(self, basis: dict[str, Tensor], device: torch.device) -> None:
        self._device = device
        self._slices = {name: values.T for name, values in basis.items()}
        self._ahead: _CopiedAhead | None = None
        if device.type == "cuda" and any(values.device.type == "cpu" for values in basis.values()):
            self._ahead = _CopiedAhead(self._slices, device)

    def __call__(self, name: str) -> Tensor:
        """The slice of a part `[n, q]`, valid until the next call."""
        return self._slices[name].to(self._device) if self._ahead is None else self._ahead(name)


class _CopiedAhead:
    """Copies of tensors in host memory, each made on a stream of its own while the one before it is used.

    The order is that of the last time. Two buffers take turns: the host queues work long before the GPU does it, so
    allocating memory for every copy would end with all of them on the GPU.

    Args:
        sources (`dict[str, Tensor]`): by name, in pinned memory.
        device (`torch.device`): of the copies.
    """

    def __init__(self, sources: dict[str, Tensor], device: torch.device) -> None:
        self._sources = sources
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        largest = max(source.numel() for source in sources.values())
        self._buffers = [torch.empty(largest, device=device) for _ in range(2)]
        for buffer in self._buffers:
            # a copy that nothing waits for may still be running when the memory is returned
            buffer.record_stream(self._stream)
        self._read: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0
        self._following: dict[str, str] = {}
        self._used: tuple[str, int] | None = None
        self._made: tuple[str, int, Tensor, torch.cuda.Event] | None = None

    def _copy(self, name: str) -> tuple[str, int, Tensor, torch.cuda.Event]:
        slot = self._turn
        self._turn = 1 - slot
        source = self._sources[name]
        copied = self._buffers[slot].as_strided(source.shape, source.stride())
        read = self._read[slot]
        if read is not None:
            self._stream.wait_event(read)
        with torch.cuda.stream(self._stream):
            copied.copy_(source, non_blocking=True)
        return name, slot, copied, self._stream.record_event()

    def __call__(self, name: str) -> Tensor:
        """The copy with this name, valid until the next call."""
        current = torch.cuda.current_stream(self._device)
        if self._used is not None:
            before, slot = self._used
            self._read[slot] = current.record_event()
            self._following[before] = name
        made = self._made if self._made is not None and self._made[0] == name else self._copy(name)
        current.wait_event(made[3])
        self._used = name, made[1]
        following = self._following.get(name)
        self._made = None if following is None else self._copy(following)
        return made[2]
