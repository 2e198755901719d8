"""The warm-up of the commands: trains a new LoRA on a random share of the pool before scoring."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.leaks import check_rows_left
from hf_gist.data.rows import keep_columns
from hf_gist.gist.scorers.less import AdamCheckpoint, adam_checkpoint
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gradients.models import signature_columns
from hf_gist.training.loading import padding_collator
from hf_gist.utils.disk import naming
from hf_gist.utils.step_bar import with_step_bar
from hf_gist.utils.terminal import named


class CheckpointRecorder(TrainerCallback):
    """Records the warm-up checkpoints for LESS, each with the mean learning rate since the previous one.

    Args:
        model (`PeftModel`): the model in training.
        count (`int`): number of evenly spaced checkpoints, the last at the end.
    """

    def __init__(self, model: PeftModel, count: int) -> None:
        self.model = model
        self.count = count
        self.checkpoints: list[AdamCheckpoint] = []
        self._rates: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the learning rate of this step."""
        self._rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record a checkpoint if one is due."""
        due = [math.ceil(state.max_steps * (i + 1) / self.count) for i in range(self.count)]
        if state.global_step in due:
            rate = sum(self._rates) / len(self._rates)
            self.checkpoints.append(adam_checkpoint(self.model, kwargs["optimizer"], rate, copy_weights=True))
            self._rates.clear()


def warmup_rows(
    config: GISTConfig, settings: WarmupSettings, size: int, excluded: torch.Tensor | None = None
) -> list[int]:
    """The random rows of a pool that the warm-up trains on.

    Args:
        config (`GISTConfig`): `warmup_ratio` or `warmup_steps`, and the seed.
        settings (`WarmupSettings`): batch size.
        size (`int`): rows of the pool.
        excluded (`Tensor`, *optional*): `[N]` bool, rows that must not be trained on.

    Raises:
        ValueError: if no row is left, or not enough for `warmup_steps`.
    """
    batch = settings.per_device_train_batch_size
    rows = math.ceil(config.warmup_ratio * size) if config.warmup_steps is None else config.warmup_steps * batch
    order = torch.randperm(size, generator=torch.Generator().manual_seed(config.seed))
    check_rows_left(excluded)
    if excluded is not None:
        order = order[~excluded[order]]
    # the last batch may be smaller
    if rows >= len(order) + batch:
        raise ValueError(
            f"`warmup_steps={config.warmup_steps}` takes {rows} rows in batches of {batch}, but only "
            f"{len(order)} rows of the pool can be trained on; lower it."
        )
    return order[:rows].tolist()


def rising_steps(amount: float, steps: int) -> int:
    """The steps over which the learning rate rises to its full value, but never all steps.

    It is 0 in the first of these steps, so a training of one such step would change nothing.

    Args:
        amount (`float`): as `warmup_steps` of `TrainingArguments`: below 1 a share of the steps, rounded up; otherwise
            their number.
        steps (`int`): optimizer steps of the training.
    """
    wanted = math.ceil(amount * steps) if amount < 1 else int(amount)
    return min(wanted, max(0, steps - 1))


def warmup_arguments(config: GISTConfig, settings: WarmupSettings, folder: Path, rows: int) -> TrainingArguments:
    """Arguments of one epoch over `rows` rows without log lines and checkpoints."""
    batch = settings.per_device_train_batch_size
    steps = math.ceil(rows / (batch * PartialState().num_processes))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=rising_steps(0.03, steps),
        num_train_epochs=1,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        seed=config.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Apple's GPU lacks the 64-bit numbers that scores are computed with
        use_cpu=torch.backends.mps.is_available(),
    )


def warm_up(
    model: PeftModel,
    pool: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: GISTConfig,
    settings: WarmupSettings,
    folder: Path,
    sample: list[int],
) -> list[AdamCheckpoint]:
    """Train one epoch on a random share of the pool (paper GIST: 5 %), and save the adapter into `folder`.

    Args:
        model (`PeftModel`): a new LoRA; it is trained in place.
        pool (`Dataset`): tokenised candidates.
        tokenizer (`PreTrainedTokenizerBase`): for padding.
        config (`GISTConfig`): the seed, and whether `scorer="less"` needs checkpoints.
        settings (`WarmupSettings`): learning rate and batch size.
        folder (`Path`): where the adapter is written.
        sample (`list[int]`): the rows of the pool to train on, see [`warmup_rows`].

    Returns:
        `list[AdamCheckpoint]`: for `scorer="less"`, its checkpoints.

    Raises:
        OSError: naming the folder, if the adapter cannot be written.
    """
    recorder = CheckpointRecorder(model, settings.less_checkpoints)
    trainer = Trainer(
        model=model,
        args=warmup_arguments(config, settings, folder, len(sample)),
        train_dataset=keep_columns(pool, signature_columns(model)).select(sample),
        data_collator=padding_collator(tokenizer),
        callbacks=[recorder] if scorer_of(config).needs_adam else [],
    )
    with_step_bar(trainer, "warm-up")
    loss = trainer.train().training_loss
    if trainer.is_world_process_zero():
        # stdout is reserved for results
        tqdm.write(named("warm-up", f"{len(sample):,} rows, mean loss {loss:.4f}"), file=sys.stderr)
    with naming(folder):
        model.save_pretrained(str(folder))
    return recorder.checkpoints
