"""A selection as a dataset folder: the selected rows, the scores of all rows, and a card that `datasets` can read."""

import os
from pathlib import Path
from typing import Any

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


SELECTED = "selected.parquet"
ORDER, ROW, SCORE = "gist_order", "gist_row", "gist_score"
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
"""The Hub's names for numbers of rows, and the number that each stays below."""


def _size_category(rows: int) -> str:
    return next((name for name, limit in SIZES if rows < limit), "10M<n<100M")


def _with_scores(selection: Selection, chosen: Dataset) -> Dataset:
    taken = sorted({ORDER, ROW, SCORE} & set(chosen.column_names))
    if taken:
        raise ValueError(f"The pool has the column(s) {', '.join(taken)} already; rename them before the export.")
    columns = {
        ORDER: list(range(len(chosen))),
        ROW: selection.indices,
        SCORE: selection.scores[selection.indices].tolist(),
    }
    for name, values in columns.items():
        chosen = chosen.add_column(name, values)
    return chosen


def write_dataset(
    selection: Selection,
    chosen: Dataset,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a dataset folder from rows that are chosen already.

    Args:
        selection (`Selection`): why they were chosen.
        chosen (`Dataset`): the selected rows, best first.
        folder (`str` or `PathLike`): where to write; it is made if need be.
        repo_id (`str`, *optional*): where the folder will be on the Hub, for the card.
        license (`str`, *optional*): the Hub's name of the licence of the rows; none is claimed without it.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: if the rows are not those of the selection, or have columns of the names that are added.
    """
    if len(chosen) != len(selection.indices):
        raise ValueError(f"{len(chosen):,} rows were given for a selection of {len(selection.indices):,}.")
    scored = _with_scores(selection, chosen)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / SELECTED, scored.to_parquet)
    write(folder / SCORES, selection.write_scores)
    save_config(selection.config, folder)
    selection.write_manifest(folder / MANIFEST)
    card = _card(selection, folder, repo_id, license)
    write(folder / README, lambda name: Path(name).write_text(str(card), encoding="utf-8"))
    return folder


def export_dataset(
    selection: Selection,
    rows: Dataset,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the selected rows of a pool as a dataset folder; see [`write_dataset`].

    Args:
        rows (`Dataset`): the pool, `N` rows in the order that was scored, in any form: not only tokenised.

    Raises:
        ValueError: if the pool is not the one that was scored, as far as its size can tell.
    """
    if not isinstance(rows, Dataset):
        raise ValueError(f"`rows` must be a datasets.Dataset, got {type(rows).__name__}.")
    if len(rows) != len(selection.scores):
        raise ValueError(f"`rows` has {len(rows):,} rows, and {len(selection.scores):,} were scored.")
    return write_dataset(selection, rows.select(selection.indices), folder, repo_id, license)


def _card(selection: Selection, folder: Path, repo_id: str | None, license: str | None) -> DatasetCard:
    title = repo_id.split("/")[-1] if repo_id else folder.absolute().name
    address = repo_id or "user/name"
    data = DatasetCardData(
        license=license,
        tags=["hf-gist", *(["gist"] if is_gist(selection) else [])],
        size_categories=[_size_category(len(selection.indices))],
        source_datasets=hub_ids(selection.manifest) or None,
        configs=[
            {"config_name": "selected", "default": True, "data_files": [{"split": "train", "path": SELECTED}]},
            {"config_name": "scores", "data_files": [{"split": "train", "path": SCORES}]},
        ],
    )
    values: dict[str, Any] = selection_values(selection, folder, folder)
    body = render(
        "dataset_card.md",
        **values,
        title=title,
        usage=_usage(address),
        config=selection.config.to_yaml(),
        command=select_command(selection, f"hf://datasets/{address}"),
        versions=versions_of(selection.manifest),
        version=__version__,
        citations=citations(),
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _usage(address: str) -> str:
    return "\n".join(
        [
            "from datasets import load_dataset",
            "",
            f'rows = load_dataset("{address}", split="train")  # the selected rows, best first',
            f'scores = load_dataset("{address}", "scores", split="train")  # every row of the pool',
        ]
    )
