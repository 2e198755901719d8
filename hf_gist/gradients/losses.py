"""Per-sample losses of a padded batch, with logits at labelled positions only."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.rows import IGNORE_INDEX
from hf_gist.functional.token_losses import Labelled, classification_losses, mean_token_losses
from hf_gist.gradients.models import is_sharded, unwrapped


LABELLED = "_labelled"
"""Key of a prepared batch: its [`Labelled`] positions; `None` for a classifier."""


def loss_kind(model: nn.Module) -> str:
    """`"causal"`, `"seq2seq"` or `"classification"`.

    Raises:
        ValueError: for a model whose loss is none of these.
    """
    base: Any = unwrapped(model)
    kind = getattr(base, "loss_type", None)
    if kind == "ForSequenceClassification":
        return "classification"
    if kind not in (None, "ForCausalLM", "ForConditionalGeneration") or not hasattr(base, "get_output_embeddings"):
        raise ValueError(
            f"{type(base).__name__} trains with the loss {kind!r}; per-sample losses are supported for causal and "
            "sequence-to-sequence language models and for sequence classification."
        )
    return "seq2seq" if base.config.is_encoder_decoder else "causal"


def count_labels(labels: Tensor) -> Tensor:
    """Number of labels other than -100 in each row, `[B]` int64; `labels` is `[B, ...]`."""
    return (labels != IGNORE_INDEX).view(len(labels), -1).sum(1)


def labelled_tokens(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Labelled tokens of each row of a batch `[B]` int64, as counted by the loss; the model is not run.

    A causal model predicts every token except the first, whose label is therefore not counted; a classifier has one
    label per row.

    Args:
        model (`nn.Module`): a peft or transformers model.
        batch (`dict`): a collated batch with `labels` `[B, T]` (`[B]` for classification); labels that a trainer has
            already shifted (`shift_labels` `[B, T]`) are counted instead, if present.

    Raises:
        ValueError: see [`loss_kind`].
    """
    kind = loss_kind(model)
    labels = batch["labels"]
    if kind == "classification":
        return torch.ones(len(labels), dtype=torch.long, device=labels.device)
    if "shift_labels" in batch:
        return count_labels(batch["shift_labels"])
    return count_labels(labels[:, 1:] if kind == "causal" else labels)


def with_positions(base: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Add position ids that make left-padded rows independent of the padding of their batch.

    Raises:
        ValueError: for left padding if the model computes its own position ids.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or bool(mask[:, 0].all()):
        return inputs
    # encoders with learned positions take position ids from a buffer
    if any(name.endswith("position_ids") for name, _ in base.named_buffers()):
        raise ValueError(
            f"{type(base).__name__} gives a left-padded row positions that depend on its batch; set "
            "`tokenizer.padding_side = 'right'`."
        )
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return inputs
    return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def _accepted(base: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the model's forward accepts; the collator of a trainer may return others too."""
    named = inspect.signature(base.forward).parameters
    return {name: value for name, value in inputs.items() if name in named}


@contextmanager
def _head_at(head: nn.Module | None, labelled: Labelled) -> Iterator[None]:
    """Pass only the labelled positions to the output head: `[B, T, d]` becomes `[1, n, d]`."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(
        lambda _, args: (labelled.select(args[0])[None], *args[1:]) if args[0].shape[:2] == labelled.shape else None
    )
    try:
        yield
    finally:
        handle.remove()


def _is_trained(head: nn.Module | None) -> bool:
    """Whether the output head is trainable: its per-sample gradients need its whole input `[B, T, d]`."""
    return head is not None and any(parameter.requires_grad for parameter in head.parameters())


def _labelled_logits(logits: Tensor, labelled: Labelled) -> Tensor:
    """Logits `[n, V]` of the labelled positions, from a model output of these or of all positions."""
    if logits.shape[:2] == (1, len(labelled.index)) and logits.shape[:2] != labelled.shape:
        # a view: indexing would allocate a full tensor of zeros in the backward pass
        return logits.squeeze(0)
    return labelled.select(logits)


def _decoder_inputs(base: Any, labels: Tensor) -> Tensor:
    """The decoder inputs of a sequence-to-sequence model: the labels `[B, T]` shifted by one.

    Raises:
        ValueError: for labels that are padded on the left.
    """
    if labels.shape[1] > 1 and bool(((labels[:, 0] == IGNORE_INDEX) & (labels[:, -1] != IGNORE_INDEX)).any()):
        raise ValueError("The labels of a sequence-to-sequence model are padded on the left; pad them on the right.")
    return base.prepare_decoder_input_ids_from_labels(labels=labels)


def prepared(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with all that [`sample_losses`] derives from labels and attention mask.

    For a batch on the host, so that the derived tensors are sent to the device with it, and the host never waits for
    the device to read them. The number of labelled tokens stays on the host.

    Args:
        model (`nn.Module`): a peft or transformers model.
        batch (`dict`): a collated batch with `labels` `[B, T]` (`[B]` for classification).

    Returns:
        `dict`: all entries of the batch, and `LABELLED`; if needed, `position_ids` or `decoder_input_ids`.

    Raises:
        ValueError: see [`loss_kind`]; also for unsupported left padding of inputs or labels.
    """
    base: Any = unwrapped(model)
    kind = loss_kind(model)
    labels = batch["labels"]
    inputs = _accepted(base, {name: value for name, value in batch.items() if name != "labels"})
    if kind != "seq2seq":
        inputs = with_positions(base, inputs)
    if kind == "classification":
        return {**batch, **inputs, LABELLED: None}
    if kind == "causal":
        # position t predicts token t + 1
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    elif "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _decoder_inputs(base, labels)
    return {**batch, **inputs, LABELLED: Labelled.of(labels, IGNORE_INDEX)}


def sample_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Each sample's own mean token loss, with logits computed at labelled positions only.

    Args:
        model (`nn.Module`): a peft or transformers model.
        batch (`dict`): a collated batch on the model's device, which may be [`prepared`].

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`, as in [`labelled_tokens`]; those of a
        token loss on the host if the batch was prepared there.

    Raises:
        ValueError: see [`prepared`].
    """
    base: Any = unwrapped(model)
    # the hooks of the outermost module gather a sharded model
    caller = model if is_sharded(model) else base
    batch = batch if LABELLED in batch else prepared(model, batch)
    inputs = _accepted(base, {name: value for name, value in batch.items() if name != "labels"})
    labelled = batch[LABELLED]
    if labelled is None:
        losses = classification_losses(caller(**inputs).logits, batch["labels"], base.config.problem_type)
        return losses, labelled_tokens(model, batch)
    head = base.get_output_embeddings()
    with _head_at(None if _is_trained(head) else head, labelled):
        logits = caller(**inputs, use_cache=False).logits
    return mean_token_losses(_labelled_logits(logits, labelled), labelled), labelled.counts
