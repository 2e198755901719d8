"""The state of one GAST training run: groups, counters, the current support gradient and statistics."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_gist.config.gast import GASTConfig
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.group_gradients import SupportGradient
from hf_gist.functional.mask_statistics import MaskStatistics
from hf_gist.functional.masking import gumbel_noise, kept_count
from hf_gist.gast.gate import BatchMasks, Redundancy
from hf_gist.gast.groups import describe_groups, find_groups, summarise_groups
from hf_gist.gast.support import load_support, save_support, warn_if_zero
from hf_gist.gast.table import SelectionTable, length_column_of, length_columns
from hf_gist.gradients.hooks import unreached
from hf_gist.utils.disk import read_json, write_json
from hf_gist.utils.terminal import wrapped


logger = logging.get_logger(__name__)

STATE_FILE = "gast_state.json"
"""The counters of a run in a checkpoint folder."""

CHECK_EFFECT_AFTER = 10
"""Number of masked batches after which a run warns if no sample was dropped."""

SCALER_PATIENCE = 100
"""Steps a gradient scaler may skip before an optimizer without state is assumed to have no first moment."""


class GASTRun:
    """The state of one `train()` call.

    Args:
        model (`nn.Module`): the model in training, without wrappers.
        config (`GASTConfig`): the configuration.
        rank (`int`): index of the process.
        device (`torch.device`): device of the batches.
        sources (`list[str]`, *optional*): names of the sources, if the batches carry them.
        batch_size (`int`): per-device batch size of the trainer; if it changes, a new run is started.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GASTConfig,
        rank: int,
        device: torch.device,
        sources: list[str] | None,
        batch_size: int,
    ) -> None:
        self.config = config
        self.rank = rank
        self.device = device
        self.sources = sources
        self.groups, self.unmasked = find_groups(model, config.group_by, config.outside_blocks)
        self.names = {name for group in self.groups for name in group.parameters()}
        self.batch_size = batch_size
        self.batches = 0
        self.supports = 0
        self.support: SupportGradient | None = None
        self.support_step: int | None = None
        self.separate_because: str | None = None
        self.first_step: int | None = None
        self.divides_by_items: bool | None = None
        self.reported: set[str] = set()
        self.dropped = torch.zeros((), dtype=torch.long, device=device)
        self.statistics = self._new_statistics()
        self.last: BatchMasks | None = None
        columns = sources if sources is not None else length_columns()
        self.table = SelectionTable.empty([g.name for g in self.groups], columns, device)

    def announce(self) -> None:
        """Print a one-line summary of the groups, and log every group."""
        tqdm.write(wrapped(summarise_groups(self.groups, self.unmasked)))
        logger.info(describe_groups(self.groups, self.unmasked))

    def needs_support(self, step: int) -> bool:
        """Whether to compute a support gradient in optimizer step `step`; once per step, for all its batches."""
        if not self.config.uses_support or self.config.support not in ("dataset", "momentum"):
            return False
        if self.support_step == step:
            return False
        if self.support is None or self.support_step is None or self.config.support == "momentum":
            return True
        return (step - self.config.start_step) % self.config.support_every == 0

    def has_stepped(self, step: int, scaled: bool, emptied: bool) -> bool:
        """Whether the optimizer must have taken a step since masking started, or since its state was cleared.

        Args:
            step (`int`): the current optimizer step.
            scaled (`bool`): whether a gradient scaler may have skipped steps.
            emptied (`bool`): whether it has no state: GIST clears it with `after_selection="restart"`.
        """
        if self.first_step is None or (emptied and self.support is not None):
            self.first_step = step
        return step > self.first_step + (SCALER_PATIENCE if scaled else 0)

    def use_saved(self, support: dict[str, Tensor]) -> None:
        """Set a support gradient for the whole run."""
        self.support = SupportGradient(support)
        warn_if_zero(support, self.config.mode)

    def set_support(self, support: dict[str, Tensor] | None, step: int) -> None:
        """Set the support gradient; with `None`, the draw is uniform."""
        self.support = support if support is None or isinstance(support, SupportGradient) else SupportGradient(support)
        self.support_step = step
        self.supports += 1
        if self.supports == 1 and support is not None:
            warn_if_zero(support, self.config.mode)

    def open(self, loss_weights: Tensor, appended: int, redundancy: Redundancy | None = None) -> BatchMasks:
        """Inputs of the gates of the next batch.

        Args:
            loss_weights (`Tensor`): of its samples `[B]`.
            appended (`int`): support rows appended to it; their gradient becomes the support gradient.
            redundancy (`Redundancy`, *optional*): what the greedy choice needs.
        """
        size = len(loss_weights)
        noise = gumbel_noise(self.config.seed, self.rank, self.batches, len(self.groups), size)
        if self.device.type == "cuda":
            # only a copy from pinned memory does not wait for the device
            noise = noise.pin_memory()
        return BatchMasks(
            loss_weights=loss_weights.to(self.device),
            noise=noise.to(self.device, non_blocking=True),
            support=SupportGradient() if appended else self.support,
            appended=appended,
            keep=kept_count(self.config.keep, size),
            mode=self.config.mode,
            temperature=self.config.temperature,
            rescale=self.config.rescale,
            threshold=self.config.threshold,
            of_batch=self.config.support == "batch" and self.config.uses_support,
            redundancy=redundancy,
        )

    def close(self, batch: BatchMasks, sources: Tensor | None, label_tokens: Tensor, step: int) -> None:
        """Count a batch after its backward pass.

        Args:
            batch (`BatchMasks`): from [`GASTRun.open`].
            sources (`Tensor`, *optional*): source of each sample `[B]`.
            label_tokens (`Tensor`): labelled tokens of each sample `[B]`.
            step (`int`): the optimizer step.

        Raises:
            ValueError: if no gradient was ever reported for a matrix.
        """
        self.batches += 1
        self.reported |= batch.reported
        missing = self.names - self.reported
        if missing:
            own = [group.parameters() for group in self.groups]
            raise ValueError(unreached({n: p for parameters in own for n, p in parameters.items() if n in missing}))
        if batch.appended:
            self.set_support(batch.support, step)
        masks, cosines, log_p = batch.drawn()
        columns = length_column_of(label_tokens) if sources is None else sources
        self.statistics.add(cosines, masks, log_p, batch.valid)
        self.table.add(masks, columns.to(self.device), batch.valid, step)
        self.dropped += batch.valid.sum() * len(masks) - masks.sum()
        self.last = batch
        if self.batches == CHECK_EFFECT_AFTER:
            self.warn_without_effect(f"the first {self.batches} masked batches")

    def warn_without_effect(self, when: str) -> None:
        """Warn if no sample was dropped from any layer so far, or none was kept."""
        if not int(self.dropped):
            warnings.warn(f"GAST dropped no sample in {when}: {self._why_all()}.", NoEffectWarning, stacklevel=3)
        elif not self.table.kept.any():
            warnings.warn(
                f"GAST kept no sample in {when}, so nothing was learned: no cosine with the support gradient is above "
                f"`threshold={self.config.threshold}`. Lower it, or choose another support.",
                NoEffectWarning,
                stacklevel=3,
            )

    def _why_all(self) -> str:
        """Why no sample was dropped."""
        if not self.batches:
            return f"`start_step={self.config.start_step}` was never reached"
        if not self.table.seen.any():
            return "no sample has a labelled token (a label other than -100) after truncation"
        if self.config.mode == "positive":
            return f"every cosine with the support gradient is above `threshold={self.config.threshold}`"
        if kept_count(self.config.keep, self.batch_size) < self.batch_size:
            return f"no per-device batch has more samples with a labelled token than `keep={self.config.keep!r}` keeps"
        return f"`keep={self.config.keep!r}` is not smaller than the per-device batch"

    def metrics(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The statistics since the last call; `total` sums over processes.

        `gast_alignment` (mean cosine with the support gradient), `gast_kept_fraction`, `gast_draw_entropy` (1 for a
        uniform draw), `gast_layer_agreement` (`K/B` for independent draws) and, with `mode="positive"`,
        `gast_without_sample` (share of the layers that kept no sample of a batch). Those that a mode leaves without a
        meaning are not logged.
        """
        if self.statistics.sums is None:
            return {}
        means = self.statistics.means(total(self.statistics.sums))
        self.statistics = self._new_statistics()
        return {f"gast_{name}": value for name, value in means.items() if name not in self._meaningless()}

    def _new_statistics(self) -> MaskStatistics:
        return MaskStatistics(may_keep_none=self.config.mode == "positive")

    def _meaningless(self) -> set[str]:
        """The statistics that say nothing about this configuration."""
        by_threshold = self.config.mode == "positive"
        found = {"draw_entropy"} if by_threshold or self.config.redundancy else set()
        if not self.config.uses_support:
            found.add("alignment")
        if not by_threshold:
            found.add("without_sample")
        if len(self.groups) == 1:
            found.add("layer_agreement")
        return found

    def totals(self, total: Callable[[Tensor], Tensor]) -> SelectionTable:
        """The selection table summed over processes."""
        return dataclasses.replace(self.table, kept=total(self.table.kept), seen=total(self.table.seen))

    def describe(self, steps: int) -> dict[str, Any]:
        """The configuration and the counters after `steps` optimizer steps, for the report."""
        return {
            "config": self.config.published().to_dict(),
            "steps": steps,
            "masked_batches_per_process": self.batches,
            "supports": self.supports,
        }

    # ---- Checkpoints ----

    def save(self, folder: str | os.PathLike, total: Callable[[Tensor], Tensor], write: bool) -> None:
        """Write the state for resuming; call on every process, with `write=True` on the one that writes to disk."""
        table = self.totals(total)
        dropped = total(self.dropped)
        if not write:
            return
        state = {
            "config": self.config.to_dict(),
            "batches": self.batches,
            "supports": self.supports,
            "support_step": self.support_step,
            "dropped": int(dropped),
            **table.state(),
        }
        write_json(Path(folder) / STATE_FILE, state)
        if self.support is not None and self.config.support == "dataset":
            save_support(folder, self.support)

    def resume(self, folder: str | os.PathLike) -> None:
        """Continue from a checkpoint; a warning is logged if it was written without GAST or with another configuration.

        Raises:
            ValueError: if the checkpoint has other groups.
        """
        path = Path(folder) / STATE_FILE
        if not path.is_file():
            logger.warning(f"{folder} was written without GAST: GAST starts from its first draw.")
            return
        state = read_json(path)
        if state["config"] != self.config.to_dict():
            logger.warning("The GAST configuration differs from that of the checkpoint; the new one is used.")
        if state["groups"] != self.table.groups:
            raise ValueError(
                f"The checkpoint {folder} was trained with other groups of matrices. Resume with the same adapter and "
                "the same `group_by` and `outside_blocks`."
            )
        self.batches = state["batches"]
        self.supports = state["supports"]
        self.support_step = state["support_step"]
        if self.config.support == "dataset":
            support = load_support(folder, self.device)
            self.support = None if support is None else SupportGradient(support)
        # The file has the counts of all processes, so only one process may load them.
        if state["columns"] == self.table.columns:
            self.table.restore(state, counts=self.rank == 0)
            if self.rank == 0:
                self.dropped.fill_(state["dropped"])
