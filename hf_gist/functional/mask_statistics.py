"""Statistics of the masks, for the training log."""

from dataclasses import dataclass

import torch
from torch import Tensor


def normalised_entropy(log_p: Tensor) -> Tensor:
    """Entropy of the softmax, divided by its maximum: 1 for a uniform draw, 0 for a deterministic one."""
    p = log_p.exp()
    count = (p > 0).sum(-1, dtype=torch.float32).clamp(min=2)
    return torch.special.entr(p).sum(-1) / count.log()


def layer_agreement(masks: Tensor) -> Tensor:
    """Mean share of a group's kept samples that another group keeps too, over all pairs.

    Args:
        masks (`Tensor`): `[L, B]` bool.

    Returns:
        `Tensor`: scalar; its expected value is `K/B` for independent draws, 1 for identical draws.
    """
    votes = masks.sum(0).float()
    pairs = max(len(masks) - 1, 1)
    if len(masks) < 2:
        return torch.ones((), device=masks.device)
    return (votes * (votes - 1)).sum() / (votes.sum() * pairs).clamp(min=1)


@dataclass
class MaskStatistics:
    """Running sums over the batches since the last log, kept on the device until they are read.

    Args:
        sums (`Tensor`, *optional*): `[6]` sums of mean cosine, kept fraction, entropy, layer agreement, share of groups
            that kept no sample, and the number of batches.
        may_keep_none (`bool`): whether a group may keep no sample; if not, the share of such groups is not computed, and
            its sum means nothing.
    """

    sums: Tensor | None = None
    may_keep_none: bool = False

    NAMES = ("alignment", "kept_fraction", "draw_entropy", "layer_agreement", "without_sample")

    def add(self, cosines: Tensor, masks: Tensor, log_p: Tensor, valid: Tensor) -> None:
        """Count one batch.

        Args:
            cosines (`Tensor`): `[L, B]` cosine of each sample's gradient with the support gradient.
            masks (`Tensor`): `[L, B]` bool.
            log_p (`Tensor`): `[L, B]` log-probabilities of the first draw.
            valid (`Tensor`): `[B]` bool.
        """
        count = valid.sum().clamp(min=1) * len(masks)
        one = torch.ones((), device=masks.device)
        row = torch.stack(
            [
                (cosines * valid).sum() / count,
                masks.sum() / count,
                normalised_entropy(log_p).mean(),
                layer_agreement(masks),
                (~masks.any(1)).float().mean() if self.may_keep_none else one,
                one,
            ]
        )
        # a batch without a sample that has a loss, or whose gradients overflow, does not count
        not_finite = row.sum() * 0 != 0
        row = row.masked_fill(not_finite, 0)
        self.sums = row if self.sums is None else self.sums + row

    def means(self, sums: Tensor) -> dict[str, float]:
        """Name to mean, from `sums` `[6]`, which may be summed over processes."""
        values = (sums[:-1] / sums[-1].clamp(min=1)).tolist()
        return dict(zip(self.NAMES, values, strict=True))
