"""Setup of a GAST trainer: checks, the support set, and the source of each sample."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import has_length

from hf_gist.config.gast import GASTConfig
from hf_gist.data.batches import check_batch
from hf_gist.data.preparation.formats import warn_other_format
from hf_gist.data.rows import Collator
from hf_gist.errors import NoEffectWarning
from hf_gist.gast.checks import check_keep, check_supported, check_unmasked
from hf_gist.gast.groups import Group, find_groups
from hf_gist.gast.run import GASTRun
from hf_gist.gast.sources import SourceCollator
from hf_gist.gast.support import SupportSet, read_saved
from hf_gist.gist.checks import check_dataset
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.losses import labelled_tokens, loss_kind
from hf_gist.gradients.models import to_device
from hf_gist.gradients.modes import scoring_mode
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.gradients.row_losses.weighted import LABELLED_TOKENS, WeightedLoss, verified
from hf_gist.training.gast.checks import check_online
from hf_gist.training.gast.support_columns import check_columns
from hf_gist.training.losses.choice import TrainerBatchLoss, different_rows, own_loss_name, some_rows
from hf_gist.training.losses.trainers import check_trainer_kind, trains_on_pairs
from hf_gist.training.parts import as_dataset, check_accumulation, prepared_as_training_rows, prepares_rows


SOURCE_KEY = "gast_source"
"""Key of the source of each sample in a training batch; removed by `training_step`."""


def check_trainer(trainer: Trainer, config: GASTConfig, own_weights: bool) -> None:
    """Check before training that GAST supports a trainer's model, and that its loss can be split by sample.

    Args:
        trainer (`Trainer`): after its construction.
        config (`GASTConfig`): the configuration.
        own_weights (`bool`): whether its class overrides `sample_weights`.

    Raises:
        ValueError: naming what to change.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    check_supported(trainer.args, trainer.accelerator, model, config.group_by)
    check_accumulation(trainer.args)
    if config.source_column is not None and not has_length(trainer.train_dataset):
        raise ValueError(
            f"`source_column={config.source_column!r}`: the sources of a stream are not known before it is read. Leave it "
            "out, or load `train_dataset` as a map-style dataset."
        )
    check_keep(config, trainer.args.per_device_train_batch_size, _rows_in_a_batch(trainer))
    groups, unmasked = find_groups(model, config.group_by, config.outside_blocks)
    check_unmasked(trainer.accelerator, unmasked, config.support)
    _check_support(trainer, config, model, groups)
    check_trainer_kind(trainer)
    if trains_on_pairs(trainer):
        raise ValueError(
            f"GAST masks samples of one sequence, and a row of {type(trainer).__name__} is a pair of sequences. Use "
            "GISTDataSelectorCallback, which selects pairs."
        )
    if not own_weights:
        loss_kind(model)
    check_online(trainer, config, groups, own_weights)


def _rows_in_a_batch(trainer: Trainer) -> int | None:
    """The most rows that a batch can have, where the training set limits them."""
    # accelerate repeats rows until the batches of several processes are full
    if trainer.args.world_size > 1 or not has_length(trainer.train_dataset):
        return None
    return len(trainer.train_dataset)


def _check_support(trainer: Any, config: GASTConfig, model: nn.Module, groups: Sequence[Group]) -> None:
    """Check that support rows are used if there are any, and that a saved support gradient fits the model.

    Raises:
        ValueError: naming what to change.

    Warns:
        NoEffectWarning: for support rows in a mode without support.
    """
    given = getattr(trainer, "support_dataset", None) is not None
    if not config.uses_support:
        if given:
            text = f"`support_dataset` has no effect with `mode={config.mode!r}`, which compares no samples with it."
            warnings.warn(text, NoEffectWarning, stacklevel=4)
        return
    if given and config.support != "dataset":
        raise ValueError(
            f"`support_dataset` is not used with `support={config.support!r}`. Leave it out, or set `support='dataset'`."
        )
    if config.support_file is not None:
        read_saved(config.support_file, model, _masked(groups), torch.device("cpu"))


def _masked(groups: Sequence[Group]) -> list[str]:
    return [name for group in groups for name in group.parameters()]


def start_run(trainer: Any) -> GASTRun:
    """The state of a `train` call at its first masked step, when the model has all its wrappers.

    Args:
        trainer (`GASTTrainer`): the trainer.

    Raises:
        ValueError: for a setup that GAST does not support, a checkpoint of other groups, or a saved support gradient of
            another adapter.
    """
    config = trainer.gast_config
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    rank = trainer.accelerator.process_index
    check_supported(trainer.args, trainer.accelerator, model, config.group_by)
    check_rows(trainer, config.seed)
    run = GASTRun(model, config, rank, trainer.args.device, trainer._gast_sources, trainer._train_batch_size)
    if trainer.is_world_process_zero():
        run.announce()
    if trainer._gast_checkpoint is not None:
        run.resume(trainer._gast_checkpoint)
    if config.uses_support and config.support_file is not None:
        run.use_saved(read_saved(config.support_file, model, _masked(run.groups), trainer.args.device))
    return run


ROWS_CHECKED = 64
ROWS_IN_BATCH = 8

OVERRIDE = (
    "Override `sample_weights(inputs)` to return the weight `[B]` of each sample's own mean loss, or set `mode='all'`."
)


def _rows_for_batches(trainer: Trainer, dataset: Any, description: str) -> tuple[Any, Collator]:
    """A dataset and a collator that make batches with the columns of the training batches."""
    collator = trainer.data_collator
    if isinstance(dataset, datasets.Dataset):
        return trainer._remove_unused_columns(dataset, description=description), collator
    return dataset, trainer._get_collator_with_removed_columns(collator, description=description)


def check_rows(trainer: Any, seed: int) -> None:
    """Check on some training rows that every sample is a separate row of its batch.

    Collated anew on the host, because a training step that reads its batch would wait for the device.

    Raises:
        ValueError: for packed or padding-free rows.
    """
    dataset, collator = _rows_for_batches(trainer, trainer.train_dataset, "training")
    # a collator may draw random numbers, which the training must not notice
    with scoring_mode(trainer.model):
        rows = some_rows(dataset, seed, ROWS_CHECKED)
        for start in range(0, len(rows), ROWS_IN_BATCH):
            some = rows[start : start + ROWS_IN_BATCH]
            check_batch(collator([dict(row) for row in some]), len(some), "training set")


def sample_weighting(trainer: Any, seed: int) -> str:
    """How the loss of a trainer weights the samples of a batch, a key of `WEIGHTINGS`.

    Args:
        trainer (`Trainer`): a loss of its own is compared with batches of one on two training rows.
        seed (`int`): seed of these rows, the same on all processes.

    Raises:
        ValueError: if the loss cannot be split by sample.
    """
    name = own_loss_name(trainer)
    if name is None:
        return LABELLED_TOKENS
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    loss = WeightedLoss(name, model, TrainerBatchLoss(trainer, model))
    dataset, collator = _rows_for_batches(trainer, trainer.train_dataset, "training")
    with scoring_mode(model):
        rows = different_rows(loss, collator, some_rows(dataset, seed))
        return verified(loss, collator, rows, find_tracked(model), OVERRIDE).weighting


def new_support_set(trainer: Trainer, dataset: Any, config: "GASTConfig") -> SupportSet:
    """The support set, with the columns and the format of the trainer's training rows.

    Args:
        trainer (`Trainer`): a `Trainer` or TRL's `SFTTrainer`.
        dataset: support rows, raw with `SFTTrainer`; `None` for the training set.
        config (`GASTConfig`): size and order of support batches.

    Raises:
        ValueError: if the number of rows is not known or zero, or the rows are not tokenised.
    """
    if dataset is None:
        check_columns(trainer, trainer.train_dataset, "train_dataset")
        rows, collator = _rows_for_batches(trainer, trainer.train_dataset, "support")
    else:
        rows, collator = support_rows_of(trainer, dataset, "support_dataset")
    return SupportSet(rows, collator, config.support_batch_size, config.seed)


def support_rows_of(trainer: Trainer, dataset: Any, argument: str) -> tuple[Any, Collator]:
    """Support rows that are not those of the training set, and a collator; see [`new_support_set`].

    Args:
        trainer (`Trainer`): a `Trainer` or TRL's `SFTTrainer`.
        dataset: support rows, raw with `SFTTrainer`.
        argument (`str`): its name, for messages.

    Raises:
        ValueError: if they cannot be prepared, or are not like the training rows.
    """
    check_dataset(dataset, argument)
    rows = dataset
    if prepares_rows(trainer):
        rows = prepared_as_training_rows(trainer, as_dataset(dataset, argument), argument)
    check_columns(trainer, rows, argument)
    warn_other_format(rows, trainer.train_dataset, (argument, "train_dataset"))
    return _rows_for_batches(trainer, rows, "support")


def labelled_row(trainer: Any, seed: int) -> tuple[dict[str, Any], int]:
    """A batch of one training row with a labelled token, on the device, and their number."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    dataset, collator = _rows_for_batches(trainer, trainer.train_dataset, "training")
    rows = different_rows(TokenLoss(model), collator, some_rows(dataset, seed))
    batch = collator([dict(rows[0])])
    return to_device(batch, trainer.args.device), int(labelled_tokens(model, batch).sum())


@contextmanager
def carrying_sources(trainer: Trainer, column: str, names: Sequence[str]) -> Iterator[None]:
    """While active, dataloaders created by a trainer add the source of each sample to the batches.

    Args:
        trainer (`Trainer`): whose collator and columns are replaced.
        column (`str`): of the training set.
        names (`Sequence[str]`): the values of the column.
    """
    owner: Any = trainer
    collator = owner.data_collator
    owner._set_signature_columns_if_needed()
    columns = owner._signature_columns
    try:
        owner._signature_columns = [*columns, column]
        owner.data_collator = SourceCollator(collator, column, list(names), SOURCE_KEY)
        yield
    finally:
        owner.data_collator = collator
        owner._signature_columns = columns
