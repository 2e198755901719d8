"""Setup of a GAST trainer: checks, the support set, and the source of each sample."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
from transformers import Trainer

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.checks import check_loss_owner, check_supported, check_unmasked
from hf_gist.gast.groups import find_groups
from hf_gist.gast.sources import SourceCollator
from hf_gist.gast.support import SupportSet
from hf_gist.gradients.losses import loss_kind
from hf_gist.training.parts import check_accumulation, prepared_as_training_rows, prepares_rows


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
    check_supported(trainer.args, trainer.accelerator, model)
    check_accumulation(trainer.args)
    _, unmasked = find_groups(model, config.group_by, config.outside_blocks)
    check_unmasked(trainer.accelerator, unmasked, config.support)
    if not own_weights:
        check_loss_owner(type(trainer))
        loss_kind(model)


def new_support_set(trainer: Trainer, dataset: Any, config: "GASTConfig") -> SupportSet:
    """The support set, with the columns and the format of the trainer's training rows.

    Args:
        trainer (`Trainer`): a `Trainer` or TRL's `SFTTrainer`.
        dataset: support rows, raw with `SFTTrainer`; `None` for the training set.
        config (`GASTConfig`): size and order of support batches.

    Raises:
        ValueError: if the number of rows is not known or zero.
    """
    collator = trainer.data_collator
    if dataset is None:
        dataset = trainer.train_dataset
    elif prepares_rows(trainer):
        dataset = prepared_as_training_rows(trainer, dataset, "support_dataset")
    if isinstance(dataset, datasets.Dataset):
        dataset = trainer._remove_unused_columns(dataset, description="support")
    else:
        collator = trainer._get_collator_with_removed_columns(collator, description="support")
    return SupportSet(dataset, collator, config.support_batch_size, config.seed)


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
