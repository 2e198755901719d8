"""`hf-gist card`: the card of a run, or its selected rows as a dataset, written and pushed."""

import argparse
from pathlib import Path

from datasets import Dataset

from hf_gist.data.provenance import RowSource, describe_source, digests_of
from hf_gist.data.reading.load import load_rows
from hf_gist.gist.selection import Selection
from hf_gist.hub.dataset_card import export_dataset, write_dataset
from hf_gist.hub.model_card import write_card
from hf_gist.hub.push import push_folder, push_to_hub
from hf_gist.hub.run import Run, find_run
from hf_gist.report.runs.stream import SELECTED_FILES
from hf_gist.utils.terminal import named_path, say


DATASET_FOLDER = "_dataset"
"""Where the selected rows are exported to; neither Trainer nor `push_to_hub` uploads names that begin so with the model."""


def add_card_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist card`."""
    parser.add_argument("folder", metavar="DIR", help="Output folder of a training run or of hf-gist select.")
    _add_push_flags(parser)
    _add_dataset_flags(parser)


def _add_push_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repo_id", help="Repository on the Hub: user/name.")
    parser.add_argument("--push", action="store_true", help="Upload to --repo_id. By default nothing is uploaded.")
    parser.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        help="Whether a repository created by the push is private. Default: the account's setting.",
    )
    parser.add_argument("--revision", help="Branch to push to.")


def _add_dataset_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        action="store_true",
        help="Instead of the model: the selected rows and all scores as a dataset with its own card, in DIR/_dataset.",
    )
    parser.add_argument("--license", help="With --dataset: the Hub's name of the rows' licence, such as apache-2.0.")
    parser.add_argument("--train_file", nargs="+", help="With --dataset: the pool, if DIR has no selected rows.")
    parser.add_argument("--dataset_name", nargs="+", help="With --dataset: the pool on the Hub, instead of a file.")
    parser.add_argument("--dataset_split", default="train", help="Split of --dataset_name. Default: train.")
    parser.add_argument("--dataset_config_name", help="Configuration of --dataset_name, if it has several.")
    parser.add_argument("--dataset_revision", help="Branch, tag or commit of --dataset_name.")


def _check_flags(flags: argparse.Namespace) -> None:
    """Raise ValueError for a flag without the flag that it requires."""
    if flags.push and not flags.repo_id:
        raise ValueError("`--push` needs `--repo_id user/name`: the repository to push to.")
    for name in ("private", "revision"):
        if getattr(flags, name) is not None and not flags.push:
            raise ValueError(f"`--{name}` needs `--push`.")
    for name in ("license", "train_file", "dataset_name", "dataset_config_name", "dataset_revision"):
        if getattr(flags, name) and not flags.dataset:
            raise ValueError(f"`--{name}` needs `--dataset`.")


def _write_dataset(flags: argparse.Namespace, run: Run) -> Path:
    """Write the selected rows of a run as a dataset folder; returns the folder."""
    if run.selection is None:
        raise ValueError(f"{flags.folder} contains no selection, so there are no rows for a dataset.")
    target = Path(flags.folder) / DATASET_FOLDER
    about = {"repo_id": flags.repo_id, "license": flags.license}
    if flags.train_file is not None or flags.dataset_name is not None:
        return export_dataset(run.selection, _load_pool(flags, run.selection), target, **about)
    return write_dataset(run.selection, _selected_rows(Path(flags.folder)), target, **about)


def _load_pool(flags: argparse.Namespace, selection: Selection) -> Dataset:
    """The pool given by the flags, after a check that it is the scored one."""
    source = RowSource(
        flags.train_file,
        flags.dataset_name,
        flags.dataset_split,
        flags.dataset_config_name,
        flags.dataset_revision,
    )
    skipped = {entry["row"] for entry in selection.manifest.get("skipped_rows", [])}
    pool = load_rows(source, "train_file", skipped)
    known = digests_of(selection.manifest["train_dataset"])
    found = digests_of(describe_source(source, {}))
    if known and found and known != found:
        raise ValueError(
            f"`--train_file {' '.join(flags.train_file)}` is not the pool that was scored: its content differs."
        )
    return pool


def _selected_rows(folder: Path) -> Dataset:
    """The rows that `hf-gist select` wrote."""
    path = next((folder / name for name in SELECTED_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} contains no selected rows; give the pool with `--train_file` or `--dataset_name`.")
    return load_rows(RowSource(str(path)), "train_file")


def run_card(flags: argparse.Namespace) -> None:
    """Write the card or the dataset, push it with `--push`, and print its path or URL."""
    _check_flags(flags)
    run = find_run(flags.folder, flags.repo_id)
    where = {"private": flags.private, "revision": flags.revision}
    if flags.dataset:
        folder = _write_dataset(flags, run)
        say(named_path("dataset", folder))
        if flags.push:
            say(named_path("pushed to", push_folder(folder, flags.repo_id, repo_type="dataset", **where)))
        return
    say(named_path("card", write_card(run)))
    if flags.push:
        say(named_path("pushed to", push_to_hub(flags.folder, flags.repo_id, **where)))
