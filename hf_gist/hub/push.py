"""Uploads to the Hub: a folder, or a run with its model card."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from huggingface_hub import HfApi

from hf_gist.config.files import FOLDER, LIBRARY
from hf_gist.data.provenance import public_name
from hf_gist.gist.artifacts import TARGETS
from hf_gist.hub.model_card import write_card
from hf_gist.hub.run import ADAPTER_CONFIG, WARMUP_ADAPTER, find_run
from hf_gist.report import EXAMPLES_FILE, REPORT
from hf_gist.report.charts import FIGURES
from hf_gist.report.runs.stream import SELECTED_FILES
from hf_gist.utils.disk import read_json, write_json


FILES_WITH_ROWS = (
    REPORT,
    f"{FOLDER}/{EXAMPLES_FILE}",
    f"{FOLDER}/{TARGETS}",
    "test_predictions.jsonl",
    *SELECTED_FILES,
)
"""Files in a training output folder that may contain rows of the data."""

TRAINING_IGNORE_PATTERNS = [
    "_*",
    ".*",
    "checkpoint-*",
    "training_args.bin",
    f"{FOLDER}/partial*",
    *FILES_WITH_ROWS,
]
"""Files in a training output folder that are not uploaded: those that Trainer leaves out, unfinished scores,
`training_args.bin` (it has local paths), and files with rows."""

SELECTION_ALLOW_PATTERNS = [
    "README.md",
    *(f"{key}.png" for key in FIGURES),
    "gist_config.json",
    "manifest.json",
    "costs.json",
    "scores.parquet",
    f"{WARMUP_ADAPTER}/adapter_*",
]
"""Files in the output folder of `hf-gist select` that are uploaded: none with rows, and no files added by the user."""


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    allow_patterns: list[str] | None = None,
    ignore_patterns: list[str] | None = None,
) -> str:
    """Upload a folder to the Hub. The repository is created if it does not exist.

    Args:
        folder (`str` or `PathLike`): what to upload.
        repo_id (`str`): `user/name`.
        repo_type (`str`, defaults to `"model"`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): whether a new repository is private; by default the setting of the account or
            organization.
        token (`str`, *optional*): access token; by default the one saved by `hf auth login`.
        revision (`str`, *optional*): branch to commit to, created if it does not exist; by default `main`.
        commit_message (`str`, *optional*): by default that of `huggingface_hub`.
        allow_patterns (`list[str]`, *optional*): upload only files that match one of these glob patterns.
        ignore_patterns (`list[str]`, *optional*): do not upload files that match one of these glob patterns.

    Returns:
        `str`: URL of the repository.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: if the Hub rejects the request, for example without write access.
    """
    api = HfApi(token=token, library_name=LIBRARY["library_name"], library_version=LIBRARY["library_version"])
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id,
        folder_path=os.fspath(folder),
        repo_type=repo_type,
        revision=revision,
        commit_message=commit_message,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
    )
    return str(url)


@contextmanager
def _without_local_base(path: Path) -> Iterator[None]:
    """Only the name of a local base model, not its path, in the configuration of an adapter, as long as it is uploaded."""
    values = read_json(path) if path.is_file() else {}
    base = values.get("base_model_name_or_path")
    local = bool(base) and public_name(base) != base
    if local:
        write_json(path, values | {"base_model_name_or_path": public_name(base)})
    try:
        yield
    finally:
        if local:
            write_json(path, values)


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Write the model card of a finished run and upload the run to a model repository on the Hub.

    For runs without a trainer object, such as a folder on disk; `trainer.push_to_hub()` writes the same card.

    Args:
        folder (`str` or `PathLike`): output folder of a training run with GIST or GAST, or of `hf-gist select`. From
            the latter only the card, the configuration, scores, figures and the warm-up adapter are uploaded. No
            file with rows of the data is uploaded from either.
        repo_id (`str`): `user/model`; the repository is created if it does not exist.
        private (`bool`, *optional*): whether a new repository is private; by default the setting of the account or
            organization.
        token (`str`, *optional*): access token; by default the one saved by `hf auth login`.
        revision (`str`, *optional*): branch to commit to, created if it does not exist; by default `main`.

    Returns:
        `str`: URL of the repository.

    Raises:
        ValueError: if the folder holds no run of hf_gist, or one of its files is damaged.
        huggingface_hub.errors.HfHubHTTPError: if the Hub rejects the request, for example without write access.

    Example:
        ```python
        from hf_gist import push_to_hub

        push_to_hub("out", "user/model", private=True)
        ```
    """
    run = find_run(folder, repo_id)
    write_card(run)
    with nullcontext() if run.trained else _without_local_base(Path(folder) / WARMUP_ADAPTER / ADAPTER_CONFIG):
        return push_folder(
            folder,
            repo_id,
            private=private,
            token=token,
            revision=revision,
            allow_patterns=None if run.trained else SELECTION_ALLOW_PATTERNS,
            ignore_patterns=TRAINING_IGNORE_PATTERNS if run.trained else None,
        )
