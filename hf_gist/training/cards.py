"""Model cards and Hub uploads of a running Trainer."""

import functools
import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.config.files import FOLDER, save_config
from hf_gist.costs.manifest import training_manifest
from hf_gist.errors import NoEffectWarning
from hf_gist.gast.run import GASTRun
from hf_gist.gast.table import RUN_FILE, SelectionTable
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_metrics import evaluation_results
from hf_gist.hub.model_card import write_card
from hf_gist.hub.run import GAST_MANIFEST, Run, final_step
from hf_gist.report import withhold_text
from hf_gist.training.parts import output_folder
from hf_gist.utils.disk import write_json


COMPLETES_CARDS = "completes_gist_cards"
"""Attribute of a trainer that already completes its model cards."""


def _gast_manifest(trainer: Trainer) -> dict[str, Any]:
    config = getattr(trainer, "gast_config", None)
    used = config is not None and config.uses_support and config.support == "dataset"
    return training_manifest(
        trainer.accelerator.unwrap_model(trainer.model),
        train_dataset=trainer.train_dataset,
        support_dataset=getattr(trainer, "support_dataset", None) if used else None,
    )


def save_gast(trainer: Trainer, run: GASTRun, table: SelectionTable) -> None:
    """Write the results of a GAST training run, for creating its report and model card later.

    Args:
        trainer (`Trainer`): after training.
        run (`GASTRun`): its state.
        table (`SelectionTable`): which samples updated which layer, over all processes.
    """
    folder = output_folder(trainer.args)
    table.write(folder)
    write_json(folder / RUN_FILE, run.describe(trainer.state.global_step))
    save_config(run.config, folder)
    write_json(folder / GAST_MANIFEST, _gast_manifest(trainer))


def _run_of(trainer: Trainer) -> Run | None:
    """The run of a trainer so far; `None` if there is neither a selection nor GAST."""
    found = (getattr(callback, "selection", None) for callback in trainer.callback_handler.callbacks)
    selection = next((value for value in found if isinstance(value, Selection)), None)
    gast = getattr(trainer, "gast_config", None)
    gast = None if gast is None or gast.mode == "all" else gast
    if selection is None and gast is None:
        return None
    state = trainer.state
    folder = output_folder(trainer.args)
    step = state.global_step
    if not trainer.is_in_train:
        best = state.best_global_step if trainer.args.load_best_model_at_end else None
        step = best or final_step(step, selection)
    manifest = _gast_manifest(trainer)
    return Run(
        folder=folder,
        selection=selection,
        artifacts=folder / FOLDER,
        gast=gast,
        repo_id=trainer.hub_model_id or trainer.args.hub_model_id,
        gast_manifest=manifest if gast is not None else {},
        results=evaluation_results(
            state.log_history,
            step,
            manifest["model"]["class"],
            getattr(trainer, "eval_dataset", None),
        ),
    )


def complete_card(trainer: Trainer) -> None:
    """Add the data-selection section to the model card in a trainer's output folder; write a card if there is none."""
    if not trainer.is_world_process_zero():
        return
    run = _run_of(trainer)
    if run is not None:
        write_card(run)


class CardCallback(TrainerCallback):
    """Completes the model card before each push during training.

    Args:
        trainer (`Trainer`): the trainer of the model card.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the card, and remove text of the dataset, which a run without a push may have left in the folder."""
        withhold_rows(self.trainer)
        complete_card(self.trainer)


def complete_cards(trainer: Trainer | None, output_dir: Path) -> None:
    """Patch a trainer so that it completes every model card and uploads no text of the dataset; idempotent.

    A [`GASTMixin`] trainer already does both. For any other, the instance is patched, because `push_to_hub` calls
    `create_model_card` after the last callback event, immediately before the upload.

    Args:
        trainer (`Trainer`, *optional*): the trainer; if it was not found, a warning says what to do.
        output_dir (`Path`): its output folder.
    """
    if trainer is None:
        warnings.warn(
            "The Trainer of this run was not found, so its model card will have no section on the selection. Run "
            f"`hf-gist card {output_dir}` after training to add it.",
            NoEffectWarning,
            stacklevel=4,
        )
        return
    if getattr(trainer, COMPLETES_CARDS, False):
        return
    setattr(trainer, COMPLETES_CARDS, True)
    create = trainer.create_model_card
    push = trainer.push_to_hub

    @functools.wraps(create)
    def create_model_card(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        complete_card(trainer)

    @functools.wraps(push)
    def push_to_hub(*args: Any, **kwargs: Any) -> Any:
        withhold_rows(trainer)
        return push(*args, **kwargs)

    # `setattr`, because type checkers reject assigning to a method
    setattr(trainer, "create_model_card", create_model_card)  # noqa: B010
    setattr(trainer, "push_to_hub", push_to_hub)  # noqa: B010
    trainer.add_callback(CardCallback(trainer))


def withhold_rows(trainer: Trainer) -> None:
    """Remove text of the dataset from a trainer's output folder before the folder is uploaded.

    Without `push_to_hub=True`, the report was written with rows, because no upload was expected.
    """
    if trainer.is_world_process_zero():
        withhold_text(output_folder(trainer.args))
