"""Reference implementation of per-sample gradients: one forward and one backward pass per row."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_gist.data.rows import Collator
from hf_gist.gradients.losses import labelled_tokens
from hf_gist.gradients.models import model_device, to_device, unwrapped
from hf_gist.gradients.modes import scoring_mode


def per_sample_gradients_reference(
    model: nn.Module, dataset: Any, data_collator: Collator
) -> list[dict[str, Tensor] | None]:
    """Per-sample gradients from one forward and backward pass per row, with the model's own loss.

    Slow; use it to check the fast implementation on your own model. The model is in eval mode during the call.

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
            if batch["labels"].dim() == 2 and not labelled_tokens(model, batch).any():
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
