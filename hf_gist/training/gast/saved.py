"""`save_support_gradient`: computes a support gradient once, for any number of GAST runs."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer

from hf_gist.config.gast import SAVED
from hf_gist.data.rows import fetch_rows
from hf_gist.gast.groups import Group, find_groups
from hf_gist.gast.loss_weights import loss_weights
from hf_gist.gast.support import support_mode
from hf_gist.training.gast.setup import sample_weighting, support_rows_of
from hf_gist.training.gast.support import mean_gradient
from hf_gist.training.losses.side_effects import without_metrics
from hf_gist.utils.disk import write


def save_support_gradient(trainer: Trainer, dataset: Any, file: str | os.PathLike) -> None:
    """Write the mean gradient of the samples of a dataset, for `GASTConfig(support=file)`.

    It is the mean over the samples of the gradients of their own mean losses, without dropout, at the current adapter:
    call this before `trainer.train()`, or with a trainer whose adapter was warmed up. The file has a tensor for each
    trainable parameter with per-sample gradients, by its name in `model.named_parameters()`. Call it on every process.

    Args:
        trainer (`Trainer`): with a peft model; a `Trainer` or TRL's `SFTTrainer`, with or without GAST. Its collator,
            its preparation of rows and its loss are used; its gradients and random states are not changed.
        dataset: samples in the format of the training set.
        file (`str` or `PathLike`): ends in `.safetensors`.

    Raises:
        ValueError: if the file has another ending, the model or the loss is not supported, or no sample has a loss.
    """
    path = Path(file)
    if path.suffix != SAVED or not path.parent.is_dir():
        raise ValueError(f"`file={str(file)!r}` must be a path in an existing folder that ends in {SAVED}.")
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    groups, unmasked = _groups(model)
    rows, collator = support_rows_of(trainer, dataset, "dataset")
    untracked = [parameter for name, parameter in model.named_parameters() if name in unmasked]
    total = _Sum()
    size = trainer.args.per_device_train_batch_size
    with support_mode(model, untracked), without_metrics(trainer):
        weights_of = _weights_of(trainer, model)
        for start in range(0, len(rows), size):
            batch = collator(fetch_rows(rows, list(range(start, min(start + size, len(rows))))))
            total.add(*mean_gradient(trainer, model, groups, trainer._prepare_inputs(batch), weights_of))
    tensors = total.mean(1.0 if trainer.accelerator.scaler is None else trainer.accelerator.scaler.get_scale())
    if trainer.accelerator.is_main_process:
        write(path, lambda name: save_file(tensors, name))
    trainer.accelerator.wait_for_everyone()


def _groups(model: nn.Module) -> tuple[list[Group], list[str]]:
    """All parameters with per-sample gradients, and the names of the other trainable ones."""
    try:
        return find_groups(model, "model", "masked")
    except ValueError:
        # embeddings outside the blocks, which GAST does not mask either
        return find_groups(model, "model", "unmasked")


def _weights_of(trainer: Any, model: nn.Module) -> Any:
    """From a batch to the weights `[B]` of its samples in the trainer's loss."""
    if hasattr(trainer, "sample_weights"):
        return trainer.sample_weights
    weighting = sample_weighting(trainer, trainer.args.seed)
    return lambda inputs: loss_weights(inputs, model, weighting)


class _Sum:
    """The sum over samples of their gradients."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.samples = 0

    def add(self, mean: dict[str, Tensor], samples: Tensor) -> None:
        """Add the mean gradient of a number of samples."""
        count = int(samples)
        self.samples += count
        for name, value in mean.items():
            more = count * value.float()
            self.gradients[name] = self.gradients[name] + more if name in self.gradients else more

    def mean(self, scale: float) -> dict[str, Tensor]:
        """The mean on the CPU, of gradients of a loss times `scale`.

        Raises:
            ValueError: if no sample has a loss, or a value is not finite.
        """
        if not self.samples:
            raise ValueError("No row of `dataset` has a labelled token (a label other than -100) after truncation.")
        means = {name: (total / (self.samples * scale)).cpu().contiguous() for name, total in self.gradients.items()}
        for name, value in means.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"The gradient of {name} is not finite. Compute it in float32 or with `bf16=True`.")
        return means
