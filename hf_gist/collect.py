"""Forward and backward passes outside the Trainer: per-sample gradients of a dataset, batch by batch, over all ranks."""

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_gist import persample
from hf_gist.hooks import reporting
from hf_gist.lora import TrackedModule, find_tracked, unwrapped


Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
Gradients = Callable[[str, Tensor], None]
"""Receives a parameter name and its per-sample gradients `[B, numel]`."""

IGNORE_INDEX = -100
ROWS_PER_BATCH_WITHOUT_LENGTHS = 8


# ---- Rows and batches ----


def signature_columns(model: nn.Module) -> list[str]:
    """The columns that `Trainer` would hand to the collator: the arguments of the model's forward and the labels."""
    return [*inspect.signature(unwrapped(model).forward).parameters, "label", "label_ids", "labels"]


def keep_columns(dataset: Any, columns: Sequence[str]) -> Any:
    """A `datasets.Dataset` or a list of dicts cut to some columns; anything else is returned as it is."""
    if isinstance(dataset, list):
        return [{name: value for name, value in row.items() if name in columns} for row in dataset]
    if not isinstance(dataset, Dataset):
        return dataset
    return dataset.select_columns([name for name in dataset.column_names if name in columns])


def read_column(dataset: Any, column: str, argument: str) -> list[Any]:
    """One column of a dataset.

    Raises:
        ValueError: naming `argument` if the dataset has no such column.
    """
    if isinstance(dataset, Dataset):
        if column in dataset.column_names:
            return list(dataset.with_format(None)[column])
        available = ", ".join(dataset.column_names)
    else:
        rows = [dataset[i] for i in range(len(dataset))]
        if all(isinstance(row, dict) and column in row for row in rows):
            return [row[column] for row in rows]
        available = ", ".join(rows[0]) if rows and isinstance(rows[0], dict) else "none"
    raise ValueError(f"`{argument}={column!r}` is not a column of the dataset. Available columns: {available}.")


def fetch_rows(dataset: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """The rows at `indices` as a list of dicts, read in one go where the dataset can."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(list(indices))
    return [dataset[i] for i in indices]


def row_lengths(dataset: Any) -> list[int] | None:
    """Tokens of every row, from `input_ids`; `None` if the rows are tokenised only by the collator."""
    if isinstance(dataset, Dataset):
        if "input_ids" not in dataset.column_names:
            return None
        return [len(ids) for ids in dataset.with_format("numpy", columns=["input_ids"])["input_ids"]]
    rows = [dataset[i] for i in range(len(dataset))]
    if not all(isinstance(row, dict) and "input_ids" in row for row in rows):
        return None
    return [len(row["input_ids"]) for row in rows]


def plan_batches(lengths: Sequence[int] | None, size: int, tokens_per_batch: int) -> list[list[int]]:
    """Batches of rows of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths (`Sequence[int]`, *optional*): tokens of every row; without them, rows are taken in order, a few at a
            time.
        size (`int`): number of rows.
        tokens_per_batch (`int`): padded tokens a batch may have; a longer row is a batch of its own.

    Returns:
        `list[list[int]]`: every row exactly once.
    """
    if lengths is None:
        step = ROWS_PER_BATCH_WITHOUT_LENGTHS
        return [list(range(start, min(start + step, size))) for start in range(0, size, step)]
    order = sorted(range(size), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > tokens_per_batch:
            batches.append([])
        batches[-1].append(index)
    return batches


def check_batch(batch: dict[str, Any], rows: int, what: str) -> None:
    """Refuse batches whose samples cannot be told apart.

    Raises:
        ValueError: for packed, padding-free or unlabelled batches, saying what to change.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"The collated batches of the {what} have no `labels` tensor, so they have no loss. Add a `labels` column "
            "(-100 where no loss is wanted) or use a collator that makes one, such as `DataCollatorForSeq2Seq`."
        )
    ids = batch.get("input_ids", labels)
    positions = batch.get("position_ids")
    mask = batch.get("attention_mask")
    restarts = False
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1:
        steps = positions[:, 1:] <= positions[:, :-1]
        restarts = bool((steps & mask[:, 1:].bool() & mask[:, :-1].bool() if mask is not None else steps).any())
    if len(ids) != rows or "cu_seq_lens_q" in batch or "seq_lengths" in batch or (restarts and mask is None):
        raise ValueError(
            f"The {what} is packed or padding-free: several examples share one row of a batch, and their gradients "
            "cannot be told apart. Set `packing=False` and `padding_free=False` (or use a padding collator)."
        )


# ---- Losses ----


def loss_kind(model: nn.Module) -> str:
    """`"causal"`, `"seq2seq"` or `"classification"`.

    Raises:
        ValueError: for a model whose loss is none of these.
    """
    base = unwrapped(model)
    kind = getattr(base, "loss_type", None)
    if kind == "ForSequenceClassification":
        return "classification"
    if kind not in (None, "ForCausalLM", "ForConditionalGeneration") or not hasattr(base, "get_output_embeddings"):
        raise ValueError(
            f"{type(base).__name__} trains with the loss {kind!r}; per-sample losses are supported for causal and "
            "sequence-to-sequence language models and for sequence classification."
        )
    return "seq2seq" if base.config.is_encoder_decoder else "causal"


def _with_positions(base: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Position ids that do not depend on the batch a left-padded row is in.

    Raises:
        ValueError: for left padding where the model numbers positions by itself.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or bool(mask[:, 0].all()):
        return inputs
    # encoders with learned positions keep a buffer of them, and number from there
    if any(name.endswith("position_ids") for name, _ in base.named_buffers()):
        raise ValueError(
            f"{type(base).__name__} gives a left-padded row other positions in every batch; set "
            "`tokenizer.padding_side = 'right'`."
        )
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return inputs
    return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def _accepted(base: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the model's forward names; a trainer's collator may carry more for its own use."""
    named = inspect.signature(base.forward).parameters
    return {name: value for name, value in inputs.items() if name in named}


@contextmanager
def _head_at(head: nn.Module | None, labelled: Tensor) -> Iterator[None]:
    """Let the output head see only the labelled positions: `[B, T, d]` becomes `[1, n, d]`."""
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(
        lambda _, args: (args[0][labelled].unsqueeze(0), *args[1:]) if args[0].shape[:2] == labelled.shape else None
    )
    try:
        yield
    finally:
        handle.remove()


def _is_trained(head: nn.Module | None) -> bool:
    """Whether the output head has per-sample gradients of its own, which need its whole input `[B, T, d]`."""
    return head is not None and any(parameter.requires_grad for parameter in head.parameters())


def _labelled_logits(logits: Tensor, labelled: Tensor) -> Tensor:
    """`[n, V]`, whether the model computed only the labelled positions or all of them."""
    if logits.shape[:2] == (1, int(labelled.sum())) and logits.shape[:2] != labelled.shape:
        return logits[0]
    return logits[labelled]


def sample_losses(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Each sample's own mean token loss, with logits computed at labelled positions only.

    Args:
        model (`nn.Module`): a peft or transformers model.
        batch (`dict`): a collated batch with `labels` `[B, T]` (`[B]` for classification).

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`.
    """
    base, kind = unwrapped(model), loss_kind(model)
    inputs = _accepted(base, {name: value for name, value in batch.items() if name != "labels"})
    labels = batch["labels"]
    if kind != "seq2seq":
        inputs = _with_positions(base, inputs)
    if kind == "classification":
        losses = persample.classification_losses(base(**inputs).logits, labels, base.config.problem_type)
        return losses, torch.ones_like(losses, dtype=torch.long)
    if kind == "causal":
        # position t predicts token t + 1
        labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    elif "decoder_input_ids" not in inputs:
        if labels.shape[1] > 1 and bool(((labels[:, 0] == IGNORE_INDEX) & (labels[:, -1] != IGNORE_INDEX)).any()):
            raise ValueError(
                "The labels of a sequence-to-sequence model are padded on the left; pad them on the right."
            )
        inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels=labels)
    labelled = labels != IGNORE_INDEX
    head = base.get_output_embeddings()
    with _head_at(None if _is_trained(head) else head, labelled):
        logits = base(**inputs, use_cache=False).logits
    sample = labelled.nonzero()[:, 0]
    return persample.mean_token_losses(_labelled_logits(logits, labelled), labels[labelled], sample, len(labels))


# ---- One pass ----


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; training flags and every random state are as before on exit, also after an error."""
    flags = {module: module.training for module in model.modules()}
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model.eval()
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def compute_dtype_context(scoring_dtype: str, device: torch.device):
    """Autocast for `"bfloat16"`, explicitly none for `"float32"`, the surrounding state for `"auto"`."""
    if scoring_dtype == "auto":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=scoring_dtype == "bfloat16")


class _Reporter:
    """Turns the `(a, d)` reports of one backward into per-parameter gradients, and checks that each came once."""

    def __init__(self, tracked: Sequence[TrackedModule], gradients: Gradients) -> None:
        self.tracked, self.gradients = tracked, gradients
        self.seen: set[TrackedModule] = set()
        self.batch_size = 0

    def start(self, batch_size: int) -> None:
        self.seen.clear()
        self.batch_size = batch_size

    def __call__(self, tracked: TrackedModule, a: Tensor, d: Tensor) -> None:
        if len(d) != self.batch_size or tracked in self.seen:
            why = (
                "is used more than once in a forward pass"
                if tracked in self.seen
                else (f"sees {len(d)} rows for a batch of {self.batch_size} samples (flattened tokens or experts)")
            )
            raise ValueError(f"{tracked.name} {why}, so its per-sample gradients cannot be taken; remove its adapter.")
        self.seen.add(tracked)
        for attribute, name in tracked.parameters.items():
            if tracked.kind == "scale":
                gradient = persample.scale_gradients(a, d)
            elif attribute == "bias":
                gradient = persample.bias_gradients(d)
            else:
                gradient = persample.weight_gradients(a, d)
            self.gradients(name, gradient.flatten(1).float())

    def finish(self) -> None:
        missing = [tracked.name for tracked in self.tracked if tracked not in self.seen]
        if missing:
            raise ValueError(
                f"No gradient reached {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}: the module is "
                "not used by the loss, or its output is detached. Remove its adapter or freeze it."
            )


def per_sample_backward(
    model: nn.Module, batch: dict[str, Any], tracked: Sequence[TrackedModule], gradients: Gradients
) -> tuple[Tensor, Tensor]:
    """One forward and one backward that hand every sample's own gradient of each tracked parameter to `gradients`.

    Args:
        model (`nn.Module`): in eval mode; `p.grad` is left alone.
        batch (`dict`): a collated batch of `B` samples on the model's device.
        tracked (`Sequence[TrackedModule]`): see [`hf_gist.lora.find_tracked`].
        gradients (`Gradients`): called with a parameter name and `[B, numel]` fp32, once per parameter.

    Returns:
        `tuple[Tensor, Tensor]`: losses `[B]` and labelled tokens `[B]`.

    Raises:
        ValueError: if a tracked module did not report exactly once.
    """
    reporter = _Reporter(tracked, gradients)
    reporter.start(len(batch["labels"]))
    with reporting(tracked, reporter):
        losses, counts = sample_losses(model, batch)
        # The sum over samples keeps every sample's gradient its own: no division by the batch's tokens.
        losses.sum().backward()
    reporter.finish()
    return losses.detach(), counts


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch as a plain dict with its tensors on `device`."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def check_dtype(model: nn.Module, scoring_dtype: str) -> None:
    """Refuse to call fp32 what is not.

    Raises:
        ValueError: for `scoring_dtype="float32"` on weights of another floating dtype.
    """
    dtypes = {p.dtype for p in model.parameters() if p.dtype.is_floating_point}
    if scoring_dtype == "float32" and dtypes != {torch.float32}:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(
            f"`scoring_dtype='float32'`, but the model's weights are {names}. Load it with `dtype=torch.float32`, or set "
            "`scoring_dtype='auto'`."
        )


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


# ---- A whole dataset ----


@dataclass
class RowFacts:
    """What a pass over a dataset learnt about each of its `N` rows.

    Args:
        losses (`Tensor`): mean token loss `[N]` float32.
        label_tokens (`Tensor`): labelled tokens `[N]` int64.
        norms (`Tensor`): gradient norms `[N]` float32, NaN or Inf where the gradient is not finite.
    """

    losses: Tensor
    label_tokens: Tensor
    norms: Tensor


@dataclass(frozen=True)
class Pass:
    """Everything a pass over a dataset needs; the same for targets and candidates.

    Args:
        model (`nn.Module`): a peft model.
        collator (`Collator`): rows to a padded batch.
        tokens_per_batch (`int`): see [`plan_batches`].
        scoring_dtype (`str`): see [`GISTConfig`].
        progress (`bool`): show a progress bar on the main process.
    """

    model: nn.Module
    collator: Collator
    tokens_per_batch: int
    scoring_dtype: str = "auto"
    progress: bool = True

    def run(self, dataset: Any, what: str, new_sink: Callable[[list[int]], Gradients]) -> RowFacts:
        """One pass over this rank's share of the batches; the facts of all rows are returned on every rank.

        Args:
            dataset: tokenised rows.
            what (`str`): name of the dataset for messages and the progress bar.
            new_sink: makes, for the row indices of a batch, the receiver of its gradients.
        """
        state, device = PartialState(), model_device(self.model)
        tracked = find_tracked(self.model)
        size = len(dataset)
        facts = RowFacts(torch.zeros(size), torch.zeros(size, dtype=torch.long), torch.zeros(size))
        batches = plan_batches(row_lengths(dataset), size, self.tokens_per_batch)
        mine = batches[state.process_index :: state.num_processes]
        with ExitStack() as stack:
            stack.enter_context(scoring_mode(self.model))
            stack.enter_context(compute_dtype_context(self.scoring_dtype, device))
            bar = stack.enter_context(
                tqdm(total=size, desc=what, unit="row", disable=not (self.progress and state.is_main_process))
            )
            for indices in mine:
                batch = self.collator(fetch_rows(dataset, indices))
                check_batch(batch, len(indices), what)
                self._one(to_device(batch, device), tracked, torch.tensor(indices), facts, new_sink(indices))
                bar.update(min(len(indices) * state.num_processes, size - bar.n))
        for values in (facts.losses, facts.label_tokens, facts.norms):
            sum_over_ranks(values)
        return facts

    def _one(self, batch, tracked, rows, facts: RowFacts, sink: Gradients) -> None:
        squares = torch.zeros(len(rows), dtype=torch.float64, device=model_device(self.model))

        def gradients(name: str, values: Tensor) -> None:
            squares.add_(values.square().sum(1))
            sink(name, values)

        losses, counts = per_sample_backward(self.model, batch, tracked, gradients)
        facts.losses[rows] = losses.cpu()
        facts.label_tokens[rows] = counts.cpu()
        facts.norms[rows] = squares.sqrt().float().cpu()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place; every row is non-zero on one rank only, so the sum is exact."""
    state = PartialState()
    if state.num_processes > 1:
        values.copy_(reduce(values.to(state.device), "sum"))
    return values


def collect_gradients(run: Pass, dataset: Any, what: str) -> tuple[dict[str, Tensor], RowFacts]:
    """Per-sample gradients of a small dataset, whole.

    Returns:
        `tuple`: parameter name to gradients `[M, numel]` fp32 on the model's device, and the facts of the rows.
    """
    device = model_device(run.model)
    gradients = {
        name: torch.zeros(len(dataset), getattr(tracked.module, attribute).numel(), device=device)
        for tracked in find_tracked(run.model)
        for attribute, name in tracked.parameters.items()
    }

    def new_sink(indices: list[int]) -> Gradients:
        rows = torch.tensor(indices, device=device)
        return lambda name, values: gradients[name].index_copy_(0, rows, values)

    facts = run.run(dataset, what, new_sink)
    for values in gradients.values():
        sum_over_ranks(values)
    return gradients, facts


def collect_coordinates(run: Pass, dataset: Any, basis: dict[str, Tensor], what: str) -> tuple[Tensor, RowFacts]:
    """Coordinates of every row's gradient in a basis; no gradient outlives its module's backward.

    Args:
        run (`Pass`): how to go over the rows.
        dataset: tokenised rows.
        basis (`dict[str, Tensor]`): parameter name to its slice of the basis `[q, numel]`.
        what (`str`): name for messages and the progress bar.

    Returns:
        `tuple[Tensor, RowFacts]`: coordinates `[N, q]` float32 on the CPU, and the facts of the rows.
    """
    rank = len(next(iter(basis.values())))
    coordinates = torch.zeros(len(dataset), rank)

    def new_sink(indices: list[int]) -> Gradients:
        total = torch.zeros(len(indices), rank, dtype=torch.float64, device=model_device(run.model))
        remaining = set(basis)

        def sink(name: str, values: Tensor) -> None:
            total.add_(values @ basis[name].T)
            remaining.discard(name)
            if not remaining:
                coordinates[indices] = total.float().cpu()

        return sink

    facts = run.run(dataset, what, new_sink)
    return sum_over_ranks(coordinates), facts


# ---- The oracle ----


def per_sample_gradients_reference(
    model: nn.Module, dataset: Any, data_collator: Collator
) -> list[dict[str, Tensor] | None]:
    """Per-sample gradients by the slow, obvious way: one forward and backward for every row, with the model's own loss.

    For anyone to check the fast path on their own model. The model is put in eval mode for the duration.

    Args:
        model (`nn.Module`): a model with trainable parameters.
        dataset: tokenised rows.
        data_collator (`Callable`): rows to a batch; called with one row at a time.

    Returns:
        `list[dict[str, Tensor] | None]`: for each row, parameter name to its gradient in the parameter's shape, as
        fp32 on the CPU; `None` for a row without a labelled token.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    results: list[dict[str, Tensor] | None] = []
    with scoring_mode(model):
        for index in range(len(dataset)):
            batch = to_device(data_collator([dataset[index]]), model_device(model))
            labels = batch["labels"]
            shifted = labels[:, 1:] if labels.dim() == 2 and loss_kind(model) == "causal" else labels
            if labels.dim() == 2 and not (shifted != IGNORE_INDEX).any():
                results.append(None)
                continue
            loss = unwrapped(model)(**batch).loss
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            results.append(
                {
                    name: (torch.zeros_like(p) if g is None else g).detach().float().cpu()
                    for (name, p), g in zip(parameters.items(), gradients, strict=True)
                }
            )
    return results
