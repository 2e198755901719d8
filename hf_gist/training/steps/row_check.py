"""Checks that only selected rows reach the model."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_gist.data.rows import Collator, fetch_rows
from hf_gist.errors import SelectionNotVerifiedWarning


class RowCheck:
    """Checks that the first step after each swap trains only on the expected rows.

    Args:
        model (`nn.Module`): the model in training.
        batches (`int`): batches of an optimizer step.
        pool: the train dataset.
        collator (`Collator`): the collator of the train dataloader.
    """

    def __init__(self, model: torch.nn.Module, batches: int, pool: Any, collator: Collator) -> None:
        self.model = model
        self.batches = batches
        self.pool = pool
        self.collator = collator
        self.done = False
        self._recorder: RowRecorder | None = None

    def renew(self) -> None:
        """Check the next step that is recorded: the rows of the selection have changed."""
        self.done = False

    def watch(self) -> None:
        """Start recording the rows of the current step, unless the check is already done."""
        if not self.done and self._recorder is None:
            self._recorder = RowRecorder(self.model, self.batches)

    def verify(self, expected: Sequence[int]) -> None:
        """Compare the recorded rows, if any, with the expected rows of the step.

        Args:
            expected (`Sequence[int]`): row numbers of the step, over all processes.

        Raises:
            RuntimeError: if other rows reached the model.
        """
        if self._recorder is None:
            return
        seen = self._recorder.rows
        self.close()
        self.done = True
        allowed = rows_as_collated(fetch_rows(self.pool, expected), self.collator) if seen else None
        if allowed is None:
            warnings.warn(
                "Could not check that only selected rows are trained on: the model has no `input_ids`, or the "
                "collator returns different tokens each time.",
                SelectionNotVerifiedWarning,
                stacklevel=4,
            )
            return
        strangers = sum(not is_one_of(row, allowed) for row in seen)
        if strangers:
            raise RuntimeError(
                f"{strangers} of {len(seen)} rows of the first step after the swap were not selected: something "
                "replaced the order of the train dataloader. Remove other callbacks or subclasses that change it."
            )

    def close(self) -> None:
        """Stop recording."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None


class RowRecorder:
    """Records the token rows that reach the model during one optimizer step.

    Args:
        model (`nn.Module`): the model whose forward receives `input_ids`.
        batches (`int`): batches of a step; the hook removes itself after them, also if an error ends the step.
    """

    def __init__(self, model: torch.nn.Module, batches: int) -> None:
        self.rows: list[tuple[int, ...]] = []
        self._left = batches
        self._handle = model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        # the reference model of a preference trainer may be the same module
        trained = module.training and torch.is_grad_enabled()
        if trained and isinstance(kwargs.get("input_ids"), torch.Tensor):
            self.rows += token_rows(kwargs)
            self._left -= 1
            if not self._left:
                self.close()

    def close(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def token_rows(batch: dict) -> list[tuple[int, ...]]:
    """The rows of a batch as tuples of token ids without padding."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != ids.shape:
        return [tuple(row) for row in ids.tolist()]
    return [tuple(row[keep.bool()].tolist()) for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]


def is_one_of(row: tuple[int, ...], allowed: set[tuple[int, ...]]) -> bool:
    """Whether a token row is in `allowed`, also with padding that is not in an attention mask."""
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
    """The token rows of collated dataset rows; `None` if collating twice gives different tokens (random masking)."""
    first = [token_rows(collator([dict(row)])) for row in rows]
    second = [token_rows(collator([dict(row)])) for row in rows[:8]]
    return {tokens for row in first for tokens in row} if first[: len(second)] == second else None
