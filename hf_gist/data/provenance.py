"""Where data and models came from, without local paths: Hub ids with revisions, names and digests of files."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import constants


CACHED_FILE = re.compile(r"[/\\](?P<revision>[0-9a-f]{40})[/\\][^/\\]+\.arrow$")
"""A file in the cache of `datasets`, in a folder whose name is the commit of the Hub repository."""


def public_name(name: str | None) -> str | None:
    """A Hub id unchanged; of a local path only the last part, because cards and manifests are published."""
    if not name:
        return None
    local = os.path.exists(name) or os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name
    return (PurePath(name.replace("\\", "/")).name or None) if local or name.count("/") > 1 else name


def digest(file: str | os.PathLike | None) -> str | None:
    """SHA-256 of a file, in hexadecimal; `None` without a file."""
    if file is None:
        return None
    with open(file, "rb") as opened:
        total = hashlib.sha256()
        while block := opened.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _repository_of(revision: str) -> str | None:
    """The dataset repository with a given commit, from the download cache; `None` unless there is exactly one."""
    found = {
        path.parts[-3].removeprefix("datasets--").replace("--", "/", 1)
        for path in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{revision}")
    }
    return found.pop() if len(found) == 1 else None


def hub_origins(dataset: Any) -> list[dict[str, str]]:
    """The Hub repositories that the rows of a `datasets.Dataset` came from, each with its commit.

    `datasets` stores neither with the rows. Its cached files are in folders named after the commit, and the download
    cache has the repository of that commit. Rows for which one of the two is missing are left out.

    Returns:
        `list[dict[str, str]]`: `id` and `revision` of each repository.
    """
    files = [str(file["filename"]) for file in getattr(dataset, "cache_files", None) or []]
    revisions = list(dict.fromkeys(match["revision"] for file in files if (match := CACHED_FILE.search(file))))
    known = [(revision, _repository_of(revision)) for revision in revisions]
    return [{"id": repository, "revision": revision} for revision, repository in known if repository]


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """A dataset's entry in a manifest: `rows`, `fingerprint`, and if known `hub` (see [`hub_origins`]) and `split`."""
    facts: dict[str, Any] = {"rows": len(dataset), "fingerprint": getattr(dataset, "_fingerprint", None)}
    origins = hub_origins(dataset)
    if origins:
        facts["hub"] = origins
        facts |= {"split": str(dataset.split)} if getattr(dataset, "split", None) else {}
    return facts


@dataclass(frozen=True)
class RowSource:
    """Where to read rows: a local file, or a dataset on the Hub.

    Args:
        file (`str`, *optional*): JSONL, JSON, Parquet or CSV.
        dataset_name (`str`, *optional*): Hub id; exactly one of `file` and `dataset_name` must be given.
        split (`str`): split of the Hub dataset.
        config_name (`str`, *optional*): its configuration, if it has several.
        revision (`str`, *optional*): its branch, tag or commit.
    """

    file: str | None = None
    dataset_name: str | None = None
    split: str = "train"
    config_name: str | None = None
    revision: str | None = None


def describe_source(source: RowSource, facts: dict[str, Any]) -> dict[str, Any]:
    """[`describe_dataset`] extended by the file name and digest, or by the Hub id, revision, split and configuration.

    Args:
        source (`RowSource`): where the rows were read from.
        facts (`dict`): the result of [`describe_dataset`] for these rows.
    """
    if source.file is not None:
        return facts | {"file": PurePath(source.file).name, "sha256": digest(source.file)}
    about = {"split": source.split} | ({"config_name": source.config_name} if source.config_name else {})
    commits = {origin["id"]: origin["revision"] for origin in facts.get("hub", [])}
    name = public_name(source.dataset_name)
    if name != source.dataset_name:
        return facts | {"file": name} | about
    return facts | {"hub": [{"id": name, "revision": commits.get(name, source.revision)}]} | about
