"""Why support rows cannot be appended to the training batches of a run, or to one batch, and get their own pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.functional.token_losses import Labelled, mean_token_losses
from hf_gist.gast.groups import Group
from hf_gist.gast.joint_pass import ROW_INPUTS, backbone_of, lora_dropouts
from hf_gist.gast.support import support_mode
from hf_gist.gradients.lora import OUTSIDE_BLOCKS
from hf_gist.gradients.losses import loss_kind
from hf_gist.gradients.models import unwrapped


RANDOM_FIELDS = ("drop", "jitter")
"""Parts of the names of configuration fields that make a model random in training."""

OTHER_HEADS = ("classifier", "summary")
"""Parts of the names of those that are only about heads for classification."""

ROPE_OF_THE_BATCH = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies depend on the longest row of the batch."""


def model_obstacle(model: nn.Module, groups: Sequence[Group], unmasked: Sequence[str]) -> str | None:
    """What about a model keeps the rows from being appended; `None` if nothing does.

    Args:
        model (`nn.Module`): without the trainer's wrappers.
        groups (`Sequence[Group]`): the masked groups.
        unmasked (`Sequence[str]`): names of the trainable parameters that are not masked.
    """
    inner: Any = unwrapped(model)
    if loss_kind(model) != "causal":
        return "the model is not a causal language model"
    if unmasked or any(tracked.block == OUTSIDE_BLOCKS for group in groups for tracked in group.tracked):
        return "matrices outside of the blocks are trained"
    if backbone_of(model) is inner or inner.get_output_embeddings() is None:
        return f"{type(inner).__name__} has no backbone below its head"
    return _randomness(model, inner) or _rope(inner)


def _randomness(model: nn.Module, inner: Any) -> str | None:
    # the rows' gradient is that of a model without dropout; only that of the LoRA layers can be left out for some rows
    known = {id(module) for module in lora_dropouts(model)}
    for name, module in model.named_modules():
        if "Dropout" in type(module).__name__ and getattr(module, "p", 0.0) > 0 and id(module) not in known:
            return f"{name} drops out"
    for name, value in inner.config.get_text_config().to_dict().items():
        random = any(part in name for part in RANDOM_FIELDS) and not any(part in name for part in OTHER_HEADS)
        if random and isinstance(value, int | float) and value:
            return f"the model's config has `{name}={value}`"
    return None


def _rope(inner: Any) -> str | None:
    config = inner.config.get_text_config()
    settings = str(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    kind = next((kind for kind in ROPE_OF_THE_BATCH if kind in settings), None)
    return f"{kind} rotary embeddings depend on the longest row of the batch" if kind else None


class _Seen:
    """What the backbone and the head got and returned in one forward pass."""

    inputs: dict[str, Any]
    hidden: Tensor
    head_input: Tensor
    logits: Tensor

    def backbone(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.inputs = kwargs
        self.hidden = output["last_hidden_state"]

    def head(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.head_input = args[0]
        self.logits = output


@contextmanager
def _watching(model: nn.Module, seen: _Seen) -> Iterator[None]:
    inner: Any = unwrapped(model)
    handles = [
        backbone_of(model).register_forward_hook(seen.backbone, with_kwargs=True),
        inner.get_output_embeddings().register_forward_hook(seen.head),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_obstacle(model: nn.Module, call: Callable[..., Any], batch: dict[str, Tensor]) -> str | None:
    """What a forward pass over the first row of a batch shows: how the model uses its backbone and its head.

    Args:
        model (`nn.Module`): without the trainer's wrappers.
        call (`Callable`): the same model with them.
        batch (`dict`): a collated batch on the device.
    """
    row = {name: batch[name][:1] for name in ROW_INPUTS if name in batch}
    labels = row["input_ids"]
    if "attention_mask" in row:
        labels = labels.masked_fill(row["attention_mask"] == 0, IGNORE_INDEX)
    seen = _Seen()
    with support_mode(model, []), torch.no_grad(), _watching(model, seen):
        outputs = call(**row, labels=labels)
    return _difference(seen, outputs, labels, set(row))


def _difference(seen: _Seen, outputs: Any, labels: Tensor, names: set[str]) -> str | None:
    if not hasattr(seen, "hidden") or not hasattr(seen, "logits"):
        return "the model does not call its backbone or its head"
    unknown = [name for name, value in seen.inputs.items() if isinstance(value, Tensor) and value.dim()]
    unknown = [name for name in unknown if name not in names or seen.inputs[name].shape != labels.shape]
    if unknown:
        return f"the backbone gets {', '.join(unknown)}"
    # exactly: a soft cap changes small logits by a few units of the last place only
    if not torch.equal(seen.head_input, seen.hidden) or not torch.equal(seen.logits.float(), outputs.logits.float()):
        return "the logits are not those of the head on the last hidden states"
    labelled = Labelled.of(nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX), IGNORE_INDEX)
    loss = mean_token_losses(labelled.select(outputs.logits), labelled)[0]
    return None if torch.allclose(loss, outputs.loss.float(), rtol=1e-3) else "the loss is not a mean over tokens"


def fits(samples: dict[str, Any], support: dict[str, Any]) -> bool:
    """Whether two collated batches may be joined: both have the same inputs, all `[B, T]`."""
    names = {*ROW_INPUTS, "labels"}
    if set(samples) != set(support) or not names >= set(samples) or "input_ids" not in samples:
        return False
    for batch in (samples, support):
        shape = batch["input_ids"].shape
        if len(shape) != 2 or any(values.shape != shape for values in batch.values()):
            return False
    # without a mask, position ids that are padded with zeros look like packed rows
    return "attention_mask" in samples or "position_ids" not in samples
