"""One training of a comparison: a fresh LoRA, stock `Trainer`, the rows of an arm; then the test losses."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.rows import Collator
from hf_gist.gradients.collect import mean_loss
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.step_bar import with_step_bar


@dataclass(frozen=True)
class Bench:
    """What all trainings of a comparison share, so that only their rows differ.

    Args:
        base (`nn.Module`): the base model; every training starts from a copy of it.
        collator (`Collator`): rows to a padded batch.
        tests (`dict[str, Dataset]`): name to tokenised test rows.
        settings (`WarmupSettings`): LoRA, learning rate and batch size.
        folder (`Path`): output folder of the Trainer, which saves nothing.
    """

    base: torch.nn.Module
    collator: Collator
    tests: dict[str, Dataset]
    settings: WarmupSettings
    folder: Path

    def losses(self, model: torch.nn.Module) -> dict[str, float]:
        """Mean loss per row of every test set."""
        return {f"loss_{name}": mean_loss(model, rows, self.collator) for name, rows in self.tests.items()}

    def train(self, rows: Dataset, title: str, seed: int, epochs: float, max_steps: int) -> dict[str, float]:
        """Train on some rows and evaluate.

        Args:
            rows (`Dataset`): tokenised rows with `input_ids` and `labels`.
            title (`str`): of the progress bar.
            seed (`int`): of the LoRA, the order and the dropout.
            epochs (`float`): passes over the rows.
            max_steps (`int`): optimizer steps instead of passes, if above 0.

        Returns:
            `dict[str, float]`: losses, steps, tokens trained on and seconds.
        """
        model = fresh_lora(copy.deepcopy(self.base), self.settings, seed)
        arguments = TrainingArguments(
            output_dir=str(self.folder),
            per_device_train_batch_size=self.settings.per_device_train_batch_size,
            learning_rate=self.settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            num_train_epochs=epochs,
            max_steps=max_steps,
            train_sampling_strategy="group_by_length",
            include_num_input_tokens_seen="non_padding",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = with_step_bar(Trainer(model, arguments, train_dataset=rows, data_collator=self.collator), title)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        return self.losses(model) | {
            "steps": trainer.state.global_step,
            "train_tokens": int(trainer.state.num_input_tokens_seen),
            "train_seconds": round(seconds, 2),
        }
