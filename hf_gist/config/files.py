"""Reads configuration files from a folder or the Hub, and writes them to a folder."""

import os
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from huggingface_hub import hf_hub_download, parse_hf_uri
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_gist.utils.disk import write
from hf_gist.version import __version__


FOLDER = "gist"
"""Name of the folder for a selection's artifacts in the output folder of a training run."""

SCHEME = "hf://"
LIBRARY: dict[str, Any] = {"library_name": "hf_gist", "library_version": __version__}
"""Identifies this package in requests to the Hub."""


class ConfigFile(Protocol):
    """A configuration class with a file name and JSON conversion."""

    FILE: ClassVar[str]

    @classmethod
    def from_json(cls, text: str, name: str | None = None) -> Any:
        """Build from JSON text."""

    def to_json(self) -> str:
        """The fields as JSON text."""


Config = TypeVar("Config", bound=ConfigFile)


def _hub_file(name: str, file: str, repo_type: str, **download: Any) -> Path:
    try:
        return Path(hf_hub_download(name, file, repo_type=repo_type, **LIBRARY, **download))
    except HFValidationError as error:
        raise ValueError(f"{name!r} is neither a local folder nor a Hub id: {error}") from error
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        where = f"the {repo_type} repository {name!r}"
        raise ValueError(_why_not_found(error, name, file, where, download.get("revision"))) from error


def _why_not_found(error: Exception, name: str, file: str, where: str, revision: str | None) -> str:
    if isinstance(error, GatedRepoError):
        return f"Request access to {where} on its page, then log in with `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name!r} is not a local folder, and {where} does not exist or is private. For a private one, log in with "
            "`hf auth login` or pass `token`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{where} has no revision {revision!r}."
    if isinstance(error, LocalEntryNotFoundError):
        return f"`{file}` of {where} is not in the cache, and the Hub cannot be reached: {error}"
    return f"{where} has no `{file}`: it does not contain a run of hf_gist, or its run did not use this configuration."


def _parse(cls: type[Config], path: Path, name: str) -> Config:
    try:
        return cls.from_json(path.read_text(encoding="utf-8"), f"`{cls.FILE}`")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{cls.FILE}` of {name!r} is not valid JSON: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"`{cls.FILE}` of {name!r} is damaged or is not valid for hf_gist {__version__}; it may have been "
            f"written by a newer version. {error}"
        ) from error


def load_config(cls: type[Config], name: str | os.PathLike, repo_type: str = "model", **download: Any) -> Config:
    """A configuration from its file in a folder or on the Hub.

    Args:
        cls (`type`): the configuration class, with the name of its file.
        name (`str` or `PathLike`): a folder (of a run, or of the artifacts in it), or `user/name` on the Hub.
        repo_type (`str`, defaults to `"model"`): `"model"` or `"dataset"`.
        download: `revision`, `token`, `cache_dir`, ... of [`~huggingface_hub.hf_hub_download`].

    Raises:
        ValueError: if the file does not exist or is not valid, naming the cause.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        found = [path for path in (folder / cls.FILE, folder / FOLDER / cls.FILE) if path.is_file()]
        if not found:
            raise ValueError(f"{folder} has no `{cls.FILE}`; a run writes it into its output folder.")
        return _parse(cls, found[0], str(name))
    if isinstance(name, os.PathLike) or str(name).startswith((".", "~", os.sep)) or str(name).count("/") > 1:
        raise ValueError(f"{str(name)!r} is neither a local folder nor a Hub id (`user/name`).")
    return _parse(cls, _hub_file(name, cls.FILE, repo_type, **download), name)


def config_from_uri(cls: type[Config], uri: str) -> Config:
    """A configuration from `hf://user/model`, `hf://user/model@revision` or `hf://datasets/user/name`.

    Raises:
        ValueError: if the address has another form; see also [`load_config`].
    """
    try:
        address = parse_hf_uri(uri)
    except ValueError as error:
        raise ValueError(f"{uri!r} is not a Hub address: {error}") from error
    if address.path_in_repo or address.type not in ("model", "dataset"):
        raise ValueError(f"{uri!r}: give the repository alone, as in hf://user/model@revision.")
    return _parse(cls, _hub_file(address.id, cls.FILE, address.type, revision=address.revision), uri)


def save_config(config: ConfigFile, folder: str | os.PathLike) -> Path:
    """Write a configuration into a folder, which is created if needed, under the name that [`load_config`] reads."""
    path = Path(folder) / config.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda name: Path(name).write_text(config.to_json(), encoding="utf-8"))
    return path
