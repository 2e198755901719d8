"""`GASTConfig`: which samples of a batch update which layer."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

from hf_gist.config.base import BaseConfig, Rule, fits_fraction_or_count


KEEP = 0.5
SUPPORT_BATCH_SIZE = 4

SUPPORTS = ("dataset", "momentum", "batch")
"""Sources of the support gradient other than a file."""

SAVED = ".safetensors"
"""How the path of a saved support gradient ends."""

A_SUPPORT = f"one of {', '.join(map(repr, SUPPORTS))}, or a path that ends in {SAVED}"


def _is_saved(support: str) -> bool:
    return support.endswith(SAVED) and len(support) > len(SAVED)


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
            bit-identical to those of the stock `Trainer`; `"positive"` keeps every sample whose alignment is positive (the
            set `D+` of the paper's theory), so that `K` varies, and a layer without such a sample is not updated: its
            gradient is zero.
        threshold (`float`, defaults to `0.0`): with `mode="positive"`, a sample is kept if the cosine of its gradient
            with the support gradient is above this. The cosine depends neither on the scale of the loss nor on the
            other samples of the batch; at 0 it has the sign of the alignment.
        temperature (`float`, defaults to `1.0`): divides the standardised alignments before the softmax. Large values
            approach `"random"`, small values `"topk"`.
        support (`str`, defaults to `"dataset"`): source of the support gradient: `"dataset"`, `"momentum"`, `"batch"` or
            the path of a saved gradient. `"dataset"` is a small batch of the support set (the paper's method); on a GPU
            it is appended to the training batch where that is exact, elsewhere it gets its own pass. `"momentum"` is
            the optimizer's first moment, which needs no support samples (not in the paper); until there is one, the
            draw is uniform (`"positive"` keeps all samples). `"batch"` is the mean gradient of the samples of the
            per-device batch itself, which needs no further pass. A path ends in `.safetensors`: a file of
            `save_support_gradient`, with a tensor for each masked parameter.
        support_batch_size (`int`, defaults to `4`): support samples per process in one support gradient. More of them
            make it less noisy, and each step more expensive.
        support_every (`int`, defaults to `1`): compute a new support gradient of the support set every this many
            optimizer steps; a larger value costs less. All batches of an accumulated step use the same support
            gradient.
        group_by (`str`, defaults to `"block"`): matrices that share a mask: those of a transformer `"block"` (the
            paper's method), those of one adapted `"module"`, or all of the `"model"`. With `"model"`, whole samples are
            chosen by the sum of their alignments; the per-sample gradients of a batch are kept until its backward pass
            ends, and training is refused if they do not fit into memory. With `mode="topk"` this is the first-order
            rule of GREATS (NeurIPS 2024).
        redundancy (`bool`, defaults to `False`): choose samples one by one by `lr <g_i, s> - lr² Σ_j <g_i, g_j>` over the
            samples `j` already chosen, the greedy rule of GREATS. It needs `group_by="model"` and `mode="topk"`. `g_i`
            is the gradient of a sample's own mean loss, `s` the support gradient, and `lr` the current learning rate;
            as published, the rule is that of SGD, also if the optimizer is another.
        outside_blocks (`str`, defaults to `"unmasked"`): trainable matrices outside the repeated blocks (embeddings,
            heads, `modules_to_save`): `"unmasked"` trains them on the whole batch, `"masked"` gives them one
            mask.
        rescale (`bool`, defaults to `True`): multiply the kept gradients by `B / K`, so that the step has the
            same scale as with a mean over the batch; `False` lowers the effective learning rate. `B` and `K` count the
            samples with a loss; with `mode="positive"`, `K` is the number that a layer keeps in this batch.
        start_step (`int`, defaults to `0`): first optimizer step that is masked. Set it to mask only after the
            warm-up of the learning rate.
        source_column (`str`, *optional*): column of the training set that the report groups samples by. By default
            it groups them by number of labelled tokens.
        seed (`int`, defaults to `42`): seed of the draws and of the order of the support set.

    Raises:
        ValueError: naming every field with a wrong type or a value out of range.
    """

    FILE: ClassVar[str] = "gast_config.json"

    keep: int | float = KEEP
    mode: Literal["stochastic", "random", "topk", "all", "positive"] = "stochastic"
    threshold: float = 0.0
    temperature: float = 1.0
    support: str = "dataset"
    support_batch_size: int = SUPPORT_BATCH_SIZE
    support_every: int = 1
    group_by: Literal["block", "module", "model"] = "block"
    redundancy: bool = False
    outside_blocks: Literal["unmasked", "masked"] = "unmasked"
    rescale: bool = True
    start_step: int = 0
    source_column: str | None = None
    seed: int = 42

    @property
    def uses_support(self) -> bool:
        """Whether the masks depend on a support gradient."""
        return self.mode in ("stochastic", "topk", "positive")

    @property
    def support_file(self) -> str | None:
        """The path of the saved support gradient; `None` for another support."""
        return None if self.support in SUPPORTS else self.support

    def published(self) -> "GASTConfig":
        """The configuration with only the name of the file of a saved support gradient, not its path on this machine."""
        if self.support_file is None:
            return self
        return dataclasses.replace(self, support=PurePath(self.support_file.replace("\\", "/")).name)

    def rules(self) -> list[Rule]:
        """See [`BaseConfig`]."""
        by_threshold = self.mode == "positive"
        renewed = self.support == "dataset"
        left_out = f"left out with `support={self.support!r}`, which has no support batches"
        return [
            ("keep", fits_fraction_or_count(self.keep), "a fraction in (0, 1] or a count of at least 1"),
            ("keep", not by_threshold or self.keep == KEEP, "left out with `mode='positive'`: `threshold` decides"),
            ("threshold", -1 < self.threshold < 1, "a cosine above -1 and below 1"),
            ("threshold", by_threshold or self.threshold == 0, "left out unless `mode='positive'`"),
            ("temperature", math.isfinite(self.temperature) and self.temperature > 0, "finite and above 0"),
            (
                "temperature",
                self.mode == "stochastic" or self.temperature == 1,
                "left out unless `mode='stochastic'`: no other mode draws from the softmax",
            ),
            ("support", self.support in SUPPORTS or _is_saved(self.support), A_SUPPORT),
            ("support_batch_size", self.support_batch_size >= 1, "at least 1"),
            ("support_batch_size", renewed or self.support_batch_size == SUPPORT_BATCH_SIZE, left_out),
            ("support_every", self.support_every >= 1, "at least 1"),
            ("support_every", renewed or self.support_every == 1, left_out),
            ("redundancy", not self.redundancy or self.group_by == "model", "left out unless `group_by='model'`"),
            (
                "redundancy",
                not self.redundancy or self.mode == "topk",
                "left out unless `mode='topk'`: the rule is greedy",
            ),
            ("start_step", self.start_step >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
