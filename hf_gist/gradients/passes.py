"""Passes over a dataset outside the Trainer that compute each row's representation, distributed over all processes."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import release_memory
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_gist.data.batches import Batches, check_batch, plan_batches
from hf_gist.data.rows import Collator, fetch_rows, row_lengths
from hf_gist.gradients.models import is_sharded, model_device, to_device
from hf_gist.gradients.modes import checkpointed_blocks, checkpointing, compute_dtype_context, scoring_mode
from hf_gist.gradients.partial import Shards
from hf_gist.gradients.processes import sum_over_ranks, together
from hf_gist.gradients.vectors import Gradients, Vectors


logger = logging.get_logger(__name__)

NewSink = Callable[[list[int]], Gradients]
"""From the row indices of a batch to the callback that receives its vectors."""


@dataclass
class RowFacts:
    """Results of a pass over a dataset for each of its `N` rows.

    Args:
        losses (`Tensor`): mean token loss `[N]` float32.
        label_tokens (`Tensor`): labelled tokens `[N]` int64.
        norms (`Tensor`): norms of the rows' vectors `[N]` float32; NaN or Inf if a vector is not finite.
        coordinates (`Tensor`): in the basis of the pass `[N, q]` float32; `q` is 0 without a basis.
    """

    losses: Tensor
    label_tokens: Tensor
    norms: Tensor
    coordinates: Tensor

    @classmethod
    def empty(cls, size: int, rank: int = 0) -> "RowFacts":
        """Zeros for `size` rows."""
        return cls(torch.zeros(size), torch.zeros(size, dtype=torch.long), torch.zeros(size), torch.zeros(size, rank))


@dataclass(frozen=True)
class DatasetPass:
    """Settings of a pass over a dataset, shared by targets and candidates.

    Args:
        model (`nn.Module`): a peft model.
        collator (`Collator`): rows to a padded batch.
        tokens_per_batch (`int`): see [`plan_batches`].
        scoring_dtype (`str`): see [`GISTConfig`].
        progress (`bool`): show a progress bar on the main process.
        basis_device (`torch.device`, *optional*): where target vectors and basis are kept; by default the model's
            device.
    """

    model: nn.Module
    collator: Collator
    tokens_per_batch: int
    scoring_dtype: str = "auto"
    progress: bool = True
    basis_device: torch.device | None = None

    def scan(
        self,
        dataset: Any,
        what: str,
        vectors: Vectors,
        new_sink: NewSink,
        facts: RowFacts | None = None,
        shards: Shards | None = None,
    ) -> RowFacts:
        """One pass over this rank's share of the batches; returns the facts of all rows on every rank.

        Args:
            dataset: tokenised rows.
            what (`str`): name of the dataset for messages and the progress bar.
            vectors (`Vectors`): row representation.
            new_sink (`NewSink`): creates the callback that receives a batch's vectors.
            facts (`RowFacts`, *optional*): filled in and returned.
            shards (`Shards`, *optional*): saves finished batches to disk; batches saved by an earlier run are skipped.

        Raises:
            RuntimeError: if another process failed, with its error.
        """
        size = len(dataset)
        facts = facts or RowFacts.empty(size)
        tensors = vars(facts)
        plan = plan_batches(row_lengths(dataset), size, self.tokens_per_batch)
        if shards is not None:
            shards.restore(tensors)
        # a failed process cannot reach others that are blocked in a collective pass; the launcher terminates them
        with nullcontext() if is_sharded(self.model) else together():
            self._batches(dataset, what, vectors, new_sink, facts, plan, shards)
        for values in tensors.values():
            sum_over_ranks(values)
        return facts

    def _batches(
        self,
        dataset: Any,
        what: str,
        vectors: Vectors,
        new_sink: NewSink,
        facts: RowFacts,
        plan: Batches,
        shards: Shards | None,
    ) -> None:
        state = PartialState()
        done = shards.done if shards is not None else set()
        todo = [number for number in range(len(plan)) if number not in done]
        mine = todo[state.process_index :: state.num_processes]
        with scoring_mode(self.model), compute_dtype_context(self.scoring_dtype, model_device(self.model)):
            with self._step_bar(plan, what) as bar:
                bar.update(plan.work(done))
                for at, number in enumerate(mine):
                    self._batch(dataset, plan[number], what, vectors, new_sink, facts)
                    if shards is not None:
                        shards.add(number, plan[number], vars(facts))
                    bar.update(plan.work(todo[at * state.num_processes : (at + 1) * state.num_processes]))
                if is_sharded(self.model):
                    passes = math.ceil(len(todo) / state.num_processes) - len(mine)
                    self._run_padding_passes(dataset, vectors, passes)
        if shards is not None:
            shards.save(vars(facts))

    def _step_bar(self, plan: Batches, what: str) -> tqdm:
        hidden = not (self.progress and PartialState().is_main_process)
        tokens = plan.lengths is not None
        total = plan.work(range(len(plan)))
        return tqdm(total=total, desc=what, unit="tok" if tokens else "row", unit_scale=tokens, disable=hidden)

    def _run_padding_passes(self, dataset: Any, vectors: Vectors, passes: int) -> None:
        """Run passes and discard the results: a sharded model's passes are collective; others may run one more."""
        for _ in range(passes):
            batch = to_device(self.collator(fetch_rows(dataset, [0])), model_device(self.model))
            vectors(batch, lambda name, values: None)

    def _batch(
        self,
        dataset: Any,
        indices: list[int],
        what: str,
        vectors: Vectors,
        new_sink: NewSink,
        facts: RowFacts,
        checkpointed: bool = False,
    ) -> None:
        """One batch; if it does not fit into memory, its halves; for a single row, with activation checkpointing."""
        batch = self.collator(fetch_rows(dataset, indices))
        check_batch(batch, len(indices), what)
        smaller: list[list[int]] = []
        try:
            with checkpointing(self.model) if checkpointed else nullcontext():
                self._one(to_device(batch, model_device(self.model)), vectors, indices, facts, new_sink(indices))
        except RuntimeError as error:
            # collective passes would deadlock, because only this process would split its batch
            if not should_reduce_batch_size(error) or is_sharded(self.model):
                raise
            smaller = self._smaller(indices, what, checkpointed, error)
            # the traceback references the activations of the batch that did not fit
            error.__traceback__ = None
        if smaller:
            release_memory()
        for part in smaller:
            self._batch(dataset, part, what, vectors, new_sink, facts, checkpointed=len(smaller) == 1)

    def _smaller(self, indices: list[int], what: str, checkpointed: bool, error: RuntimeError) -> list[list[int]]:
        """The batches to retry after one did not fit: its halves, or a single row with checkpointing.

        Raises:
            RuntimeError: from `error`, if the batch cannot be made smaller.
        """
        if len(indices) > 1:
            middle = len(indices) // 2
            smaller = [indices[:middle], indices[middle:]]
            way = "retrying with its halves"
        elif not checkpointed and checkpointed_blocks(self.model):
            smaller = [indices]
            way = "retrying with activation checkpointing"
        else:
            raise RuntimeError(
                f"Row {indices[0]} of the {what} alone does not fit into memory. Truncate rows to fewer tokens"
                f"{'' if checkpointed else ', or turn on gradient checkpointing'}."
            ) from error
        logger.warning(f"A batch of {len(indices)} rows of the {what} did not fit into memory; {way}.")
        return smaller

    def _one(
        self, batch: dict[str, Any], vectors: Vectors, indices: list[int], facts: RowFacts, sink: Gradients
    ) -> None:
        squares = torch.zeros(len(indices), dtype=torch.float64, device=model_device(self.model))

        def gradients(name: str, values: Tensor) -> None:
            # an inner product is slower and, for long vectors, less accurate
            squares.add_(torch.linalg.vector_norm(values, dim=1).double().square_())
            sink(name, values)

        losses, counts = vectors(batch, gradients)
        facts.losses[indices] = losses.float().cpu()
        facts.label_tokens[indices] = counts.cpu()
        facts.norms[indices] = squares.sqrt().float().cpu()
