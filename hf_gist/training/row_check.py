"""The proof that only selected rows reach the model."""

from collections.abc import Callable, Sequence

import torch


class RowCheck:
    """Watches the token rows that reach the model during one optimizer step.

    Args:
        model (`nn.Module`): the model whose forward receives `input_ids`.
        batches (`int`): batches of a step; behind them it goes by itself, should an error have ended the step.
    """

    def __init__(self, model: torch.nn.Module, batches: int) -> None:
        self.rows: list[tuple[int, ...]] = []
        self._left = batches
        self._handle = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training and isinstance(kwargs.get("input_ids"), torch.Tensor):
            self.rows += token_rows(kwargs)
            self._left -= 1
            if not self._left:
                self.close()

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()


def token_rows(batch: dict) -> list[tuple[int, ...]]:
    """The rows of a batch as tuples of token ids without padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is None or mask.shape != ids.shape:
        return [tuple(row) for row in ids.tolist()]
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]


def is_one_of(row: tuple[int, ...], allowed: set[tuple[int, ...]]) -> bool:
    """Whether a token row is one of `allowed`, or one of them with padding that no attention mask told of."""
    if row in allowed:
        return True
    return any(
        len(known) < len(row)
        and (
            (row[: len(known)] == known and len(set(row[len(known) :])) == 1)
            or (row[-len(known) :] == known and len(set(row[: -len(known)])) == 1)
        )
        for known in allowed
    )


def rows_as_collated(rows: Sequence[dict], collator: Callable) -> set[tuple[int, ...]] | None:
    """The token rows a collator makes of dataset rows; `None` if it makes others the second time (random masking)."""
    first = [token_rows(collator([dict(row)]))[0] for row in rows]
    second = [token_rows(collator([dict(row)]))[0] for row in rows[:8]]
    return set(first) if first[: len(second)] == second else None
