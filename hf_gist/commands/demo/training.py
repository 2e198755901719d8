"""The trainings of the demo: stock `transformers.Trainer` runs with shared settings, from the same start."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_gist.config.warmup import WarmupSettings
from hf_gist.training.loading import fresh_lora, padding_collator
from hf_gist.utils.step_bar import with_step_bar


MOST_THREADS = 4
"""A model this small is slower on many threads than on a few, and far slower where a thread has to wait for a core that
something else is using: one core is left free."""


@contextmanager
def quiet_and_small() -> Iterator[None]:
    """Without the log lines and bars of the libraries, on a few threads; everything is as before on exit."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars, threads = not datasets.are_progress_bars_disabled(), torch.get_num_threads()
    with ExitStack() as undo, warnings.catch_warnings():
        # of one library about another, which nobody who runs a demo can act on
        warnings.simplefilter("ignore", FutureWarning)
        undo.callback(logging.set_verbosity, verbosity)
        undo.callback(logging.enable_progress_bar if bars else logging.disable_progress_bar)
        undo.callback(datasets.enable_progress_bars if dataset_bars else datasets.disable_progress_bars)
        undo.callback(torch.set_num_threads, threads)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        datasets.disable_progress_bars()
        torch.set_num_threads(max(1, min(threads - 1, MOST_THREADS)))
        yield


def build_trainer(
    model: torch.nn.Module,
    dataset: Dataset | None,
    folder: Path,
    seed: int,
    title: str = "",
    collator: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Trainer:
    """A stock `Trainer` on the CPU that saves and prints nothing.

    Args:
        model (`nn.Module`): what to train.
        dataset (`Dataset`, *optional*): what to train on; none for evaluation only.
        folder (`Path`): output folder.
        seed (`int`): seed of the order and of the dropout.
        title (`str`): name of the progress bar.
        collator (*optional*): rows to a batch.
        callbacks (`Sequence[TrainerCallback]`): beside the progress bar.
        arguments: further `TrainingArguments`.
    """
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        lr_scheduler_type="cosine",
        warmup_steps=10,
        dataloader_pin_memory=False,
        **arguments,
    )
    trainer = Trainer(
        model=model, args=settings, train_dataset=dataset, data_collator=collator, callbacks=list(callbacks)
    )
    return with_step_bar(trainer, title)


@dataclass(frozen=True)
class Bench:
    """What all fine-tunings of the demo share, so that only their rows differ.

    Args:
        base (`LlamaForCausalLM`): the pre-trained model; every run starts from a copy of it.
        tokenizer (`PreTrainedTokenizerFast`): for padding.
        test (`Dataset`): tokenised test rows.
        folder (`Path`): output folder.
        seed (`int`): seed of the adapter, the order and the dropout.
        settings (`WarmupSettings`): shape of the adapter, learning rate and batch size.
    """

    base: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    test: Dataset
    folder: Path
    seed: int
    settings: WarmupSettings

    def adapter(self) -> PeftModel:
        """A copy of the base model with a fresh LoRA; the same weights every time."""
        return fresh_lora(copy.deepcopy(self.base), self.settings, self.seed)

    def finetune(
        self, rows: Dataset, title: str, callbacks: Sequence[TrainerCallback] = (), **arguments: Any
    ) -> tuple[float, int]:
        """Train a fresh adapter on some rows.

        Args:
            rows (`Dataset`): tokenised rows.
            title (`str`): name of the progress bar.
            callbacks (`Sequence[TrainerCallback]`): for example the data selector.
            arguments: `num_train_epochs` or `max_steps`.

        Returns:
            `tuple[float, int]`: target test loss and optimizer steps.
        """
        trainer = build_trainer(
            self.adapter(),
            rows,
            self.folder,
            self.seed,
            title,
            padding_collator(self.tokenizer),
            callbacks,
            per_device_train_batch_size=self.settings.per_device_train_batch_size,
            learning_rate=self.settings.learning_rate,
            **arguments,
        )
        trainer.train()
        return self.test_loss(trainer.model), trainer.state.global_step

    def test_loss(self, model: torch.nn.Module) -> float:
        """Mean loss of an answer token on the test rows."""
        collator = padding_collator(self.tokenizer)
        trainer = build_trainer(model, None, self.folder, self.seed, collator=collator, per_device_eval_batch_size=50)
        return trainer.evaluate(self.test)["eval_loss"]
