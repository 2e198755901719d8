"""Where data and models came from, in words that may be published: Hub ids with revisions, names and digests of files."""

import hashlib
import os
import re
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import constants


CACHED = re.compile(r"[/\\](?P<revision>[0-9a-f]{40})[/\\][^/\\]+\.arrow$")
"""A file that `datasets` made from a Hub repository lies in a folder named after the commit."""


def public_name(name: str | None) -> str | None:
    """A Hub id as it is; of a local path only the last part, because the rest is about somebody's machine."""
    if not name:
        return None
    local = os.path.exists(name) or os.path.isabs(name) or name.startswith((".", "~")) or "\\" in name
    return (PurePath(name.replace("\\", "/")).name or None) if local or name.count("/") > 1 else name


def digest(file: str | os.PathLike | None) -> str | None:
    """SHA-256 of a file."""
    if file is None:
        return None
    with open(file, "rb") as opened:
        total = hashlib.sha256()
        while block := opened.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _repository_of(revision: str) -> str | None:
    """The dataset repository that a commit in the download cache belongs to."""
    found = {
        path.parts[-3].removeprefix("datasets--").replace("--", "/", 1)
        for path in Path(constants.HF_HUB_CACHE).glob(f"datasets--*/snapshots/{revision}")
    }
    return found.pop() if len(found) == 1 else None


def hub_origins(dataset: Any) -> list[dict[str, str]]:
    """The Hub repositories that the rows of a `datasets.Dataset` came from, each with its commit.

    `datasets` keeps neither with the rows. Its cached files lie in folders named after the commit, and the download
    cache says which repository has that commit. Where either says nothing, nothing is claimed.
    """
    files = [str(file["filename"]) for file in getattr(dataset, "cache_files", None) or []]
    revisions = list(dict.fromkeys(match["revision"] for file in files if (match := CACHED.search(file))))
    known = [(revision, _repository_of(revision)) for revision in revisions]
    return [{"id": repository, "revision": revision} for revision, repository in known if repository]


def describe_dataset(dataset: Any) -> dict[str, Any]:
    """What is known of a dataset, for a manifest: rows, fingerprint, and Hub repositories with their commits."""
    facts: dict[str, Any] = {"rows": len(dataset), "fingerprint": getattr(dataset, "_fingerprint", None)}
    origins = hub_origins(dataset)
    if origins:
        facts["hub"] = origins
        facts |= {"split": str(dataset.split)} if getattr(dataset, "split", None) else {}
    return facts


def describe_source(
    file: str | None, dataset_name: str | None, split: str, revision: str | None, facts: dict[str, Any]
) -> dict[str, Any]:
    """The facts of [`describe_dataset`], with what was asked for by name.

    Args:
        file (`str`, *optional*): the local file.
        dataset_name (`str`, *optional*): the Hub id, instead of a file.
        split (`str`): its split.
        revision (`str`, *optional*): its branch, tag or commit, if one was asked for.
        facts (`dict`): of the rows.
    """
    if file is not None:
        return facts | {"file": PurePath(file).name, "sha256": digest(file)}
    commits = {origin["id"]: origin["revision"] for origin in facts.get("hub", [])}
    name = public_name(dataset_name)
    if name != dataset_name:
        return facts | {"file": name, "split": split}
    return facts | {"hub": [{"id": name, "revision": commits.get(name, revision)}], "split": split}
