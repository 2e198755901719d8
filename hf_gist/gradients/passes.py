"""Passes over a dataset outside the Trainer: the representation of each row, batch by batch, over all processes."""

import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
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


@dataclass
class RowFacts:
    """What a pass over a dataset learnt about each of its `N` rows.

    Args:
        losses (`Tensor`): mean token loss `[N]` float32.
        label_tokens (`Tensor`): labelled tokens `[N]` int64.
        norms (`Tensor`): norms of the rows' vectors `[N]` float32, NaN or Inf where one is not finite.
        coordinates (`Tensor`): in the basis of the pass `[N, q]` float32; `q` is 0 without one.
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
    """Everything a pass over a dataset needs; the same for targets and candidates.

    Args:
        model (`nn.Module`): a peft model.
        collator (`Collator`): rows to a padded batch.
        tokens_per_batch (`int`): see [`plan_batches`].
        scoring_dtype (`str`): see [`GISTConfig`].
        progress (`bool`): show a progress bar on the main process.
        basis_device (`torch.device`, *optional*): where target vectors and basis are kept; by default the model's device.
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
        new_sink: Callable[[list[int]], Gradients],
        facts: RowFacts | None = None,
        shards: Shards | None = None,
    ) -> RowFacts:
        """One pass over this rank's share of the batches; the facts of all rows are returned on every rank.

        Args:
            dataset: tokenised rows.
            what (`str`): name of the dataset for messages and the progress bar.
            vectors (`Vectors`): what stands for a row.
            new_sink: makes, for the row indices of a batch, the receiver of its vectors.
            facts (`RowFacts`, *optional*): filled in and returned.
            shards (`Shards`, *optional*): keeps finished batches on disk; those of an earlier run are not done again.

        Raises:
            RuntimeError: if another process failed, with its error.
        """
        size = len(dataset)
        facts = facts or RowFacts.empty(size)
        tensors = vars(facts)
        plan = plan_batches(row_lengths(dataset), size, self.tokens_per_batch)
        if shards is not None:
            shards.restore(tensors)
        # a failed process cannot speak to others that wait for it in the middle of a joint pass; the launcher ends them
        with nullcontext() if is_sharded(self.model) else together():
            self._batches(dataset, what, vectors, new_sink, facts, plan, shards)
        for values in tensors.values():
            sum_over_ranks(values)
        return facts

    def _batches(self, dataset, what, vectors, new_sink, facts: RowFacts, plan: Batches, shards) -> None:
        state, device, size = PartialState(), model_device(self.model), len(dataset)
        done = shards.done if shards is not None else set()
        todo = [number for number in range(len(plan)) if number not in done]
        mine = todo[state.process_index :: state.num_processes]
        with ExitStack() as stack:
            stack.enter_context(scoring_mode(self.model))
            stack.enter_context(compute_dtype_context(self.scoring_dtype, device))
            bar = stack.enter_context(
                tqdm(total=size, desc=what, unit="row", disable=not (self.progress and state.is_main_process))
            )
            bar.update(sum(len(plan[number]) for number in done))
            for number in mine:
                indices = plan[number]
                self._batch(dataset, indices, what, vectors, new_sink, facts)
                if shards is not None:
                    shards.add(number, indices, vars(facts))
                bar.update(min(len(indices) * state.num_processes, size - bar.n))
            if is_sharded(self.model):
                self._run_padding_passes(
                    dataset, what, vectors, math.ceil(len(todo) / state.num_processes) - len(mine)
                )
        if shards is not None:
            shards.save(vars(facts))

    def _run_padding_passes(self, dataset, what, vectors: Vectors, passes: int) -> None:
        """Passes whose outcome is dropped: those of a sharded model are joint, and others may have a batch more."""
        for _ in range(passes):
            batch = to_device(self.collator(fetch_rows(dataset, [0])), model_device(self.model))
            vectors(batch, lambda name, values: None)

    def _batch(
        self, dataset, indices: list[int], what, vectors: Vectors, new_sink, facts, checkpointed: bool = False
    ) -> None:
        """One batch; where it does not fit into memory its halves, and a row alone with activation checkpointing."""
        batch = self.collator(fetch_rows(dataset, indices))
        check_batch(batch, len(indices), what)
        smaller: list[tuple[list[int], bool]] = []
        try:
            with checkpointing(self.model) if checkpointed else nullcontext():
                self._one(to_device(batch, model_device(self.model)), vectors, indices, facts, new_sink(indices))
        except RuntimeError as error:
            # the halves of one process would be passes that the others do not take part in
            if not should_reduce_batch_size(error) or is_sharded(self.model):
                raise
            if len(indices) > 1:
                middle = len(indices) // 2
                smaller, way = [(indices[:middle], False), (indices[middle:], False)], "its halves are tried"
            elif not checkpointed and checkpointed_blocks(self.model):
                smaller, way = [(indices, True)], "it is tried with activation checkpointing"
            else:
                raise RuntimeError(
                    f"Row {indices[0]} of the {what} alone does not fit into memory. Cut rows to fewer tokens"
                    f"{'' if checkpointed else ', or turn on gradient checkpointing'}."
                ) from error
            # the traceback holds the activations of the batch that did not fit
            error.__traceback__ = None
        if smaller:
            release_memory()
            logger.warning(f"A batch of {len(indices)} rows of the {what} did not fit into memory; {way}.")
        for part, with_checkpointing in smaller:
            self._batch(dataset, part, what, vectors, new_sink, facts, with_checkpointing)

    def _one(self, batch, vectors: Vectors, indices: list[int], facts: RowFacts, sink: Gradients) -> None:
        squares = torch.zeros(len(indices), dtype=torch.float64, device=model_device(self.model))

        def gradients(name: str, values: Tensor) -> None:
            # a product of the rows with themselves is slower and, over long rows, less exact
            squares.add_(torch.linalg.vector_norm(values, dim=1).double().square_())
            sink(name, values)

        losses, counts = vectors(batch, gradients)
        facts.losses[indices] = losses.float().cpu()
        facts.label_tokens[indices] = counts.cpu()
        facts.norms[indices] = squares.sqrt().float().cpu()
