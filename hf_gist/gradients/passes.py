"""Passes over a dataset outside the Trainer that compute each row's representation, distributed over all processes."""

import math
from collections.abc import Callable, Iterator
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

from hf_gist.data.batches import Batches, plan_batches, single_rows
from hf_gist.data.rows import Collator, fetch_rows, row_lengths
from hf_gist.functional.subspace import BatchTotals
from hf_gist.gradients.models import is_sharded, model_device, to_device
from hf_gist.gradients.modes import checkpointed_blocks, checkpointing, scoring_mode, scoring_precision
from hf_gist.gradients.partial import Shards
from hf_gist.gradients.processes import sum_over_ranks, together
from hf_gist.gradients.row_losses.base import RowLoss, TokenLoss
from hf_gist.gradients.transfers import BasisSlices, HostCopy, one_behind
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


class QueuedRows:
    """The results of a batch, on their way to the host.

    Args:
        indices (`list[int]`): row numbers of the batch.
        counts (`Tensor`): labelled tokens `[B]`.
        values (`Tensor`): losses, norms and coordinates `[B, 2 + q]`, see [`BatchTotals.with_losses`].
    """

    def __init__(self, indices: list[int], counts: Tensor, values: Tensor) -> None:
        self._rows = torch.tensor(indices)
        self._counts = HostCopy(counts)
        self._values = HostCopy(values)

    def write(self, facts: RowFacts) -> None:
        """Wait for the results, and write them into the rows of `facts`."""
        values = self._values.wait()
        facts.label_tokens.index_copy_(0, self._rows, self._counts.wait().long())
        facts.losses.index_copy_(0, self._rows, values[:, 0])
        facts.norms.index_copy_(0, self._rows, values[:, 1])
        facts.coordinates.index_copy_(0, self._rows, values[:, 2:])


@dataclass(frozen=True)
class RowVectors:
    """What a pass computes of each row, and what it keeps.

    Args:
        vectors (`Vectors`): row representation.
        loss (`RowLoss`): the loss of the pass.
        basis (`BasisSlices`, *optional*): keep the coordinates in this basis.
        rank (`int`): `q`, the rank of the basis.
        new_sink (`NewSink`, *optional*): receives the vectors themselves.
    """

    vectors: Vectors
    loss: RowLoss
    basis: BasisSlices | None = None
    rank: int = 0
    new_sink: NewSink | None = None

    def queue(self, batch: dict[str, Any], indices: list[int], device: torch.device) -> QueuedRows:
        """Compute the vectors of a batch on the device; the results are not waited for."""
        totals = BatchTotals(len(indices), self.rank, device)
        keep = self.new_sink(indices) if self.new_sink is not None else None

        def gradients(name: str, values: Tensor) -> None:
            totals.add(values, self.basis(name) if self.basis is not None else None)
            if keep is not None:
                keep(name, values)

        losses, counts = self.vectors(batch, gradients, self.loss)
        return QueuedRows(indices, counts, totals.with_losses(losses))


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
        own_loss (`RowLoss`, *optional*): a trainer's own loss; by default token cross-entropy.
        one_by_one (`bool`): batches of one row, for the loss of each row where only that of a batch is known.
    """

    model: nn.Module
    collator: Collator
    tokens_per_batch: int
    scoring_dtype: str = "auto"
    progress: bool = True
    basis_device: torch.device | None = None
    own_loss: RowLoss | None = None
    one_by_one: bool = False

    @property
    def loss(self) -> RowLoss:
        """The loss that rows are scored by."""
        return self.own_loss or TokenLoss(self.model)

    def scan(
        self,
        dataset: Any,
        what: str,
        vectors: Vectors,
        *,
        basis: dict[str, Tensor] | None = None,
        new_sink: NewSink | None = None,
        shards: Shards | None = None,
    ) -> RowFacts:
        """One pass over this rank's share of the batches; returns the facts of all rows on every rank.

        Args:
            dataset: tokenised rows.
            what (`str`): name of the dataset for messages and the progress bar.
            vectors (`Vectors`): row representation.
            basis (`dict[str, Tensor]`, *optional*): part to its slice `[q, n]`; without it, there are no coordinates.
            new_sink (`NewSink`, *optional*): creates the callback that receives a batch's vectors.
            shards (`Shards`, *optional*): saves finished batches to disk; batches saved by an earlier run are skipped.

        Raises:
            RuntimeError: if another process failed, with its error.
        """
        size = len(dataset)
        rank = 0 if basis is None else len(next(iter(basis.values())))
        slices = None if basis is None else BasisSlices(basis, model_device(self.model))
        facts = RowFacts.empty(size, rank)
        tensors = vars(facts)
        lengths = row_lengths(dataset)
        plan = single_rows(lengths, size) if self.one_by_one else plan_batches(lengths, size, self.tokens_per_batch)
        if shards is not None:
            shards.restore(tensors)
        wanted = RowVectors(vectors, self.loss, slices, rank, new_sink)
        # a failed process cannot reach others that are blocked in a collective pass; the launcher terminates them
        with nullcontext() if is_sharded(self.model) else together():
            self._batches(dataset, what, wanted, facts, plan, shards)
        for values in tensors.values():
            sum_over_ranks(values)
        return facts

    def _batches(
        self, dataset: Any, what: str, wanted: RowVectors, facts: RowFacts, plan: Batches, shards: Shards | None
    ) -> None:
        state = PartialState()
        done = shards.done if shards is not None else set()
        todo = [number for number in range(len(plan)) if number not in done]
        mine = todo[state.process_index :: state.num_processes]
        with scoring_mode(self.model), scoring_precision(self.model, self.scoring_dtype):
            with self._step_bar(plan, what) as bar:
                bar.update(plan.work(done))
                queued = ((number, list(self._batch(dataset, plan[number], what, wanted))) for number in mine)
                for at, (number, parts) in enumerate(one_behind(queued)):
                    for part in parts:
                        part.write(facts)
                    if shards is not None:
                        shards.add(number, plan[number], vars(facts))
                    bar.update(plan.work(todo[at * state.num_processes : (at + 1) * state.num_processes]))
                if is_sharded(self.model):
                    passes = math.ceil(len(todo) / state.num_processes) - len(mine)
                    self._run_padding_passes(dataset, wanted.vectors, passes)
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
            batch = self._sent(self.collator(fetch_rows(dataset, [0])), vectors)
            vectors(batch, lambda name, values: None, self.loss)

    def _sent(self, batch: dict[str, Any], vectors: Vectors) -> dict[str, Any]:
        """A collated batch, ready for `vectors`."""
        return to_device(self.loss.prepared(batch), model_device(self.model)) if vectors.sizes else batch

    def _batch(
        self, dataset: Any, indices: list[int], what: str, wanted: RowVectors, checkpointed: bool = False
    ) -> Iterator[QueuedRows]:
        """One batch; if it does not fit into memory, its halves; for a single row, with activation checkpointing."""
        batch = self.collator(fetch_rows(dataset, indices))
        self.loss.check(batch, len(indices), what)
        smaller: list[list[int]] = []
        try:
            with checkpointing(self.model) if checkpointed else nullcontext():
                queued = wanted.queue(self._sent(batch, wanted.vectors), indices, model_device(self.model))
        except RuntimeError as error:
            # collective passes would deadlock, because only this process would split its batch
            if not should_reduce_batch_size(error) or is_sharded(self.model):
                raise
            smaller = self._smaller(indices, what, checkpointed, error)
            # the traceback references the activations of the batch that did not fit
            error.__traceback__ = None
        if not smaller:
            yield queued
            return
        release_memory()
        for part in smaller:
            yield from self._batch(dataset, part, what, wanted, checkpointed=len(smaller) == 1)

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
