"""`hf-gist select --from_scores`: another selection from saved scores, without a model."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_gist.commands.flags import SelectArguments
from hf_gist.data.provenance import digest
from hf_gist.gist.selection import RESELECTABLE, Selection
from hf_gist.report import keep_examples


USABLE = {
    *RESELECTABLE,
    *("from_scores", "output_dir", "output_format"),
    *("train_file", "dataset_name", "dataset_split", "dataset_config_name", "dataset_revision"),
}
"""Flags that need no new scoring."""


def select_from_scores(arguments: SelectArguments, given: dict[str, Any], pool: Dataset | None) -> Selection:
    """Select again from the scores of an earlier run, and save the selection.

    Args:
        arguments (`SelectArguments`): folder of the scores, output folder.
        given (`dict`): the flags that were given.
        pool (`Dataset`, *optional*): the raw pool.

    Raises:
        ValueError: for flags that need scoring, missing scores, or another pool.
    """
    if set(given) - USABLE:
        names = ", ".join(f"--{name}" for name in sorted(set(given) - USABLE))
        raise ValueError(f"{names} would need new scoring and cannot be used with `--from_scores`.")
    scored = Path(given["from_scores"])
    before = Selection.load(scored)
    selection = before.reselect(**{name: given[name] for name in RESELECTABLE if name in given})
    if pool is not None:
        check_pool(pool, before, arguments)
    selection.save(arguments.folder)
    keep_examples(arguments.folder, selection, pool, None, earlier=scored)
    return selection


def check_pool(pool: Dataset, scored: Selection, arguments: SelectArguments) -> None:
    """Compare the pool with the one that was scored, by its size and the digest of its file.

    Raises:
        ValueError: if it differs.
    """
    known = scored.manifest["train_dataset"].get("sha256")
    found = digest(arguments.train_file)
    if len(pool) != len(scored.scores) or (known and found and known != found):
        raise ValueError(
            f"The pool given ({len(pool)} rows) is not the one that was scored in {arguments.from_scores} "
            f"({len(scored.scores)} rows). Give the `--train_file` or `--dataset_name` of that run."
        )
