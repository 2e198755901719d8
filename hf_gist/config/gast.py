"""`GASTConfig`: which samples of a batch update which layer."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_gist.config.base import BaseConfig, Rule, fits_fraction_or_count


@dataclass(frozen=True, kw_only=True)
class GASTConfig(BaseConfig):
    """Which samples of a batch update which layer.

    Args:
        keep (`int` or `float`, defaults to `0.5`): how many samples of a per-device batch update a layer: 0.5 is a
            fraction of the batch, 8 is a count (paper: 8 of 16). A larger value masks less.
        mode (`str`, defaults to `"stochastic"`): how the kept samples are chosen from the alignments. `"stochastic"`
            draws `K` samples without replacement from the softmax of the standardised alignments (the paper's method);
            `"random"` draws uniformly (in the paper it already gives most of the gain); `"topk"` takes the best
            aligned samples, which in the paper is far worse than no mask; `"all"` masks nothing: results are
            bit-identical to those of the stock `Trainer`.
        temperature (`float`, defaults to `1.0`): divides the standardised alignments before the softmax. Large values
            approach `"random"`, small values `"topk"`.
        support (`str`, defaults to `"dataset"`): source of the support gradient: `"dataset"`, a small batch of the
            support set (the paper's method), or `"momentum"`, the optimizer's first moment, which needs no support
            samples (not in the paper). Until the optimizer has a first moment, the draw is uniform. On a GPU, a
            support batch is appended to the training batch where that is exact; elsewhere it gets its own pass.
        support_batch_size (`int`, defaults to `4`): support samples per process in one support gradient. More of them
            make it less noisy, and each step more expensive.
        support_every (`int`, defaults to `1`): compute a new support gradient of the support set every this many
            optimizer steps; a larger value costs less. All batches of an accumulated step use the same support
            gradient.
        group_by (`str`, defaults to `"block"`): matrices that share a mask: those of a transformer `"block"` (the
            paper's method), or those of one adapted `"module"`.
        outside_blocks (`str`, defaults to `"unmasked"`): trainable matrices outside the repeated blocks (embeddings,
            heads, `modules_to_save`): `"unmasked"` trains them on the whole batch, `"masked"` gives them one
            mask.
        rescale (`bool`, defaults to `True`): multiply the kept gradients by `B / K`, so that the step has the
            same scale as with a mean over the batch. `False` lowers the effective learning rate.
        start_step (`int`, defaults to `0`): first optimizer step that is masked. Set it to mask only after the
            warm-up of the learning rate.
        source_column (`str`, *optional*): column of the training set that the report groups samples by. By default
            it groups them by number of labelled tokens.
        seed (`int`, defaults to `42`): seed of the draws and of the order of the support set.

    Raises:
        ValueError: naming every field with a wrong type or a value out of range.
    """

    FILE: ClassVar[str] = "gast_config.json"

    keep: int | float = 0.5
    mode: Literal["stochastic", "random", "topk", "all"] = "stochastic"
    temperature: float = 1.0
    support: Literal["dataset", "momentum"] = "dataset"
    support_batch_size: int = 4
    support_every: int = 1
    group_by: Literal["block", "module"] = "block"
    outside_blocks: Literal["unmasked", "masked"] = "unmasked"
    rescale: bool = True
    start_step: int = 0
    source_column: str | None = None
    seed: int = 42

    def rules(self) -> list[Rule]:
        """See [`BaseConfig`]."""
        return [
            ("keep", fits_fraction_or_count(self.keep), "a fraction in (0, 1] or a count of at least 1"),
            ("temperature", math.isfinite(self.temperature) and self.temperature > 0, "finite and above 0"),
            ("support_batch_size", self.support_batch_size >= 1, "at least 1"),
            ("support_every", self.support_every >= 1, "at least 1"),
            ("start_step", self.start_step >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
