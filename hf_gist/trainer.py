"""`GASTTrainer`: a Trainer in which every layer learns from the samples of the batch that agree with a support set."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from hf_gist.config.gast import GASTConfig
from hf_gist.data.rows import read_column
from hf_gist.functional.masking import mean_loss_scales
from hf_gist.gast.checks import check_loss_owner, check_supported, check_unmasked
from hf_gist.gast.groups import describe_groups, find_groups, summarise_groups
from hf_gist.gast.hooks import masking, summing
from hf_gist.gast.loss_probe import LossFunctionProbe
from hf_gist.gast.loss_weights import loss_weights, report_counts
from hf_gist.gast.run import GASTRun
from hf_gist.gast.sources import SourceCollator
from hf_gist.gast.support import SupportSet, average_over_ranks, first_moments, support_mode
from hf_gist.gast.table import RUN_FILE
from hf_gist.gradients.losses import loss_kind
from hf_gist.report import report_at_end
from hf_gist.training.cards import attach, save_gast
from hf_gist.utils.disk import write_json


logger = logging.get_logger(__name__)

SOURCE_KEY = "gast_source"
"""Where a training batch carries the source of each sample, until `training_step` takes it out."""


class GASTMixin:
    """Adds GAST to any Trainer: `class MyTrainer(GASTMixin, SFTTrainer): ...`.

    Args:
        args: as for the Trainer.
        gast_config (`GASTConfig`, *optional*): the defaults are the paper's.
        support_dataset (*optional*): samples whose gradient the training samples must agree with, in the form of the
            training set: a held-out or target set. By default the training set itself.
        kwargs: as for the Trainer.

    Raises:
        ValueError: for a model, a loss or a setup that cannot be masked, naming what to change.
    """

    def __init__(
        self, *args: Any, gast_config: GASTConfig | None = None, support_dataset: Any = None, **kwargs: Any
    ) -> None:
        # Before the Trainer's own set-up, which may already call the methods below.
        self.gast_config = gast_config if gast_config is not None else GASTConfig()
        self.support_dataset = support_dataset
        self.gast: GASTRun | None = None
        self._gast_checkpoint: str | None = None
        self._gast_support_set: SupportSet | None = None
        self._gast_sources: list[str] | None = None
        super().__init__(*args, **kwargs)
        attach(self)
        self._gast_probe = LossFunctionProbe(self.compute_loss_func) if self.compute_loss_func else None
        if self.gast_config.mode == "all":
            return
        model = self.accelerator.unwrap_model(self.model)
        check_supported(self.args, self.accelerator, model)
        # A model that cannot be masked, or a loss that cannot be split, is refused before anything is loaded or run.
        _, unmasked = find_groups(model, self.gast_config.group_by, self.gast_config.outside_blocks)
        check_unmasked(self.accelerator, unmasked, self.gast_config.support)
        if type(self).sample_weights is GASTMixin.sample_weights:
            check_loss_owner(type(self))
            loss_kind(model)
        if self.gast_config.support == "dataset" and self.gast_config.mode != "random":
            self._gast_support_set = self._new_support_set(support_dataset)

    # ---- Data ----

    def _new_support_set(self, dataset: Any) -> SupportSet:
        if dataset is None:
            dataset = self.train_dataset
        elif hasattr(self, "_prepare_dataset") and not getattr(self, "_skip_prepare_dataset", False):
            # TRL tokenises what the user passes; the training set has been through this already.
            dataset = self._prepare_dataset(
                dataset, self.processing_class, self.args, False, getattr(self, "_formatting_func", None), "support"
            )
        if isinstance(dataset, datasets.Dataset):
            dataset, collator = self._remove_unused_columns(dataset, description="support"), self.data_collator
        else:
            collator = self._get_collator_with_removed_columns(self.data_collator, description="support")
        config = self.gast_config
        return SupportSet(dataset, collator, config.support_batch_size, config.seed)

    def get_train_dataloader(self) -> DataLoader:
        """See [`~transformers.Trainer`]; the batches also carry the source of each sample, if there is a column."""
        column = self.gast_config.source_column
        if column is None or self.gast_config.mode == "all":
            return super().get_train_dataloader()
        if self._gast_sources is None:
            self._gast_sources = sorted({str(v) for v in read_column(self.train_dataset, column, "source_column")})
        collator = self.data_collator
        self._set_signature_columns_if_needed()
        columns = self._signature_columns
        try:
            self._signature_columns = [*columns, column]
            self.data_collator = SourceCollator(collator, column, self._gast_sources, SOURCE_KEY)
            return super().get_train_dataloader()
        finally:
            self.data_collator, self._signature_columns = collator, columns

    # ---- Losses ----

    def sample_weights(self, inputs: dict[str, Any]) -> Tensor:
        """How much each sample's own mean loss weighs in the loss of a batch, up to a factor that all samples share.

        Override it together with `compute_loss`.

        Args:
            inputs (`dict`): a collated batch on the device.

        Returns:
            `Tensor`: `[B]` float32; zero for a sample that has no loss.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if self._gast_probe is None:
            return loss_weights(inputs, model, "tokens")
        counts = loss_weights(inputs, model, "tokens")
        weighting = self._gast_probe.weighting
        if weighting is None:
            features = {name: value for name, value in inputs.items() if name != "labels"}
            with (
                support_mode(self.model_wrapped, []),
                torch.no_grad(),
                self.compute_loss_context_manager(),
            ):
                outputs = self.model_wrapped(**features)
            weighting = self._gast_probe.observe(outputs, inputs["labels"], counts, self._sum_over_ranks)
        return loss_weights(inputs, model, weighting)

    def _support_gradient(self, model: nn.Module) -> dict[str, Tensor]:
        """The mean over support samples, and over processes, of the gradients of their own mean losses."""
        run, world_size = self.gast, self.accelerator.num_processes
        inner = self.accelerator.unwrap_model(model)
        untracked = [parameter for name, parameter in inner.named_parameters() if name in run.unmasked]
        # FSDP2 has nothing to reduce without gradients, and its `no_sync` would end the one of the accumulation.
        sync = nullcontext() if self.accelerator.is_fsdp2 else self.accelerator.no_sync(model)
        with support_mode(model, untracked), self._without_metrics(), sync:
            batch = self._gast_support_set.batch(run.supports, self.accelerator.process_index, world_size)
            batch = self._prepare_inputs(batch)
            weights = self.sample_weights(batch)
            items = loss_weights(batch, inner, "tokens").sum() if self.compute_loss_func else None
            with summing(run.groups, mean_loss_scales(weights)) as gradients:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, dict(batch), num_items_in_batch=items)
                self.accelerator.backward(loss)
        if world_size == 1:
            return gradients
        return average_over_ranks(gradients, lambda flat: self.accelerator.reduce(flat, "mean"))

    @contextmanager
    def _without_metrics(self) -> Iterator[None]:
        # TRL's `compute_loss` adds to running metrics, which the support samples are no part of.
        kept = {n: copy.deepcopy(getattr(self, n)) for n in ("_metrics", "_total_train_tokens") if hasattr(self, n)}
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    # ---- Training ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """See [`~transformers.Trainer`]; the backward pass gives every layer the gradients of the samples it keeps."""
        sources = inputs.pop(SOURCE_KEY, None)
        step = self.state.global_step
        if self.gast_config.mode == "all" or step < self.gast_config.start_step:
            return super().training_step(model, inputs, num_items_in_batch)
        run = self._gast_run()
        inputs = self._prepare_inputs(inputs)
        weights = self.sample_weights(inputs)
        label_tokens = report_counts(inputs, weights)
        if run.needs_support(step):
            if self.gast_config.support == "momentum":
                stepped = run.has_stepped(step, self.accelerator.scaler is not None, not self.optimizer.state)
                run.set_support(first_moments(self.optimizer, run.groups, stepped), step)
            else:
                run.set_support(self._support_gradient(model), step)
        batch = run.open(weights)
        with masking(run.groups, batch):
            loss = super().training_step(model, inputs, num_items_in_batch)
        run.close(batch, sources, label_tokens, step)
        return loss

    def _gast_run(self) -> GASTRun:
        """The state of this `train` call, made at its first masked step, when the model has all its wrappers."""
        # a training that runs out of memory starts over with a smaller batch (`auto_find_batch_size`)
        if self.gast is None or self.gast.batch_size != self._train_batch_size:
            model = self.accelerator.unwrap_model(self.model_wrapped)
            check_supported(self.args, self.accelerator, model)
            self.gast = GASTRun(
                model,
                self.gast_config,
                self.accelerator.process_index,
                self.args.device,
                self._gast_sources,
                self._train_batch_size,
            )
            if self.is_world_process_zero():
                tqdm.write(summarise_groups(self.gast.groups, self.gast.unmasked))
                logger.info(describe_groups(self.gast.groups, self.gast.unmasked))
            if self._gast_checkpoint is not None:
                state = self.gast.load(self._gast_checkpoint)
                if state is None:
                    logger.warning(f"{self._gast_checkpoint} was written without GAST: its draws start afresh.")
                elif state["config"] != self.gast_config.to_dict():
                    logger.warning("The GAST configuration is not that of the checkpoint; going on with the new one.")
        return self.gast

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See [`~transformers.Trainer`]; also writes who trained which layer to `output_dir`, with a report."""
        self.gast, self._gast_checkpoint = None, None
        output = super().train(*args, **kwargs)
        if self.gast_config.mode != "all":
            run = self._gast_run()
            table = run.totals(self._sum_over_ranks)
            if self.is_world_process_zero():
                run.warn_without_effect("the whole run")
                table.write(self.args.output_dir)
                write_json(Path(self.args.output_dir) / RUN_FILE, run.describe(self.state.global_step))
                save_gast(self)
                report_at_end(self.args.output_dir)
        return output

    # ---- Logs and checkpoints ----

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See [`~transformers.Trainer`]; training logs also get the `gast_*` metrics."""
        if self.gast is not None and "loss" in logs:
            logs.update(self.gast.metrics(self._sum_over_ranks))
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Before the rest, so that the folder is whole when it is pushed.
        if self.gast is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if self.args.should_save:
                os.makedirs(folder, exist_ok=True)
            self.gast.save(folder, self._sum_over_ranks, write=self.args.should_save)
        super()._save_checkpoint(model, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        self._gast_checkpoint = checkpoint


class GASTTrainer(GASTMixin, Trainer):
    """[`~transformers.Trainer`] with [`GASTMixin`]."""


def __getattr__(name: str) -> type:
    # TRL is optional, and takes seconds to import.
    if name != "GASTSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trl import SFTTrainer

    trainer = type(
        name, (GASTMixin, SFTTrainer), {"__doc__": "TRL's `SFTTrainer` with [`GASTMixin`].", "__module__": __name__}
    )
    globals()[name] = trainer
    return trainer
