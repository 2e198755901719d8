"""`hf-gist select --from_scores`: another selection from saved scores, without a model."""

import dataclasses
from pathlib import Path
from typing import Any

from hf_gist.commands.flags import SelectArguments
from hf_gist.data.provenance import describe_source, digests_of
from hf_gist.data.reading.origins import RawRows
from hf_gist.gist.history import ENTRY
from hf_gist.gist.selection import RESELECTABLE, Selection
from hf_gist.report import keep_examples


USABLE = {
    *RESELECTABLE,
    *("from_scores", "output_dir", "output_format"),
    *("train_file", "dataset_name", "dataset_split", "dataset_config_name", "dataset_revision"),
    *("columns", "skip_bad_rows"),
}
"""Flags that need no new scoring."""


def select_from_scores(
    arguments: SelectArguments, given: dict[str, Any], pool: RawRows | None
) -> tuple[Selection, RawRows | None]:
    """Select again from the scores of an earlier run, and save the selection.

    Args:
        arguments (`SelectArguments`): folder of the scores, output folder.
        given (`dict`): the flags that were given.
        pool (`RawRows`, *optional*): the raw pool.

    Returns:
        The selection, and the rows of the pool that were scored.

    Raises:
        ValueError: for flags that need scoring, missing scores, or another pool.
    """
    if set(given) - USABLE:
        names = ", ".join(f"--{name}" for name in sorted(set(given) - USABLE))
        raise ValueError(f"{names} would need new scoring and cannot be used with `--from_scores`.")
    scored = Path(given["from_scores"])
    before = Selection.load(scored)
    selection = before.reselect(**{name: given[name] for name in RESELECTABLE if name in given})
    manifest = {name: value for name, value in selection.manifest.items() if name != ENTRY}
    selection = dataclasses.replace(selection, manifest=manifest)
    if pool is not None:
        pool = without_skipped(pool, before)
        check_pool(pool, before, arguments)
    selection.save(arguments.folder)
    keep_examples(arguments.folder, selection, None if pool is None else pool.rows, None, earlier=scored)
    return selection, pool


def check_pool(pool: RawRows, scored: Selection, arguments: SelectArguments) -> None:
    """Compare the pool with the one that was scored, by its size and the digests of its files.

    Raises:
        ValueError: if it differs.
    """
    known = digests_of(scored.manifest["train_dataset"])
    found = digests_of(describe_source(arguments.pool_source, {}))
    if len(pool) != len(scored.scores) or (known and found and known != found):
        raise ValueError(
            f"The pool given ({len(pool)} rows) is not the one that was scored in {arguments.from_scores} "
            f"({len(scored.scores)} rows). Give the `--train_file` or `--dataset_name` of that run."
        )


def without_skipped(pool: RawRows, scored: Selection) -> RawRows:
    """The pool without the rows that the scored run left out.

    Args:
        pool (`RawRows`): all rows that can be read.
        scored (`Selection`): of that run.
    """
    skipped = {entry["row"] for entry in scored.manifest.get("skipped_rows", [])}
    if not skipped:
        return pool
    return pool.select([row for row in range(len(pool)) if pool.where(row) not in skipped])
