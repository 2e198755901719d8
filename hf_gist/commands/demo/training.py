"""The training runs of the demo: on the CPU, with few threads and without the output of the libraries."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.utils import logging

from hf_gist.commands.bench import Bench, quiet_arguments
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.rows import Collator
from hf_gist.training.loading import padding_collator
from hf_gist.utils.step_bar import with_step_bar


MOST_THREADS = 4
"""A model this small is slower on many threads than on a few, and far slower if a thread has to wait for a core that
another process uses: one core is left free."""

ON_CPU = {"use_cpu": True, "dataloader_pin_memory": False}
TARGET_TEST = "target"
"""Name of the one test set."""


@contextmanager
def quiet_and_small() -> Iterator[None]:
    """Disable the log lines and progress bars of the libraries and use few threads; undone on exit."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    dataset_bars = not datasets.are_progress_bars_disabled()
    threads = torch.get_num_threads()
    with ExitStack() as undo, warnings.catch_warnings():
        # these warnings are about calls between libraries, which the user of the demo cannot change
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


def answer_loss(model: torch.nn.Module, rows: Dataset, collator: Collator, folder: Path) -> float:
    """Mean loss of an answer token, as `Trainer.evaluate` measures it.

    Args:
        model (`nn.Module`): the model.
        rows (`Dataset`): tokenised test rows.
        collator (`Collator`): rows to a padded batch.
        folder (`Path`): output folder of the `Trainer`.
    """
    arguments = quiet_arguments(folder, per_device_eval_batch_size=50, **ON_CPU)
    trainer = with_step_bar(Trainer(model, arguments, data_collator=collator), "evaluation")
    return trainer.evaluate(rows)["eval_loss"]


def demo_bench(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Dataset,
    folder: Path,
    settings: WarmupSettings,
) -> Bench[float]:
    """The model, test rows and settings that all fine-tuning runs of the demo share.

    Args:
        base (`PreTrainedModel`): the pre-trained model.
        tokenizer (`PreTrainedTokenizerBase`): for padding.
        test (`Dataset`): tokenised test rows.
        folder (`Path`): output folder.
        settings (`WarmupSettings`): shape of the adapter, learning rate and batch size.
    """
    collator = padding_collator(tokenizer)
    loss = partial(answer_loss, folder=folder)
    arguments = ON_CPU | {"warmup_steps": 10}
    return Bench(base, collator, {TARGET_TEST: test}, settings, folder, loss, arguments)
