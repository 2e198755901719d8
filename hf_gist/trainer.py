"""`GASTTrainer`: a Trainer in which only the gradient-aligned samples of a batch update each layer."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hf_gist.config.gast import GASTConfig
from hf_gist.data.rows import read_column
from hf_gist.gast.loss_weights import loss_weights, report_counts
from hf_gist.gast.run import GASTRun
from hf_gist.gast.support import SupportSet
from hf_gist.report import report_at_end
from hf_gist.training.cards import CardCallback, complete_card, save_gast, withhold_rows
from hf_gist.training.gast.scale import redundancy_of
from hf_gist.training.gast.setup import (
    SOURCE_KEY,
    carrying_sources,
    check_trainer,
    new_support_set,
    sample_weighting,
    start_run,
)
from hf_gist.training.gast.support import masked_step, sum_over_ranks
from hf_gist.training.parts import output_folder


if TYPE_CHECKING:

    class _Base(Trainer):
        """Base class of the mixin, for type checkers."""
else:
    _Base = object


class GASTMixin(_Base):
    """Adds GAST to any Trainer: `class MyTrainer(GASTMixin, SFTTrainer): ...`.

    Args:
        args: as for the Trainer.
        gast_config (`GASTConfig`, *optional*): the defaults are the paper's.
        support_dataset (*optional*): samples whose gradient the training samples are aligned with, in the format of
            the training set: a held-out or target set. By default the training set itself.
        kwargs: as for the Trainer.

    Raises:
        ValueError: for a model, a loss or a setup that GAST does not support, with what to change.
    """

    completes_gist_cards = True
    """See [`hf_gist.training.cards.complete_cards`]."""

    def __init__(
        self, *args: Any, gast_config: GASTConfig | None = None, support_dataset: Any = None, **kwargs: Any
    ) -> None:
        if gast_config is not None and not isinstance(gast_config, GASTConfig):
            raise ValueError(f"`gast_config` must be a GASTConfig, got {type(gast_config).__name__}.")
        # Set before `Trainer.__init__`, which may already call the methods below.
        self.gast_config = gast_config if gast_config is not None else GASTConfig()
        self.support_dataset = support_dataset
        self.gast: GASTRun | None = None
        self._gast_checkpoint: str | None = None
        self._gast_support_set: SupportSet | None = None
        self._gast_sources: list[str] | None = None
        self._gast_weighting: str | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(CardCallback(self))
        if self.gast_config.mode != "all":
            own_weights = type(self).sample_weights is not GASTMixin.sample_weights
            check_trainer(self, self.gast_config, own_weights)
            if self.gast_config.support == "dataset" and self.gast_config.uses_support:
                self._gast_support_set = new_support_set(self, support_dataset, self.gast_config)

    def get_train_dataloader(self) -> DataLoader:
        """See [`~transformers.Trainer`]; the batches also carry the source of each sample, if there is a column."""
        column = self.gast_config.source_column
        if column is None or self.gast_config.mode == "all":
            return super().get_train_dataloader()
        if self._gast_sources is None:
            self._gast_sources = sorted({str(v) for v in read_column(self.train_dataset, column, "source_column")})
        with carrying_sources(self, column, self._gast_sources):
            return super().get_train_dataloader()

    def sample_weights(self, inputs: dict[str, Any]) -> Tensor:
        """Weight of each sample's own mean loss in the loss of a batch, up to a factor common to all samples.

        Found on two training rows if the trainer has a loss of its own; override it for a loss with other weights.

        Args:
            inputs (`dict`): a collated batch on the device.

        Returns:
            `Tensor`: `[B]` float32; zero for a sample that has no loss.
        """
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if self._gast_weighting is None:
            self._gast_weighting = sample_weighting(self, self.gast_config.seed)
        return loss_weights(inputs, model, self._gast_weighting)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """See [`~transformers.Trainer`]; in the backward pass, only kept samples contribute to a layer's gradient."""
        sources = inputs.pop(SOURCE_KEY, None)
        step = self.state.global_step
        if self.gast_config.mode == "all" or step < self.gast_config.start_step:
            return super().training_step(model, inputs, num_items_in_batch)
        run = self._gast_run()
        inputs = self._prepare_inputs(inputs)
        weights = self.sample_weights(inputs)
        label_tokens = report_counts(inputs, weights)
        stock_step = partial(super().training_step, model, inputs, num_items_in_batch)
        redundancy = redundancy_of(self, run, weights, num_items_in_batch)
        loss, batch = masked_step(self, run, inputs, weights, redundancy, stock_step)
        run.close(batch, sources, label_tokens, step)
        return loss

    def _gast_run(self) -> GASTRun:
        """The state of this `train` call, created at its first masked step, when the model has all its wrappers."""
        # `auto_find_batch_size` restarts training with a smaller batch after running out of memory
        if self.gast is None or self.gast.batch_size != self._train_batch_size:
            self.gast = start_run(self)
        return self.gast

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See [`~transformers.Trainer`]; writes which samples updated which layer to `output_dir`, with a report."""
        self.gast = None
        self._gast_checkpoint = None
        self._gast_weighting = None
        output = super().train(*args, **kwargs)
        if self.gast_config.mode != "all":
            run = self._gast_run()
            table = run.totals(partial(sum_over_ranks, self))
            if self.is_world_process_zero():
                run.warn_without_effect("the whole run")
                save_gast(self, run, table)
                report_at_end(output_folder(self.args))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See [`~transformers.Trainer`]; training logs also get the `gast_*` metrics."""
        if self.gast is not None and "loss" in logs:
            logs.update(self.gast.metrics(partial(sum_over_ranks, self)))
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Saved first, so that the folder is complete when it is pushed.
        if self.gast is not None:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if self.args.should_save:
                os.makedirs(folder, exist_ok=True)
            self.gast.save(folder, partial(sum_over_ranks, self), write=self.args.should_save)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._gast_checkpoint = checkpoint

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """See [`~transformers.Trainer`]; the card also gets a section on the data selection."""
        super().create_model_card(*args, **kwargs)
        complete_card(self)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """See [`~transformers.Trainer`]; no text of the dataset is uploaded."""
        withhold_rows(self)
        return super().push_to_hub(*args, **kwargs)


class GASTTrainer(GASTMixin, Trainer):
    """[`~transformers.Trainer`] with [`GASTMixin`]."""


def __getattr__(name: str) -> type:
    # TRL is optional and takes seconds to import.
    if name != "GASTSFTTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trl import SFTTrainer

    about = {"__doc__": "TRL's `SFTTrainer` with [`GASTMixin`].", "__module__": __name__}
    trainer = type(name, (GASTMixin, SFTTrainer), about)
    globals()[name] = trainer
    return trainer
