"""Results of scoring: everything needed to choose a selection without the model."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_gist.functional.subspace import spectrum, target_coordinates


def first_of_each(rows: Tensor, group: Tensor) -> Tensor:
    """The rows without those that have an earlier one in their group.

    Args:
        rows (`Tensor`): `[N]` bool.
        group (`Tensor`): group of each row `[N]`, values in `[0, N)`.
    """
    numbers = torch.arange(len(rows))
    first = torch.full((len(rows),), len(rows)).scatter_reduce_(0, group[rows].long(), numbers[rows], "amin")
    return rows & (first[group.long()] == numbers)


@dataclass(frozen=True)
class Measurements:
    """Results of scoring, from which any selection can be chosen without running the model again.

    Args:
        coordinates (`Tensor`): candidates in the full-rank basis `[N, q]` float32.
        norms (`Tensor`): candidate gradient norms `[N]` float32.
        label_tokens (`Tensor`): labelled tokens `[N]` int64.
        singular_values (`Tensor`): of the target gradients `[q]` float64, descending.
        target_coordinates (`Tensor`): `[M, q]` float32.
        target_label_tokens (`Tensor`): `[M]` int64.
        scored (`Tensor`, *optional*): `[N]` bool, the rows that were scored; by default all.
        leaked (`Tensor`, *optional*): `[N]` bool, the rows that are also in the target or evaluation set; by default
            none.
        copy_of (`Tensor`, *optional*): `[N]` int32, the first row of the pool with the same words; by default each row
            is its own.
        target_columns (`dict[str, list]`): the scalar columns of the target rows, to group by.
        target_rows (`list[int]`, *optional*): row numbers `[M]` in the target set, without unusable rows; by default
            all rows in order.
        sources (`list[str]`, *optional*): the source of each candidate.
    """

    coordinates: Tensor
    norms: Tensor
    label_tokens: Tensor
    singular_values: Tensor
    target_coordinates: Tensor
    target_label_tokens: Tensor
    scored: Tensor | None = None
    leaked: Tensor | None = None
    copy_of: Tensor | None = None
    target_columns: dict[str, list[Any]] = field(default_factory=dict)
    target_rows: list[int] | None = None
    sources: list[str] | None = None

    def check_shapes(self) -> None:
        """Check that all tensors have matching shapes.

        Raises:
            ValueError: naming the shapes.
        """
        rows, rank = self.coordinates.shape
        expected: dict[str, tuple[int, ...]] = {"norms": (rows,), "label_tokens": (rows,), "singular_values": (rank,)}
        expected |= {"target_coordinates": (len(self.target_label_tokens), rank)}
        expected |= {name: (rows,) for name in ("scored", "leaked", "copy_of") if getattr(self, name) is not None}
        wrong = [name for name, shape in expected.items() if tuple(getattr(self, name).shape) != shape]
        if len(self.target_numbers) != len(self.target_coordinates):
            wrong.append("target_rows")
        if wrong or not self.coordinates.is_floating_point():
            raise ValueError(f"{', '.join(wrong) or 'coordinates'}: size or type does not match the other tensors")

    @property
    def looked_at(self) -> Tensor:
        """`[N]` bool: the rows that were scored, whether they have a usable gradient or not."""
        return torch.ones(len(self.norms), dtype=torch.bool) if self.scored is None else self.scored

    @property
    def scorable(self) -> Tensor:
        """`[N]` bool: rows that were scored, with a labelled token and a finite gradient."""
        finite = torch.isfinite(self.norms) & torch.isfinite(self.coordinates).all(1)
        return (self.label_tokens > 0) & finite & self.looked_at

    @property
    def target_numbers(self) -> list[int]:
        """The number of each target row in the target set."""
        return list(range(len(self.target_coordinates))) if self.target_rows is None else self.target_rows

    def eligible(self, drop_leaked: bool, drop_copies: bool) -> Tensor:
        """`[N]` bool: the rows that may be selected.

        Args:
            drop_leaked (`bool`): without target and evaluation rows.
            drop_copies (`bool`): of several rows with the same words, only the first that may be selected.
        """
        rows = self.scorable & ~self.leaked if drop_leaked and self.leaked is not None else self.scorable
        return first_of_each(rows, self.copy_of) if drop_copies and self.copy_of is not None else rows

    @property
    def not_finite(self) -> list[int]:
        """Rows whose gradient has NaN or Inf."""
        return (~(torch.isfinite(self.norms) & torch.isfinite(self.coordinates).all(1))).nonzero().flatten().tolist()

    def for_targets(self, column: str, value: str) -> "Measurements":
        """The measurements that scoring with only some of the target rows would give, without scoring again.

        The basis of all targets spans their gradients, so their own subspace is computed by rotating the coordinates.

        Args:
            column (`str`): a column of the target set.
            value (`str`): the value of that column in the target rows to keep.

        Raises:
            ValueError: if the column does not exist, or does not contain the value.
        """
        groups, names = self.groups(column)
        if value not in names:
            raise ValueError(f"`target_value={value!r}` is not in the column {column!r}. Values: {', '.join(names)}.")
        rows = [row for row, group in enumerate(groups) if names[group] == value]
        kept = self.target_coordinates[rows].double()
        singular = self.singular_values
        u = torch.zeros(len(rows), 0)
        if len(singular):
            singular, u = spectrum(kept @ kept.T)
        return dataclasses.replace(
            self,
            coordinates=(self.coordinates.double() @ (kept.T @ (u / singular))).float(),
            singular_values=singular,
            target_coordinates=target_coordinates(singular, u),
            target_label_tokens=self.target_label_tokens[rows],
            target_columns={name: [values[i] for i in rows] for name, values in self.target_columns.items()},
            target_rows=[self.target_numbers[i] for i in rows],
        )

    def expand_to_pool(self, rows: list[int], label_tokens: Tensor) -> "Measurements":
        """Expand the measurements of some rows to the whole pool, with the other rows marked as not scored.

        Args:
            rows (`list[int]`): row numbers in the pool of the measured rows.
            label_tokens (`Tensor`): labelled tokens of the whole pool `[N]`.
        """
        size = len(label_tokens)
        index = torch.tensor(rows)
        return dataclasses.replace(
            self,
            coordinates=torch.zeros(size, self.coordinates.shape[1]).index_copy(0, index, self.coordinates),
            norms=torch.zeros(size).index_copy(0, index, self.norms),
            label_tokens=label_tokens,
            scored=torch.zeros(size, dtype=torch.bool).index_fill(0, index, True),
        )

    def groups(self, column: str | None) -> tuple[list[int], list[str]]:
        """The group index of each target row and the groups' names; without a column every row is its own group.

        Raises:
            ValueError: if the target rows do not have the column.
        """
        if column is None:
            return list(range(len(self.target_coordinates))), [str(number) for number in self.target_numbers]
        if column not in self.target_columns:
            known = ", ".join(self.target_columns) or "none"
            raise ValueError(f"`target_group_column={column!r}` is not a column of the target set. Columns: {known}.")
        values = [str(value) for value in self.target_columns[column]]
        names = sorted(set(values))
        return [names.index(value) for value in values], names
