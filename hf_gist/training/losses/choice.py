"""Which loss the rows of a trainer are scored by."""

import itertools
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from hf_gist.config.gist import GISTConfig
from hf_gist.data.rows import Collator, fetch_rows
from hf_gist.errors import LossMismatchWarning
from hf_gist.gist.checks import ROWS_LOOKED_AT
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.models import model_device, to_device
from hf_gist.gradients.modes import scoring_mode, scoring_precision
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.row_losses.base import RowLoss, TokenLoss
from hf_gist.gradients.row_losses.weighted import WeightedLoss, verified
from hf_gist.training.losses.side_effects import computing_one_loss
from hf_gist.training.losses.trainers import trains_on_pairs
from hf_gist.training.parts import TrainerParts


PLAIN_OWNERS = (
    "transformers.trainer",
    "transformers.trainer_seq2seq",
    "trl.trainer.sft_trainer",
    "axolotl.core.trainers.base",
    # written by Unsloth in place of trl.trainer.sft_trainer
    "UnslothSFTTrainer",
)
"""Modules whose `compute_loss` is that of the model, but for the settings that [`own_loss_name`] reads."""

PLAIN_LOSS_TYPES = ("nll", "chunked_nll")
"""Values of TRL's `loss_type` that are token cross-entropy."""

SELECT_FIRST = (
    "Use a loss that is a mean or a sum over rows or tokens, or select first with `hf-gist select` (token cross-entropy), "
    "and train on the selected rows."
)

AGREEMENT = 0.02
"""Largest relative difference of the loss of one row that is not a warning."""


def own_loss_name(trainer: Any) -> str | None:
    """Description of the loss of a trainer; `None` if it is the model's own (token cross-entropy)."""
    name = type(trainer).__name__
    kind = getattr(trainer.args, "loss_type", "nll")
    if trains_on_pairs(trainer):
        return f"{name} on preference pairs" + ("" if kind == "nll" else f" with loss_type={kind!r}")
    # the function itself, because a method can also be replaced on the class or on the instance
    method = trainer.compute_loss
    if getattr(method, "__module__", None) not in PLAIN_OWNERS:
        return ".".join(getattr(method, "__qualname__", f"{name}.compute_loss").split(".")[-2:])
    if trainer.compute_loss_func is not None:
        function = trainer.compute_loss_func
        return f"compute_loss_func={getattr(function, '__name__', type(function).__name__)}"
    if trainer.args.label_smoothing_factor:
        return f"{name} with label_smoothing_factor={trainer.args.label_smoothing_factor}"
    if kind not in PLAIN_LOSS_TYPES:
        return f"{name} with loss_type={kind!r}"
    return None


class TrainerBatchLoss:
    """The loss of a trainer for one batch, see [`computing_one_loss`].

    Args:
        trainer (`Trainer`): whose `compute_loss` is called as in training.
        model: without accelerate's wrappers.
        training (`bool`): whether the loss sees a model in training.
    """

    def __init__(self, trainer: Trainer, model: Any, training: bool = True) -> None:
        self.trainer: Any = trainer
        self.model = model
        self.training = training

    def __call__(self, inputs: dict[str, Any], labelled: int) -> Tensor:
        """The loss, with `labelled` as the number of items if the trainer counts them."""
        trainer = self.trainer
        counted = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
        items = torch.tensor(labelled, device=model_device(self.model)) if counted and "labels" in inputs else None
        with computing_one_loss(trainer, self.model, self.training):
            # as in `training_step`: a trainer may put its loss function there
            prepared = trainer._prepare_inputs(dict(inputs))
            return trainer.compute_loss(self.model, prepared, num_items_in_batch=items)


def own_loss(parts: TrainerParts, config: GISTConfig) -> WeightedLoss | None:
    """The loss of a trainer that has one of its own, not yet verified; `None` for token cross-entropy.

    Raises:
        ValueError: for settings that need the model's own loss.
    """
    trainer = parts.trainer
    name = None if trainer is None else own_loss_name(trainer)
    if trainer is None or name is None:
        return None
    pairs = trains_on_pairs(trainer)
    if pairs:
        _check_pair_settings(type(trainer).__name__, config)
    compute = TrainerBatchLoss(trainer, parts.model)
    return WeightedLoss(name, parts.model, compute, sequences=2 if pairs else 1)


def _check_pair_settings(name: str, config: GISTConfig) -> None:
    """Check that no setting reads a single sequence of each row.

    Raises:
        ValueError: naming the setting.
    """
    single = {"scorer": config.scorer == "rds_plus"}
    for setting in (setting for setting, used in single.items() if used):
        raise ValueError(
            f"`{setting}={getattr(config, setting)!r}` compares the hidden states of one sequence, and a row of {name} "
            "is a pair of sequences; leave it at its default."
        )


ROWS_COMPARED = 8
"""Rows looked at where any row with a loss will do."""


def some_rows(dataset: Any, seed: int, count: int = ROWS_LOOKED_AT) -> list[dict[str, Any]]:
    """Some random rows of a dataset; the first ones of a stream."""
    if not hasattr(dataset, "__getitem__"):
        return list(itertools.islice(iter(dataset), count))
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return fetch_rows(dataset, order[:count].tolist())


def different_rows(loss: RowLoss, collator: Collator, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two rows with a loss, with the smallest and the largest number of labelled tokens of all.

    Raises:
        ValueError: if no row has a labelled token.
    """
    counts = [int(loss.counts(collator([dict(row)]))) for row in rows]
    by_count = sorted((number for number, count in enumerate(counts) if count), key=counts.__getitem__)
    if not by_count:
        raise ValueError(f"None of {len(rows)} rows of the train dataset has a labelled token. Check the prompt mask.")
    return [rows[by_count[0]], rows[by_count[-1]]]


def verified_loss(loss: RowLoss | None, dataset_pass: DatasetPass, parts: TrainerParts, seed: int) -> RowLoss | None:
    """The loss with the weights of its rows, after a comparison with batches of one row.

    Args:
        loss (`RowLoss`, *optional*): see [`own_loss`].
        dataset_pass (`DatasetPass`): with this loss, for model, collator and precision.
        parts (`TrainerParts`): the trainer's objects.
        seed (`int`): seed of the rows looked at.

    Raises:
        ValueError: if the loss cannot be split by row.

    Warns:
        LossMismatchWarning: if a trainer that has no loss of its own computes another loss than token cross-entropy.
    """
    model = dataset_pass.model
    with scoring_mode(model), scoring_precision(model, dataset_pass.scoring_dtype):
        if isinstance(loss, WeightedLoss):
            rows = different_rows(loss, dataset_pass.collator, some_rows(parts.pool, seed))
            return verified(loss, dataset_pass.collator, rows, find_tracked(model), SELECT_FIRST)
        if parts.trainer is not None:
            _compare_losses(parts.trainer, dataset_pass, some_rows(parts.pool, seed, ROWS_COMPARED))
    return None


def _compare_losses(trainer: Trainer, dataset_pass: DatasetPass, rows: list[dict[str, Any]]) -> None:
    """Warn if the loss of a trainer is not the one that its rows are scored by, for the first two rows with a loss.

    Warns:
        LossMismatchWarning: with both losses of a row.
    """
    model = dataset_pass.model
    batches = [dataset_pass.collator([dict(row)]) for row in rows]
    for batch in [batch for batch in batches if bool(dataset_pass.loss.counts(batch).any())][:2]:
        inputs = to_device(TokenLoss(model).prepared(batch), model_device(model))
        with torch.no_grad():
            losses, counts = sample_losses(model, inputs)
            # in eval mode: hooks on a model in training expect steps of the training
            compute = TrainerBatchLoss(trainer, model, training=False)
            theirs = compute(to_device(dict(batch), model_device(model)), int(counts.sum()))
        ours = float(losses[0])
        if abs(ours - float(theirs)) > AGREEMENT * max(abs(ours), 1.0):
            warnings.warn(
                f"Rows are scored by token cross-entropy ({ours:.4f} for one row), but {type(trainer).__name__} trains this "
                f"row with a loss of {float(theirs):.4f}: the model or a setting adds a term (a router loss, for "
                "example) or replaces the loss.",
                LossMismatchWarning,
                stacklevel=4,
            )
            return
