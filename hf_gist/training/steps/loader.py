"""The train dataloader of a Trainer: whose rows it yields, in which order, and how its sampler is replaced."""

import warnings
from typing import Any

from accelerate.data_loader import BatchSamplerShard, DataLoaderDispatcher, SeedableRandomSampler
from accelerate.state import AcceleratorState
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler, WeightedRandomSampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_gist.errors import SamplerReplacedWarning
from hf_gist.training.steps.order import RowOrder
from hf_gist.training.steps.sampler import GISTSampler


def _batch_sampler(loader: Any) -> Any:
    """The batch sampler that groups the row numbers, without accelerate's share for each process."""
    found = getattr(loader, "batch_sampler", None)
    return found.batch_sampler if isinstance(found, BatchSamplerShard) else found


def check_loader(loader: Any, args: TrainingArguments) -> None:
    """Check that the sampler of a train dataloader can be replaced.

    Args:
        loader (`DataLoader`): the train dataloader, of a dataset with a length.
        args (`TrainingArguments`): the trainer's arguments.

    Raises:
        ValueError: naming the setting or the class to change.
    """
    if isinstance(loader, DataLoaderDispatcher):
        raise ValueError(
            "`dispatch_batches=True`: accelerate reads all batches on the main process, and their size is not known "
            'to the others. Set `accelerator_config={"dispatch_batches": False}`; a train dataset with a length does '
            "not need it."
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "`train_sampling_strategy='batch_rebalance'` fixes the rows of every batch of the whole pool before "
            "training, so it cannot yield the selected rows. Set it to 'group_by_length' or 'random'."
        )
    batches = _batch_sampler(loader)
    # a subclass with an `__iter__` of its own may not use the sampler that is set
    if not isinstance(batches, BatchSampler) or type(batches).__iter__ is not BatchSampler.__iter__:
        kind = "no batch sampler" if batches is None else f"a batch sampler of its own, {type(batches).__name__}"
        raise ValueError(
            f"The train dataloader of this trainer has {kind}, so the callback cannot set the rows of its batches. "
            "Return a DataLoader with `batch_size` and `sampler` from `get_train_dataloader`, or select before "
            "training with `hf-gist select` and train on the selected rows without the callback."
        )
    if not hasattr(loader, "set_sampler") and AcceleratorState().num_processes > 1:
        raise ValueError(
            "`get_train_dataloader` of this trainer returns a DataLoader that does not divide the rows among the "
            f"{AcceleratorState().num_processes} processes. Return `self.accelerator.prepare(dataloader)`."
        )


def total_batch_size(loader: Any) -> int:
    """Rows of one batch over all processes."""
    # a DataLoader that accelerate did not prepare, on one process
    return getattr(loader, "total_batch_size", None) or _batch_sampler(loader).batch_size


def set_sampler(loader: Any, sampler: Sampler[int]) -> None:
    """Replace the sampler of a train dataloader that [`check_loader`] accepted."""
    if hasattr(loader, "set_sampler"):
        loader.set_sampler(sampler)
    else:
        _batch_sampler(loader).sampler = sampler


def read_order(loader: Any) -> RowOrder:
    """The order to keep inside the warm-up and inside each pass: that of the dataloader's own sampler.

    A sampler whose order is not known is replaced by a random one with a warning, because it does not change which
    rows are trained on; one that leaves rows of the pool out is refused, because it does.

    Raises:
        ValueError: for a sampler that leaves out rows.
    """
    sampler = _batch_sampler(loader).sampler
    size = len(loader.dataset)
    if isinstance(sampler, GISTSampler):
        # a trainer that returns the same dataloader for each `train()`
        return sampler.order
    if type(sampler) in (RandomSampler, SeedableRandomSampler) and not sampler.replacement and len(sampler) == size:
        return RowOrder("random")
    if type(sampler) is SequentialSampler:
        return RowOrder("sequential")
    if type(sampler) is LengthGroupedSampler:
        return RowOrder("group_by_length", sampler.lengths)
    name = type(sampler).__name__
    draws = isinstance(sampler, RandomSampler | WeightedRandomSampler)
    if not draws and hasattr(sampler, "__len__") and len(sampler) < size:
        raise ValueError(
            f"The sampler {name} of the train dataloader yields {len(sampler)} of {size} rows, but all rows of the "
            "train dataset are scored and may be selected. Leave the others out with `train_dataset.select(...)`, "
            "and return a sampler of all rows from `_get_train_sampler`."
        )
    warnings.warn(
        f"The sampler {name} of the train dataloader is not used: the callback decides which rows are trained on, and "
        "draws them in random order inside the warm-up and inside each pass over the selection. Orders that it keeps "
        "are those of RandomSampler, SequentialSampler and LengthGroupedSampler.",
        SamplerReplacedWarning,
        stacklevel=4,
    )
    return RowOrder("random")
