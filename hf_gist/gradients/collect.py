"""Passes over a dataset that collect vectors, coordinates or losses."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.batches import plan_batches
from hf_gist.data.rows import Collator, fetch_rows, row_lengths
from hf_gist.gradients.losses import labelled_tokens, prepared, sample_losses
from hf_gist.gradients.models import model_device, reshard, send, to_device
from hf_gist.gradients.modes import scoring_mode
from hf_gist.gradients.partial import Shards
from hf_gist.gradients.passes import DatasetPass, RowFacts
from hf_gist.gradients.processes import sum_over_ranks
from hf_gist.gradients.vectors import Gradients, GradientVectors, LossesOnly, Vectors


def collect_vectors(
    dataset_pass: DatasetPass, dataset: Any, what: str, vectors: Vectors | None = None
) -> tuple[dict[str, Tensor], RowFacts]:
    """The vectors of all rows of a small dataset; by default per-sample gradients.

    Returns:
        `tuple`: part (parameter name) to values `[M, n]` fp32 on the device of the basis, and the [`RowFacts`].
    """
    vectors = vectors or GradientVectors(dataset_pass.model)
    device = dataset_pass.basis_device or model_device(dataset_pass.model)
    gradients = {name: torch.zeros(len(dataset), size, device=device) for name, size in vectors.sizes.items()}

    def new_sink(indices: list[int]) -> Gradients:
        rows = send(torch.tensor(indices), device)

        def sink(name: str, values: Tensor) -> None:
            gradients[name].index_copy_(0, rows, values.to(device))

        return sink

    facts = dataset_pass.scan(dataset, what, vectors, new_sink=new_sink)
    for values in gradients.values():
        sum_over_ranks(values)
    return gradients, facts


def collect_losses(dataset_pass: DatasetPass, dataset: Any, what: str) -> RowFacts:
    """Loss and labelled tokens of every row, from a forward pass in eval mode; a row without a label has the loss 0.

    The loss is that of the pass; a trainer's own needs `one_by_one`.

    Args:
        dataset_pass (`DatasetPass`): how the rows are processed.
        dataset: tokenised rows.
        what (`str`): name for messages and the progress bar.
    """
    facts = dataset_pass.scan(dataset, what, LossesOnly())
    reshard(dataset_pass.model)
    return facts


def collect_coordinates(
    dataset_pass: DatasetPass,
    dataset: Any,
    basis: dict[str, Tensor],
    what: str,
    vectors: Vectors | None = None,
    shards: Shards | None = None,
) -> RowFacts:
    """Coordinates of every row's vector in a basis; gradients are projected and freed module by module.

    Args:
        dataset_pass (`DatasetPass`): how the rows are processed.
        dataset: tokenised rows.
        basis (`dict[str, Tensor]`): part (parameter name) to its slice of the basis `[q, n]`.
        what (`str`): name for messages and the progress bar.
        vectors (`Vectors`, *optional*): row representation; by default the gradient.
        shards (`Shards`, *optional*): see [`DatasetPass.scan`].
    """
    return dataset_pass.scan(dataset, what, vectors or GradientVectors(dataset_pass.model), basis=basis, shards=shards)


def row_losses(model: nn.Module, rows: Any, collator: Collator, tokens_per_batch: int = 8192) -> tuple[Tensor, Tensor]:
    """Every row's mean token loss and its labelled tokens, in eval mode and without gradients.

    Args:
        model (`nn.Module`): a peft or transformers model.
        rows: tokenised rows.
        collator (`Collator`): rows to a padded batch.
        tokens_per_batch (`int`): most tokens of a batch, padding included.

    Returns:
        `tuple[Tensor, Tensor]`: losses `[N]` fp64 and labelled tokens `[N]` int64 on the host. A row without a labelled
        token has a loss of 0, which means nothing.
    """
    device = model_device(model)
    losses = torch.zeros(len(rows), dtype=torch.float64, device=device)
    counts = torch.zeros(len(rows), dtype=torch.long)
    with scoring_mode(model), torch.no_grad():
        for indices in plan_batches(row_lengths(rows), len(rows), tokens_per_batch):
            batch = collator(fetch_rows(rows, indices))
            values, _ = sample_losses(model, to_device(prepared(model, batch), device))
            losses[send(torch.tensor(indices), device)] = values.double()
            counts[indices] = labelled_tokens(model, batch)
    return losses.cpu(), counts


def mean_loss(model: nn.Module, rows: Any, collator: Collator, tokens_per_batch: int = 8192) -> float:
    """Mean over the rows of each row's mean token loss; long answers do not weigh more than short ones.

    Rows without a labelled token have no loss and are skipped.

    Args:
        model (`nn.Module`): see [`row_losses`].
        rows: see [`row_losses`].
        collator (`Collator`): see [`row_losses`].
        tokens_per_batch (`int`): see [`row_losses`].

    Raises:
        ValueError: if no row has a labelled token.
    """
    return labelled_losses(*row_losses(model, rows, collator, tokens_per_batch)).mean().item()


def labelled_losses(losses: Tensor, counts: Tensor) -> Tensor:
    """The losses of the rows that have a labelled token `[n]`, from those of [`row_losses`].

    Args:
        losses (`Tensor`): of all rows `[N]`.
        counts (`Tensor`): their labelled tokens `[N]`.

    Raises:
        ValueError: if no row has one.
    """
    if not bool((counts > 0).any()):
        raise ValueError(f"None of the {len(counts)} rows has a labelled token, so there is no loss to measure.")
    return losses[counts > 0]
