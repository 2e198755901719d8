"""Adds the source of each training sample to the batch."""

from typing import Any

import torch


class SourceCollator:
    """A data collator that adds a text column as an integer tensor to the batches of another collator.

    Args:
        collator: the collator for all other columns.
        column (`str`): the text column.
        names (`list[str]`): the values of the column; the batch contains their indices.
        key (`str`): name of the tensor `[B]` in the batch.
    """

    def __init__(self, collator: Any, column: str, names: list[str], key: str) -> None:
        self.collator = collator
        self.column = column
        self.key = key
        self.index = {name: index for index, name in enumerate(names)}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sources = [self.index.get(str(row.get(self.column))) for row in rows]
        batch = self.collator([{k: v for k, v in row.items() if k != self.column} for row in rows])
        # GIST also collates its targets with this collator; rows of another dataset do not count in the report.
        if None not in sources:
            batch[self.key] = torch.tensor(sources)
        return batch
