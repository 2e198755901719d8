"""A selection as a dataset folder: the selected rows, the scores of all rows, and a dataset card."""

import os
from pathlib import Path

from datasets import Dataset
from huggingface_hub import DatasetCard, DatasetCardData

from hf_gist.config.files import save_config
from hf_gist.gist.artifacts import MANIFEST, SCORES
from hf_gist.gist.selection import Selection
from hf_gist.hub.card_facts import hub_ids, is_gist, select_command
from hf_gist.hub.model_card import selection_values, versions_of
from hf_gist.hub.run import README
from hf_gist.hub.templating import citations, render
from hf_gist.utils.disk import write
from hf_gist.version import __version__


SELECTED_FILE = "selected.parquet"

ORDER_COLUMN = "gist_order"
ROW_COLUMN = "gist_row"
SCORE_COLUMN = "gist_score"

SIZE_CATEGORIES = (
    ("n<1K", 10**3),
    ("1K<n<10K", 10**4),
    ("10K<n<100K", 10**5),
    ("100K<n<1M", 10**6),
    ("1M<n<10M", 10**7),
)
"""The Hub's size categories, each with the number of rows it ends before."""


def export_dataset(
    selection: Selection,
    rows: Dataset,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the selected rows of a pool as a dataset folder that `load_dataset` can read and that is ready for the Hub.

    The folder has a dataset card (`README.md`) with two configurations: `selected` (default), the selected rows, best
    first, with the columns of the pool and `gist_order`, `gist_row` (row number in the pool) and `gist_score`; and
    `scores`, one row per row of the pool. It also has `gist_config.json` and `manifest.json`, and the figures if
    matplotlib is installed.

    Args:
        selection (`Selection`): what was selected.
        rows (`Dataset`): the pool, `N` rows in the order that was scored. The columns may differ from those that were
            scored, such as the text before tokenising.
        folder (`str` or `PathLike`): where to write; created if it does not exist.
        repo_id (`str`, *optional*): `user/name` of the dataset on the Hub, for the card's title and examples.
        license (`str`, *optional*): the Hub's id of the licence of the rows, such as `apache-2.0`; without it, the card
            has no licence.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if `rows` is not a `datasets.Dataset`, has another number of rows than were scored, or has a column
            with one of the added names.
        OSError: if a file cannot be written.

    Example:
        ```python
        from datasets import load_dataset
        from hf_gist import Selection, export_dataset

        selection = Selection.load("out/gist")
        pool = load_dataset("json", data_files="pool.jsonl", split="train")
        folder = export_dataset(selection, pool, "subset", repo_id="user/subset", license="apache-2.0")
        best = load_dataset(str(folder), split="train")
        ```
    """
    if not isinstance(rows, Dataset):
        raise ValueError(f"`rows` must be a datasets.Dataset, got {type(rows).__name__}.")
    if len(rows) != len(selection.scores):
        raise ValueError(f"`rows` has {len(rows):,} rows, but {len(selection.scores):,} were scored.")
    return write_dataset(selection, rows.select(selection.indices), folder, repo_id, license)


def write_dataset(
    selection: Selection,
    chosen: Dataset,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """[`export_dataset`] for rows that are cut to the selection already.

    Args:
        selection (`Selection`): what was selected.
        chosen (`Dataset`): the selected rows, best first.
        folder (`str` or `PathLike`): see [`export_dataset`].
        repo_id (`str`, *optional*): see [`export_dataset`].
        license (`str`, *optional*): see [`export_dataset`].

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if the number of rows is not that of the selection, or a column has one of the added names.
    """
    if len(chosen) != len(selection.indices):
        raise ValueError(f"The selection has {len(selection.indices):,} rows, but {len(chosen):,} were given.")
    scored = _with_scores(selection, chosen)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / SELECTED_FILE, scored.to_parquet)
    write(folder / SCORES, selection.write_scores)
    save_config(selection.config, folder)
    selection.write_manifest(folder / MANIFEST)
    card = _card(selection, folder, repo_id, license)
    write(folder / README, lambda name: Path(name).write_text(str(card), encoding="utf-8"))
    return folder


def _with_scores(selection: Selection, chosen: Dataset) -> Dataset:
    """The selected rows with three more columns: position in the selection, row number in the pool, score."""
    taken = sorted({ORDER_COLUMN, ROW_COLUMN, SCORE_COLUMN} & set(chosen.column_names))
    if taken:
        raise ValueError(f"The pool has the column(s) {', '.join(taken)} already; rename them before the export.")
    columns = {
        ORDER_COLUMN: list(range(len(chosen))),
        ROW_COLUMN: selection.indices,
        SCORE_COLUMN: selection.scores[selection.indices].tolist(),
    }
    for name, values in columns.items():
        chosen = chosen.add_column(name, values)
    return chosen


# ---- The card ----


def _card(selection: Selection, folder: Path, repo_id: str | None, license: str | None) -> DatasetCard:
    title = repo_id.split("/")[-1] if repo_id else folder.absolute().name
    address = repo_id or "user/name"
    body = render(
        "dataset_card.md",
        **selection_values(selection, folder, folder),
        title=title,
        usage=_usage(address),
        config=selection.config.to_yaml(),
        command=select_command(selection, f"hf://datasets/{address}"),
        versions=versions_of(selection.manifest),
        version=__version__,
        citations=citations(),
    )
    return DatasetCard(f"---\n{_metadata(selection, license).to_yaml()}\n---\n\n{body}")


def _metadata(selection: Selection, license: str | None) -> DatasetCardData:
    return DatasetCardData(
        license=license,
        tags=["hf-gist", *(["gist"] if is_gist(selection) else [])],
        size_categories=[_size_category(len(selection.indices))],
        source_datasets=hub_ids(selection.manifest) or None,
        configs=[
            {"config_name": "selected", "default": True, "data_files": [{"split": "train", "path": SELECTED_FILE}]},
            {"config_name": "scores", "data_files": [{"split": "train", "path": SCORES}]},
        ],
    )


def _size_category(rows: int) -> str:
    return next((name for name, limit in SIZE_CATEGORIES if rows < limit), "10M<n<100M")


def _usage(address: str) -> str:
    return "\n".join(
        [
            "from datasets import load_dataset",
            "",
            f'rows = load_dataset("{address}", split="train")  # the selected rows, best first',
            f'scores = load_dataset("{address}", "scores", split="train")  # one row per row of the pool',
        ]
    )
