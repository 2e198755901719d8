"""Cards and pushes of a running Trainer."""

import functools
import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.config.files import FOLDER, save_config
from hf_gist.costs.manifest import training_manifest
from hf_gist.errors import NoEffectWarning
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_metrics import evaluation_results
from hf_gist.hub.model_card import write_card
from hf_gist.hub.run import GAST_MANIFEST, Run
from hf_gist.report import withhold_text
from hf_gist.training.caller import calling_trainer
from hf_gist.utils.disk import write_json


MARK = "_hf_gist_card"


def _gast_manifest(trainer: Trainer) -> dict[str, Any]:
    return training_manifest(
        trainer.accelerator.unwrap_model(trainer.model),
        train_dataset=trainer.train_dataset,
        support_dataset=getattr(trainer, "support_dataset", None),
    )


def save_gast(trainer: Trainer) -> None:
    """Write the configuration and the manifest of a GAST training, from which its card can be made later."""
    folder = Path(trainer.args.output_dir)
    save_config(trainer.gast_config, folder)
    write_json(folder / GAST_MANIFEST, _gast_manifest(trainer))


def _run_of(trainer: Trainer) -> Run | None:
    """What a trainer did so far; `None` before a selection, and for a trainer without GAST."""
    found = (getattr(callback, "selection", None) for callback in trainer.callback_handler.callbacks)
    selection = next((value for value in found if isinstance(value, Selection)), None)
    gast = getattr(trainer, "gast_config", None)
    gast = None if gast is None or gast.mode == "all" else gast
    if selection is None and gast is None:
        return None
    state, folder = trainer.state, Path(trainer.args.output_dir)
    best = trainer.args.load_best_model_at_end and not trainer.is_in_train and state.best_global_step
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
            best or state.global_step,
            manifest["model"]["class"],
            getattr(trainer, "eval_dataset", None),
        ),
    )


def complete_card(trainer: Trainer) -> None:
    """Add the data-selection section to the card in a trainer's output folder, or write a card if there is none."""
    if not trainer.is_world_process_zero():
        return
    run = _run_of(trainer)
    if run is not None:
        write_card(run)


class CardCallback(TrainerCallback):
    """Completes the card before each push of a training in progress.

    Args:
        trainer (`Trainer`): whose card it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Complete the card."""
        complete_card(self.trainer)


def attach(trainer: Trainer) -> None:
    """Have every card that a trainer writes completed, and no row of the data uploaded by it; once is enough."""
    if getattr(trainer, MARK, False):
        return
    setattr(trainer, MARK, True)
    # `push_to_hub` calls it after the last event that a callback gets, right before the upload
    original, push = trainer.create_model_card, trainer.push_to_hub

    @functools.wraps(original)
    def create_model_card(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        complete_card(trainer)

    @functools.wraps(push)
    def push_without_text(*args: Any, **kwargs: Any) -> Any:
        # it uploads the whole folder, and a training without `push_to_hub=True` did not know that this would happen
        if trainer.is_world_process_zero():
            withhold_text(trainer.args.output_dir)
        return push(*args, **kwargs)

    trainer.create_model_card, trainer.push_to_hub = create_model_card, push_without_text
    trainer.add_callback(CardCallback(trainer))


def attach_to_caller(output_dir: str) -> None:
    """[`attach`] to the Trainer that is calling back; says so if there is none."""
    trainer = calling_trainer()
    if trainer is None:
        warnings.warn(
            "The Trainer of this run was not found, so its model card will have no section on the selection. Afterwards "
            f"`hf-gist card {output_dir}` adds it.",
            NoEffectWarning,
            stacklevel=3,
        )
    else:
        attach(trainer)
