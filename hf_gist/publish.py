"""Cards and pushes of runs: the hook into trainers, and `hf-gist card`."""

import argparse
import functools
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_gist.artifacts import FOLDER, TARGETS, Selection
from hf_gist.caller import calling_trainer
from hf_gist.card_metrics import evaluation_results
from hf_gist.data import load_rows
from hf_gist.dataset_card import export_dataset, write_dataset
from hf_gist.disk import write_json
from hf_gist.errors import NoEffectWarning
from hf_gist.hub import push_folder, save_config
from hf_gist.manifest import training_manifest
from hf_gist.model_card import GAST_MANIFEST, WARMUP_ADAPTER, Run, find_run, write_card
from hf_gist.provenance import RowSource, digest
from hf_gist.report import EXAMPLES, REPORT, withhold_text


MARK = "_hf_gist_card"
SELECTED_FILES = ("selected.parquet", "selected.jsonl")

WITH_TEXT = (REPORT, f"{FOLDER}/{EXAMPLES}", f"{FOLDER}/{TARGETS}", "test_predictions.jsonl", *SELECTED_FILES)
"""Of a training's output folder: what holds rows of the data."""

NOT_PUSHED = ["_*", ".*", "checkpoint-*", "training_args.bin", f"{FOLDER}/partial*", *WITH_TEXT]
"""Of a training's output folder: what Trainer leaves out, and what says more of the machine than of the model."""

PUSHED_OF_A_SELECTION = [
    "README.md",
    "*.png",
    "gist_config.json",
    "manifest.json",
    "costs.json",
    "scores.parquet",
    f"{WARMUP_ADAPTER}/adapter_*",
]
"""Of the output folder of `hf-gist select`: no data, and nothing that merely lies beside it."""


# ---- Trainers ----


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


# ---- Folders ----


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Write the model card of a run that is over, and upload the run.

    A trainer needs none of this: `trainer.push_to_hub()` does it.

    Args:
        folder (`str` or `PathLike`): output folder of a training with GIST or GAST, or of `hf-gist select`. Of the
            latter only the card, the configuration, the scores and the warm-up adapter are uploaded, and no data.
        repo_id (`str`): `user/model`; it is made if need be.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): by default that of `hf auth login`.
        revision (`str`, *optional*): branch to commit to.

    Returns:
        `str`: address of the repository.

    Raises:
        ValueError: if the folder holds no run.
    """
    run = find_run(folder, repo_id)
    write_card(run)
    patterns = {"ignore_patterns": NOT_PUSHED} if run.trained else {"allow_patterns": PUSHED_OF_A_SELECTION}
    return push_folder(folder, repo_id, private=private, token=token, revision=revision, **patterns)


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist card`."""
    parser.add_argument("folder", metavar="DIR", help="Output folder of a training or of hf-gist select.")
    parser.add_argument("--repo_id", help="Where it is or will be on the Hub: user/name.")
    parser.add_argument("--push", action="store_true", help="Upload it to --repo_id; by default it is only written.")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="Whether a repository that the push makes is private; by default as the account has it.",
    )
    parser.add_argument("--revision", help="Branch to push to.")
    parser.add_argument(
        "--dataset",
        action="store_true",
        help="Instead of the model: the selected rows and all scores as a dataset with its own card, in DIR/dataset.",
    )
    parser.add_argument("--license", help="With --dataset: the Hub's name of the rows' licence, such as apache-2.0.")
    parser.add_argument("--train_file", help="With --dataset: the pool, if DIR holds no selected rows.")
    parser.add_argument("--dataset_name", help="With --dataset: the pool on the Hub, instead of a file.")
    parser.add_argument("--dataset_split", default="train", help="Its split. Default: train.")
    parser.add_argument("--dataset_config_name", help="Its configuration, if it has several.")
    parser.add_argument("--dataset_revision", help="Its branch, tag or commit.")


def _check(flags: argparse.Namespace) -> None:
    if flags.push and not flags.repo_id:
        raise ValueError("`--push` needs `--repo_id user/name`: where to.")
    for name in ("private", "revision"):
        if getattr(flags, name) is not None and not flags.push:
            raise ValueError(f"`--{name}` says how to push; give `--push` too.")
    for name in ("license", "train_file", "dataset_name", "dataset_config_name", "dataset_revision"):
        if getattr(flags, name) and not flags.dataset:
            raise ValueError(f"`--{name}` is about the dataset; give `--dataset` too.")


def _export(flags: argparse.Namespace, run: Run) -> Path:
    """The dataset folder of a run."""
    folder = Path(flags.folder)
    if run.selection is None:
        raise ValueError(f"{folder} holds no selection, so there is nothing to make a dataset of.")
    target, about = folder / "dataset", {"repo_id": flags.repo_id, "license": flags.license}
    if flags.train_file is not None or flags.dataset_name is not None:
        source = RowSource(
            flags.train_file,
            flags.dataset_name,
            flags.dataset_split,
            flags.dataset_config_name,
            flags.dataset_revision,
        )
        pool = load_rows(source, "train_file")
        known, found = run.selection.manifest["train_dataset"].get("sha256"), digest(flags.train_file)
        if known and found and known != found:
            raise ValueError(
                f"`--train_file {flags.train_file}` is not the pool that was scored: its content differs."
            )
        return export_dataset(run.selection, pool, target, **about)
    path = next((folder / name for name in SELECTED_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} holds no selected rows; give the pool with `--train_file` or `--dataset_name`.")
    chosen: Dataset = load_rows(RowSource(str(path)), "train_file")
    return write_dataset(run.selection, chosen, target, **about)


def run_card(flags: argparse.Namespace) -> None:
    """`hf-gist card`."""
    _check(flags)
    run = find_run(flags.folder, flags.repo_id)
    where = {"private": flags.private, "revision": flags.revision}
    if flags.dataset:
        folder = _export(flags, run)
        sys.stdout.write(f"dataset: {folder}\n")
        if flags.push:
            sys.stdout.write(f"pushed to {push_folder(folder, flags.repo_id, repo_type='dataset', **where)}\n")
        return
    sys.stdout.write(f"card: {write_card(run)}\n")
    if flags.push:
        sys.stdout.write(f"pushed to {push_to_hub(flags.folder, flags.repo_id, **where)}\n")
