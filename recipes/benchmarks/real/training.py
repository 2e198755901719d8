"""Training runs of `real_model.py` that differ only in their rows, and their tests."""

import copy
import tempfile
from dataclasses import dataclass

import torch
from frontier_parts.flags import lora_of
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from hf_gist.commands.bench import quiet_arguments
from hf_gist.commands.testing.choices import ACCURACY_PER_TOKEN, ACCURACY_SUM
from hf_gist.commands.testing.measured import Measured
from hf_gist.data.rows import Collator
from hf_gist.gradients.collect import row_losses
from hf_gist.gradients.modes import scoring_precision
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.step_bar import with_step_bar
from real.clock import Clock
from real.data import Data


def load_model(folder, options):
    """A model in the dtype of the options, in eval mode; see [`Experiment.to_device`]."""
    dtype = getattr(torch, options.dtype)
    attention = options.attn_implementation
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def compute_dtype(options):
    """Of scoring and testing: autocast to bfloat16, or the model's own."""
    return "bfloat16" if options.dtype == "bfloat16" else "auto"


def train(base, rows, collator, options, seed, passes, trainer=Trainer, **more):
    """A new LoRA trained on some rows.

    Args:
        base (`PreTrainedModel`): the base model, which is copied.
        rows (`Dataset`): tokenised rows to train on.
        collator (`Collator`): rows to a padded batch.
        options (`Namespace`): learning rate, batch size, LoRA modules, device and dtype.
        seed (`int`): of the LoRA and of the order.
        passes (`int`): passes over the rows.
        trainer (`type`): the stock Trainer, or a subclass.
        more: its further arguments.

    Returns:
        `PeftModel`: the trained model.
    """
    settings = lora_of(options)
    model = fresh_lora(copy.deepcopy(base), settings, seed)
    # several processes may train at the same time, and GASTTrainer writes files
    with tempfile.TemporaryDirectory() as folder:
        arguments = quiet_arguments(
            folder,
            seed=seed,
            num_train_epochs=passes,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=options.rows_at_once,
            gradient_accumulation_steps=settings.per_device_train_batch_size // options.rows_at_once,
            use_cpu=options.device == "cpu",
            bf16=options.dtype == "bfloat16",
        )
        data = rows.select_columns(["input_ids", "labels"])
        made = trainer(model, arguments, train_dataset=data, data_collator=collator, **more)
        with_step_bar(made, "training").train()
    return model


def measured(choices, losses, counts):
    """Means over the test rows with their standard errors, and the values of every row as text.

    Args:
        choices (`Choices`): the `C` choices of the test rows.
        losses (`Tensor`): mean token loss of each choice `[C]`.
        counts (`Tensor`): labelled tokens of each choice `[C]`.
    """
    found = {"test_rows": len(choices.sizes)}
    accuracies = choices.accuracies(losses, counts)
    values = {
        "loss": Measured.mean_of(losses[choices.right].tolist()),
        "accuracy_by_sum": accuracies[ACCURACY_SUM],
        "accuracy_by_mean": accuracies[ACCURACY_PER_TOKEN],
    }
    for name, each in values.items():
        found[name] = each.value
        found[f"{name}_error"] = each.standard_error or 0.0
        found[f"{name}_rows"] = " ".join(f"{value:.6g}" for value in each.rows)
    return found


@dataclass(frozen=True)
class Bench:
    """Trains a new LoRA on some rows of the pool, and tests models.

    Args:
        options (`Namespace`): of the script.
        base (`PreTrainedModel`): the base model.
        data (`Data`): pool and tests.
        collator (`Collator`): rows to a padded batch.
        clock (`Clock`): learns how long training and testing take.
    """

    options: object
    base: PreTrainedModel
    data: Data
    collator: Collator
    clock: Clock

    def train(self, rows, seed, passes, **more):
        """A model trained on some rows of the pool, and the seconds; see [`train`]."""
        with self.clock.timing("train", len(rows) * passes) as seconds:
            model = train(self.base, self.data.pool.select(rows), self.collator, self.options, seed, passes, **more)
        return model, seconds[0]

    def test(self, model, name):
        """Results of a model on a test set, with the seconds they took."""
        choices = self.data.tests[name]
        precision = scoring_precision(model, compute_dtype(self.options))
        with self.clock.timing("test", len(choices.rows)) as seconds, precision:
            losses, counts = row_losses(model, choices.rows, self.collator, self.options.tokens_per_batch)
        return measured(choices, losses, counts) | {"test_seconds": seconds[0]}

    def fits(self, rows, passes, names):
        """Whether a training run with its tests fits into the time left."""
        answers = sum(len(self.data.tests[name].rows) for name in names)
        return self.clock.fits(train=rows * passes, test=answers)
