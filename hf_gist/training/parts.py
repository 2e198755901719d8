"""The objects of a Trainer that the callback needs, collected once for each `train()` call."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import transformers
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from hf_gist.config.gist import GISTConfig
from hf_gist.data.bad_rows import BadRows
from hf_gist.data.rows import Collator
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.row_losses.base import RowLoss
from hf_gist.training.caller import calling_trainer
from hf_gist.training.losses.trainers import trains_on_pairs


def output_folder(args: TrainingArguments) -> Path:
    """The output folder of a trainer; `TrainingArguments` has a default for it."""
    return Path(cast(str, args.output_dir))


@dataclass(frozen=True)
class TrainerParts:
    """The Trainer's objects for one `train()` call.

    Args:
        args (`TrainingArguments`): the trainer's arguments.
        model (`nn.Module`): the model in training, without accelerate's wrappers.
        loader (`DataLoader`): accelerate's train dataloader.
        optimizer (`Optimizer`): accelerate's wrapper of the optimizer.
        scheduler: the learning-rate scheduler, or accelerate's wrapper of it.
        processing_class (*optional*): tokenizer or processor of the trainer.
        trainer (`Trainer`, *optional*): the trainer itself; `None` if it is not on the call stack.
    """

    args: TrainingArguments
    model: nn.Module
    loader: Any
    optimizer: Optimizer
    scheduler: Any
    processing_class: Any = None
    trainer: Trainer | None = None

    @classmethod
    def of_event(cls, args: TrainingArguments, event: dict[str, Any]) -> "TrainerParts":
        """The parts in the keyword arguments of `on_train_begin`."""
        return cls(
            args,
            event["model"],
            event["train_dataloader"],
            event["optimizer"],
            event["lr_scheduler"],
            event.get("processing_class"),
            calling_trainer(),
        )

    @property
    def output_folder(self) -> Path:
        """The output folder of the trainer."""
        return output_folder(self.args)

    @property
    def pool(self) -> Any:
        """The train dataset after preparation by the trainer, `N` rows."""
        return self.loader.dataset

    @property
    def collator(self) -> Collator:
        """The collator of the train dataloader."""
        return self.loader.collate_fn

    @property
    def tokenizer(self) -> Any:
        """The collator's tokenizer, otherwise the trainer's."""
        return getattr(self.collator, "tokenizer", None) or self.processing_class

    def dataset_pass(self, config: GISTConfig, loss: RowLoss | None = None) -> DatasetPass:
        """The settings of the scoring passes; `loss` is the trainer's own, by default token cross-entropy."""
        dtype = "bfloat16" if config.scoring_dtype == "auto" and self.args.bf16 else config.scoring_dtype
        progress = not self.args.disable_tqdm
        tokens = config.scoring_tokens_per_batch
        return DatasetPass(self.model, self.collator, tokens, dtype, progress, own_loss=loss)


def check_accumulation(args: TrainingArguments) -> None:
    """Check that accumulated gradients are divided by the number of accumulated batches only once.

    transformers 5.2.0 to 5.5.3 give that number to accelerate too, whose `backward` divides by it; DeepSpeed does not.

    Args:
        args (`TrainingArguments`): the trainer's arguments.

    Raises:
        ValueError: if Trainer and accelerate both divide.
    """
    divided = GradientState().num_steps
    if divided == 1 or AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        return
    raise ValueError(
        f"`gradient_accumulation_steps={args.gradient_accumulation_steps}`: accelerate divides the gradients by "
        f"{divided}, and so does Trainer, so they would be {divided} times too small. transformers 5.2.0 to 5.5.3 do "
        f"that ({transformers.__version__} is installed): install transformers>=5.5.4, or set it to 1."
    )


# ---- Rows that a trainer prepares ----


SEARCHED = 1_000
"""Largest number of rows that are prepared one by one to find those that cannot be."""


def prepares_rows(trainer: Trainer | None) -> bool:
    """Whether a trainer is one of TRL's that prepares raw rows: `SFTTrainer`, or one of preference pairs."""
    known = hasattr(trainer, "completion_only_loss") or trains_on_pairs(trainer)
    return known and hasattr(trainer, "_prepare_dataset") and not getattr(trainer, "_skip_prepare_dataset", False)


def as_dataset(rows: Any, argument: str) -> Any:
    """Rows that a trainer can prepare: a list becomes a dataset.

    Raises:
        ValueError: for another type, naming it.
    """
    if isinstance(rows, list):
        return Dataset.from_list(rows)
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"`{argument}` is a {type(rows).__name__}, and the trainer prepares a `datasets.Dataset`. Pass "
            "`datasets.Dataset.from_list(rows)`."
        )
    return rows


def prepared_as_training_rows(trainer: Any, rows: Any, argument: str) -> Any:
    """Raw rows, prepared by a trainer as it prepares its training rows.

    Args:
        trainer (`SFTTrainer`, `DPOTrainer` or `RewardTrainer`): see [`prepares_rows`].
        rows: a dataset, which may be tokenised already.
        argument (`str`): its name, for messages.

    Returns:
        The rows with the columns of tokens and their other columns, without those that the trainer drops.

    Raises:
        ValueError: naming the rows that cannot be prepared, or the version of TRL.
    """
    if not trains_on_pairs(trainer) and not hasattr(trainer, "_formatting_func"):
        raise ValueError(
            f"`{argument}`: SFTTrainer of TRL {version('trl')} does not say how it labels and formats its training rows, so "
            "other rows could be prepared differently. Install trl>=1.8, or tokenise all rows, with labels, and train "
            "with `Trainer`."
        )
    try:
        return _prepare(trainer, rows, argument)
    except Exception:
        if isinstance(rows, Dataset) and len(rows) <= SEARCHED:
            _refuse_bad_rows(trainer, rows, argument)
        raise


def _prepare(trainer: Any, rows: Any, argument: str) -> Any:
    if trains_on_pairs(trainer):
        return trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, argument)
    formatting = getattr(trainer, "_formatting_func", None)
    return trainer._prepare_dataset(rows, trainer.processing_class, trainer.args, False, formatting, argument)


def _refuse_bad_rows(trainer: Any, rows: Dataset, argument: str) -> None:
    """Raise for the rows that cannot be prepared, if they fail on their own."""
    bad = BadRows(len(rows), lambda row: f"{argument}, row {row + 1:,}")
    for number in range(len(rows)):
        try:
            _prepare(trainer, rows.select([number]), argument)
        except Exception as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"{type(error).__name__}: {text[0].rstrip('.')}"
            bad.add(number, f"{type(trainer).__name__} cannot prepare it: {reason}")
    bad.refuse(f"Correct them, or leave them out: `{argument} = {argument}.select(...)`.")
