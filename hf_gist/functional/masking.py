"""From alignments to masks: which samples of a batch update a layer.

Notation: `B` samples, `L` groups (a layer, or one LoRA module), `K` kept samples. All functions are pure, including
the random noise: the noise of a draw depends only on a seed and a counter, so a resumed run continues the draws
exactly, and the global random state (dropout, shuffling) is not changed.
"""

import hashlib
import math

import torch
from torch import Tensor


MODES = ("stochastic", "random", "topk", "all", "positive")


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from the key; identical on every machine and in every process."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def gumbel_noise(seed: int, rank: int, counter: int, groups: int, batch_size: int) -> Tensor:
    """Standard Gumbel noise for one batch's draws.

    Args:
        seed (`int`): seed of the run.
        rank (`int`): index of the process; every process draws for its own batch.
        counter (`int`): number of previous batches.
        groups (`int`): `L`.
        batch_size (`int`): `B`.

    Returns:
        `Tensor`: `[L, B]` float32 on the CPU.
    """
    uniform = torch.rand(groups, batch_size, generator=generator_for("draw", seed, rank, counter), dtype=torch.float64)
    # The smallest normal number keeps the logarithm finite when the generator returns 0.
    tiny = torch.finfo(torch.float64).tiny
    return -(-uniform.clamp(min=tiny).log()).clamp(min=tiny).log().float()


def support_rows(seed: int, size: int, start: int, count: int) -> list[int]:
    """Rows `start` to `start + count` of an infinite sequence of seeded permutations of `size` rows.

    Args:
        seed (`int`): seed of the run.
        size (`int`): number of rows of the support set.
        start (`int`): number of rows already used.
        count (`int`): number of rows; they may extend into the next permutation.

    Returns:
        `list[int]`: `count` row indices.
    """
    rows: list[int] = []
    epoch, offset = divmod(start, size)
    while len(rows) < count:
        order = torch.randperm(size, generator=generator_for("support", seed, epoch))
        rows += order[offset : offset + count - len(rows)].tolist()
        epoch += 1
        offset = 0
    return rows


def kept_count(keep: int | float, batch_size: int) -> int:
    """`K` for a batch of `B`: a count is capped at `B`, a fraction is rounded, and at least one sample is kept."""
    wanted = round(keep * batch_size) if isinstance(keep, float) else keep
    return max(1, min(wanted, batch_size))


def standardise(alignments: Tensor, valid: Tensor) -> Tensor:
    """Alignments with zero mean and unit variance over the valid samples of the batch.

    A factor common to all samples cancels here, so anything that scales the whole loss (tokens in the accumulated
    batch, accumulation steps, world size, loss scaling) need not be known.

    Args:
        alignments (`Tensor`): `[..., B]` float32.
        valid (`Tensor`): `[B]` bool.

    Returns:
        `Tensor`: `[..., B]`, zero for invalid samples and for a batch whose alignments are all equal.
    """
    count = valid.sum().clamp(min=1)
    # Divided by the largest value first: squares of loss-scaled half-precision gradients overflow.
    alignments = alignments * valid
    largest = torch.linalg.vector_norm(alignments, math.inf, dim=-1, keepdim=True)
    alignments = alignments / largest.clamp(min=torch.finfo(alignments.dtype).tiny)
    centred = (alignments - alignments.sum(-1, keepdim=True) / count) * valid
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / count.sqrt()
    # Rounding errors make equal alignments differ by an ulp; dividing by that would rank them arbitrarily.
    return centred / torch.nn.functional.threshold(deviation, 1e-6, math.inf)


def log_probabilities(scores: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Log of the softmax over the valid samples, `[..., B]`; -inf for the others."""
    logits = (scores / temperature).masked_fill(~valid, -math.inf)
    return torch.log_softmax(logits, -1)


def sampling_logits(alignments: Tensor, valid: Tensor, mode: str, temperature: float) -> Tensor:
    """Log-probabilities of the first draw of a mode: the softmax of the standardised alignments, or uniform.

    Args:
        alignments (`Tensor`): `[..., B]` float32.
        valid (`Tensor`): `[B]` bool.
        mode (`str`): one of `MODES`.
        temperature (`float`): divides the standardised alignments.

    Returns:
        `Tensor`: `[..., B]`.
    """
    scores = standardise(alignments, valid)
    if mode in ("random", "all"):
        scores = torch.zeros_like(scores)
    return log_probabilities(scores, valid, temperature)


def _draw_keys(alignments: Tensor, noise: Tensor, valid: Tensor, mode: str, temperature: float) -> Tensor:
    """The keys `[B]` whose `K` largest are kept: log-probability plus Gumbel noise, up to a constant."""
    if mode == "random":
        return noise
    scores = standardise(alignments, valid)
    if mode == "topk":
        # If all alignments are equal, the choice must not depend on the order of the batch.
        return torch.where(scores.any(), alignments, noise)
    return torch.add(noise, scores, alpha=1 / temperature)


def draw(
    alignments: Tensor,
    noise: Tensor,
    valid: Tensor,
    *,
    keep: int,
    mode: str,
    temperature: float,
    above: Tensor | float = 0.0,
) -> Tensor:
    """The samples that update one group.

    The `K` largest of log-probability plus Gumbel noise are distributed as `K` draws without replacement from the
    softmax, each from the remaining samples. There is no copy to the CPU.

    Args:
        alignments (`Tensor`): `[B]` float32, `<g_i, s>` of each sample.
        noise (`Tensor`): `[B]` from [`gumbel_noise`].
        valid (`Tensor`): `[B]` bool; samples without a loss are never kept.
        keep (`int`): `K`; not used by `positive`.
        mode (`str`): one of `MODES`.
        temperature (`float`): divides the standardised alignments.
        above (`Tensor` or `float`): `[B]`, what an alignment must exceed in the mode `positive`.

    Returns:
        `Tensor`: `[B]` bool, with at most `K` true unless the mode is `positive`. If an alignment is not finite, every
            sample is kept, so that the overflow reaches the gradient, where a gradient scaler detects it.
    """
    if mode == "all":
        return valid.clone()
    if mode == "positive":
        kept = alignments > above
    else:
        keys = _draw_keys(alignments, noise, valid, mode, temperature).masked_fill(~valid, -math.inf)
        kept = torch.zeros_like(valid).index_fill_(0, keys.topk(keep).indices, True)
    if mode != "random":
        kept |= ~_is_finite(alignments)
    return kept & valid


def _is_finite(values: Tensor) -> Tensor:
    """Whether all values are finite, a scalar; false for NaN too."""
    return torch.linalg.vector_norm(values, math.inf) < math.inf


def greedy(
    alignments: Tensor, overlaps: Tensor, noise: Tensor, valid: Tensor, *, keep: int, learning_rate: float
) -> Tensor:
    """The samples that GREATS chooses one by one, each with the largest gain given those before it.

    A step of SGD with the learning rate `η` over the chosen samples `S` lowers the loss of the support by
    `η Σ_i <g_i, s> - η²/2 Σ_ij g_iᵀ H g_j` to second order. With the identity for the Hessian `H`, adding sample `i` to
    `S` gains `η <g_i, s> - η² Σ_{j in S} <g_i, g_j>`, apart from the term of `i` alone, which GREATS leaves out (Wang et
    al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration", NeurIPS 2024: the greedy
    rule of its section on the Taylor approximation, and `greedy_selection` of its public code). The gain is divided
    by `η` here, so that the first steps of a warm-up from 0 follow the alignments.

    Args:
        alignments (`Tensor`): `[B]` float32, `<g_i, s>` of each sample, not scaled.
        overlaps (`Tensor`): `[B, B]` float32, `<g_i, g_j>`, not scaled.
        noise (`Tensor`): `[B]` from [`gumbel_noise`]; decides between equal gains, which must not follow the order of
            the batch.
        valid (`Tensor`): `[B]` bool; samples without a loss are never chosen.
        keep (`int`): `K`.
        learning_rate (`float`): `η`.

    Returns:
        `Tensor`: `[B]` bool with at most `K` true; every sample if an alignment or overlap is not finite, see [`draw`].
    """
    gains = alignments
    kept = torch.zeros_like(valid)
    for _ in range(keep):
        # there is no copy to the CPU
        open_gains = gains.masked_fill(kept | ~valid, -math.inf)
        best = noise.masked_fill(open_gains < open_gains.max(), -math.inf).argmax(keepdim=True)
        kept = kept.index_fill(0, best, True)
        gains = gains - learning_rate * overlaps.index_select(0, best).squeeze(0)
    finite = _is_finite(alignments) & _is_finite(overlaps)
    return (kept | ~finite) & valid


def sample_scales(kept: Tensor, valid: Tensor, rescale: bool) -> Tensor:
    """The factor of each sample's gradient: 0 if dropped, else `B/K` (1 without `rescale`).

    Args:
        kept (`Tensor`): `[B]` bool.
        valid (`Tensor`): `[B]` bool; `B` and `K` count samples that have a loss.
        rescale (`bool`): scale the step as with a mean over the batch.

    Returns:
        `Tensor`: `[B]` float32.
    """
    return kept * (valid.sum() / kept.sum().clamp(min=1)) if rescale else kept.float()


def mean_loss_scales(loss_weights: Tensor) -> Tensor:
    """Factors `[B]` that turn the gradients in a batch loss `Σ w_b ℓ_b / Σ w_b` into the mean gradient of the `ℓ_b`.

    Args:
        loss_weights (`Tensor`): `w_b` `[B]`; their sum differs between processes, so it must be divided out before
            averaging over them.
    """
    labelled = loss_weights > 0
    factors = torch.where(labelled, loss_weights.sum() / loss_weights.clamp(min=1e-30), 0.0)
    return factors / labelled.sum().clamp(min=1)
