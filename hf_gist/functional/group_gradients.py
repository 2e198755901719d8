"""Per-sample gradients of the parameters of one group: one operation for all of them instead of one for each."""

from collections.abc import Iterable

import torch
from torch import Tensor

from hf_gist.functional.sample_gradients import DenseGradient, SampleGradient


class SupportGradient(dict[str, Tensor]):
    """The support gradient: parameter name to gradient, in the parameter's shape."""

    def __init__(self, gradients: dict[str, Tensor] | None = None) -> None:
        super().__init__(gradients or {})
        self._flat: dict[tuple[str, ...], Tensor] = {}

    def flat(self, names: Iterable[str]) -> Tensor:
        """The gradients of some parameters side by side, `[D]` in fp32; they are joined once."""
        key = tuple(names)
        if key not in self._flat:
            self._flat[key] = torch.cat([self[name].flatten() for name in key]).float()
        return self._flat[key]

    def add_flat(self, shapes: dict[str, torch.Size], flat: Tensor) -> None:
        """Add the gradients of the parameters with these shapes, given side by side, `[D]`; views of it are kept."""
        parts = flat.split([shape.numel() for shape in shapes.values()])
        self.update({name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)})
        self._flat[tuple(shapes)] = flat

    def join(self, other: "SupportGradient") -> None:
        """Add the gradients of other parameters."""
        self.update(other)
        self._flat |= other._flat


class GroupGradients:
    """The per-sample gradients of one group in one backward pass.

    Dense gradients are computed into one buffer `[B, D]`, side by side in the order in which they are added. Those that
    are smaller as factors, or have another dtype than the buffer, are kept by parameter.

    Args:
        width (`int`): `D`, the number of values of all parameters of the group.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.shapes: dict[str, torch.Size] = {}
        self.others: dict[str, SampleGradient] = {}
        self._buffer: Tensor | None = None
        self._used = 0

    def __contains__(self, name: str) -> bool:
        return name in self.shapes or name in self.others

    def names(self) -> list[str]:
        """The parameters that were added."""
        return [*self.shapes, *self.others]

    def add(self, name: str, gradient: SampleGradient, shape: torch.Size) -> None:
        """Add the gradients of a parameter of this shape."""
        like = gradient.like
        if self._buffer is None and not gradient.prefers_factors:
            self._buffer = like.new_empty(len(like), self.width)
        if gradient.prefers_factors or self._buffer is None:
            self.others[name] = gradient
        elif self._buffer.dtype != like.dtype:
            self.others[name] = gradient.dense()
        else:
            end = self._used + shape.numel()
            gradient.write(self._buffer[:, self._used : end].view(len(like), *shape))
            self.shapes[name] = shape
            self._used = end

    def rows(self, rows: slice) -> "GroupGradients":
        """Those of some samples, as views."""
        part = GroupGradients(self.width)
        part.shapes = self.shapes
        part.others = {name: gradient.rows(rows) for name, gradient in self.others.items()}
        part._buffer = None if self._buffer is None else self._buffer[rows]
        part._used = self._used
        return part

    def _dense(self) -> list[DenseGradient]:
        """The buffer as the gradients of one parameter, if there is any."""
        return [] if self._buffer is None else [DenseGradient(self._buffer[:, : self._used])]

    def dot(self, support: SupportGradient) -> Tensor:
        """`<G_b, s>` `[B]` in fp32."""
        dots = [dense.dot(support.flat(self.shapes)) for dense in self._dense()]
        dots += [gradient.dot(support[name]) for name, gradient in self.others.items()]
        return _total(dots)

    def squares(self) -> Tensor:
        """`‖G_b‖²` `[B]` in fp32."""
        return _total([gradient.squares() for gradient in [*self._dense(), *self.others.values()]])

    def overlaps(self) -> Tensor:
        """`<G_b, G_c>` `[B, B]` in fp32."""
        return _total([gradient.overlaps() for gradient in [*self._dense(), *self.others.values()]])

    def square_of(self, support: SupportGradient) -> Tensor:
        """`‖s‖²` over the parameters of the group, a scalar in fp32."""
        parts = [support.flat(self.shapes).float()] if self.shapes else []
        parts += [support[name].flatten().float() for name in self.others]
        return _total([torch.dot(part, part) for part in parts])

    def weighted_sum(self, scales: Tensor) -> SupportGradient:
        """Parameter name to `Σ_b scales_b G_b`, in the parameter's shape."""
        sums = SupportGradient()
        for dense in self._dense():
            sums.add_flat(self.shapes, dense.weighted_sum(scales))
        sums.update({name: gradient.weighted_sum(scales) for name, gradient in self.others.items()})
        return sums

    def add_sum_to(self, support: SupportGradient) -> None:
        """Add `Σ_b G_b` of every parameter to a support gradient, in fp32."""
        if self._buffer is not None:
            support.add_flat(self.shapes, self._buffer[:, : self._used].sum(0, dtype=torch.float32))
        for name, gradient in self.others.items():
            ones = gradient.like.new_ones(len(gradient.like))
            support[name] = gradient.weighted_sum(ones).float()


class JoinedGradients:
    """The per-sample gradients of several groups as those of one, in one buffer for each of them.

    Args:
        parts (`dict[str, GroupGradients]`): by a name, for [`add`].
    """

    def __init__(self, parts: dict[str, GroupGradients]) -> None:
        self._by_name = parts

    @property
    def parts(self) -> list[GroupGradients]:
        """The groups with a gradient."""
        return [part for part in self._by_name.values() if part.names()]

    def __contains__(self, name: str) -> bool:
        return any(name in part for part in self._by_name.values())

    def names(self) -> list[str]:
        """The parameters that were added."""
        return [name for part in self.parts for name in part.names()]

    def add(self, part: str, name: str, gradient: SampleGradient, shape: torch.Size) -> None:
        """Add the gradients of a parameter of this shape to the group `part`."""
        self._by_name[part].add(name, gradient, shape)

    def rows(self, rows: slice) -> "JoinedGradients":
        """Those of some samples, as views."""
        return JoinedGradients({name: part.rows(rows) for name, part in self._by_name.items() if part.names()})

    def dot(self, support: SupportGradient) -> Tensor:
        """`<G_b, s>` `[B]` in fp32."""
        return _total([part.dot(support) for part in self.parts])

    def squares(self) -> Tensor:
        """`‖G_b‖²` `[B]` in fp32."""
        return _total([part.squares() for part in self.parts])

    def overlaps(self) -> Tensor:
        """`<G_b, G_c>` `[B, B]` in fp32."""
        return _total([part.overlaps() for part in self.parts])

    def square_of(self, support: SupportGradient) -> Tensor:
        """`‖s‖²` over the parameters of the groups, a scalar in fp32."""
        return _total([part.square_of(support) for part in self.parts])

    def weighted_sum(self, scales: Tensor) -> SupportGradient:
        """Parameter name to `Σ_b scales_b G_b`, in the parameter's shape."""
        sums = SupportGradient()
        for part in self.parts:
            sums.join(part.weighted_sum(scales))
        return sums

    def add_sum_to(self, support: SupportGradient) -> None:
        """Add `Σ_b G_b` of every parameter to a support gradient, in fp32."""
        for part in self.parts:
            part.add_sum_to(support)


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
