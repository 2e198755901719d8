"""Where data and models came from, without local paths: Hub ids with revisions, names and digests of files."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import constants

from hf_gist.data.reading.files import find_files


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
    """Where to read rows: local files, or datasets on the Hub.

    Args:
        file (`str` or list, *optional*): files, folders or patterns such as `data/*.jsonl`.
        dataset_name (`str` or list, *optional*): Hub ids; exactly one of `file` and `dataset_name` must be given.
        split (`str`): split of the Hub datasets.
        config_name (`str`, *optional*): their configuration, if they have several.
        revision (`str`, *optional*): their branch, tag or commit.
    """

    file: str | Sequence[str] | None = None
    dataset_name: str | Sequence[str] | None = None
    split: str = "train"
    config_name: str | None = None
    revision: str | None = None

    @property
    def files(self) -> list[str]:
        """The values of `file`."""
        return _as_list(self.file)

    @property
    def dataset_names(self) -> list[str]:
        """The values of `dataset_name`."""
        return _as_list(self.dataset_name)


def _as_list(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def _file_facts(source: RowSource, argument: str) -> list[dict[str, Any]]:
    """Name and digest of every file; of a folder of `save_to_disk` only the name."""
    facts = []
    for file in find_files(source.files, argument):
        known: dict[str, Any] = {"sha256": digest(file.path)} if file.path.is_file() else {}
        facts.append({"file": file.name, **known})
    return facts


def describe_source(source: RowSource, facts: dict[str, Any], argument: str = "train_file") -> dict[str, Any]:
    """[`describe_dataset`] extended by the file name and digest, or by the Hub id, revision, split and configuration.

    Several files are in a list `files`, each with its name and digest.

    Args:
        source (`RowSource`): where the rows were read from.
        facts (`dict`): the result of [`describe_dataset`] for these rows.
        argument (`str`): name of the files' flag, for messages.
    """
    if source.files:
        return facts | _one_or_several(_file_facts(source, argument))
    about = {"split": source.split} | ({"config_name": source.config_name} if source.config_name else {})
    commits = {origin["id"]: origin["revision"] for origin in facts.get("hub", [])}
    names = {name: public_name(name) for name in source.dataset_names}
    ids = [name for name in names if names[name] == name]
    hub = {"hub": [{"id": name, "revision": commits.get(name, source.revision)} for name in ids]} if ids else {}
    local = [{"file": public} for name, public in names.items() if public != name]
    return facts | hub | (_one_or_several(local) if local else {}) | about


def _one_or_several(files: list[dict[str, Any]]) -> dict[str, Any]:
    return files[0] if len(files) == 1 else {"files": files}


def files_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The files in a manifest's entry on a dataset, each with `file` and, if known, `sha256`."""
    if "files" in facts:
        return list(facts["files"])
    return [{name: facts[name] for name in ("file", "sha256") if facts.get(name)}] if facts.get("file") else []


def digests_of(facts: dict[str, Any]) -> list[str]:
    """The digests in a manifest's entry on a dataset; empty if one is not known."""
    found = [file.get("sha256") for file in files_of(facts)]
    return [text for text in found if text] if all(found) else []
