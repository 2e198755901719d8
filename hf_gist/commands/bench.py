"""Training runs that differ only in their rows: a new LoRA on the same base model, a stock `Trainer`, test sets."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.rows import Collator
from hf_gist.training.loading import fresh_lora
from hf_gist.training.warmup import rising_steps
from hf_gist.utils.step_bar import with_step_bar


Result = TypeVar("Result")
"""What is measured of a model on one test set."""


def quiet_arguments(folder: Path, **more: Any) -> TrainingArguments:
    """Arguments of a `Trainer` that saves, logs and reports nothing, with a cosine schedule.

    Args:
        folder (`Path`): its output folder.
        more: further fields of `TrainingArguments`; they override the ones set here.
    """
    quiet: dict[str, Any] = {
        "output_dir": str(folder),
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "dataloader_pin_memory": torch.cuda.is_available(),
        # as in the warm-up, after which the same base model is trained
        "use_cpu": torch.backends.mps.is_available(),
    }
    return TrainingArguments(**(quiet | more))


@dataclass(frozen=True)
class Trained(Generic[Result]):
    """Measurements of one training run of a [`Bench`].

    Args:
        results (`dict`): what was measured, by the name of the test set.
        steps (`int`): optimizer steps.
        tokens (`int`): tokens trained on, without padding; 0 unless `arguments` of the bench enables the count.
        seconds (`float`): wall time of `train()`.
    """

    results: dict[str, Result]
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Bench(Generic[Result]):
    """The settings that several training runs share, so that only their rows differ.

    Args:
        base (`PreTrainedModel`): the base model; every run starts from a copy of it.
        collator (`Collator`): rows to a padded batch.
        tests (`dict`): name to test set, as `measure` takes it.
        settings (`WarmupSettings`): LoRA, learning rate and batch size.
        folder (`Path`): output folder of the `Trainer`.
        measure (`Callable`): model, test set and collator to what is measured.
        arguments (`dict`): further `TrainingArguments` of every run.
    """

    base: PreTrainedModel
    collator: Collator
    tests: dict[str, Any]
    settings: WarmupSettings
    folder: Path
    measure: Callable[[torch.nn.Module, Any, Collator], Result]
    arguments: dict[str, Any] = field(default_factory=dict)

    def results(self, model: torch.nn.Module) -> dict[str, Result]:
        """What is measured of a model, by the name of the test set."""
        return {name: self.measure(model, test, self.collator) for name, test in self.tests.items()}

    def train(
        self, rows: Dataset, title: str, seed: int, callbacks: Sequence[TrainerCallback] = (), **arguments: Any
    ) -> Trained[Result]:
        """Train a new LoRA on some rows and evaluate it.

        Args:
            rows (`Dataset`): tokenised rows with `input_ids` and `labels`.
            title (`str`): of the progress bar.
            seed (`int`): of the LoRA, the order and the dropout.
            callbacks (`Sequence[TrainerCallback]`): for example the data selector.
            arguments: the length of the training: `num_train_epochs` or `max_steps`.
        """
        model = fresh_lora(copy.deepcopy(self.base), self.settings, seed)
        trainer = Trainer(
            model,
            self._training_arguments(len(rows), seed, arguments),
            train_dataset=rows,
            data_collator=self.collator,
            callbacks=list(callbacks),
        )
        with_step_bar(trainer, title)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        state = trainer.state
        return Trained(self.results(model), state.global_step, int(state.num_input_tokens_seen), round(seconds, 2))

    def _training_arguments(self, rows: int, seed: int, length: dict[str, Any]) -> TrainingArguments:
        batch = self.settings.per_device_train_batch_size
        steps = length.get("max_steps", -1)
        if steps <= 0:
            steps = math.ceil(math.ceil(rows / batch) * length["num_train_epochs"])
        more = self.arguments | length
        if "warmup_steps" in more:
            more["warmup_steps"] = rising_steps(more["warmup_steps"], steps)
        return quiet_arguments(
            self.folder,
            seed=seed,
            per_device_train_batch_size=batch,
            learning_rate=self.settings.learning_rate,
            **more,
        )
