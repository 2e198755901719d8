"""`hf-gist card`."""

import argparse
import sys
from pathlib import Path

from datasets import Dataset

from hf_gist.data.formats import load_rows
from hf_gist.data.provenance import RowSource, digest
from hf_gist.hub.dataset_card import export_dataset, write_dataset
from hf_gist.hub.model_card import write_card
from hf_gist.hub.push import SELECTED_FILES, push_folder, push_to_hub
from hf_gist.hub.run import Run, find_run


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
