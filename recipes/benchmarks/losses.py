"""The measure that the quality benchmarks share."""

import torch
from datasets import Dataset

from hf_gist.collect import to_device
from hf_gist.losses import sample_losses
from hf_gist.rows import Collator, fetch_rows, plan_batches, row_lengths


def mean_loss(model: torch.nn.Module, rows: Dataset, collator: Collator, tokens_per_batch: int = 8192) -> float:
    """Mean over the rows of each row's own mean token loss, in eval mode."""
    model.eval()
    total, device = 0.0, next(model.parameters()).device
    with torch.no_grad():
        for batch in plan_batches(row_lengths(rows), len(rows), tokens_per_batch):
            losses, _ = sample_losses(model, to_device(collator(fetch_rows(rows, batch)), device))
            total += losses.sum().item()
    return total / len(rows)
