"""Uploads to the Hub."""

import os

from huggingface_hub import HfApi

from hf_gist.config.files import FOLDER, LIBRARY
from hf_gist.gist.artifacts import TARGETS
from hf_gist.hub.model_card import write_card
from hf_gist.hub.run import WARMUP_ADAPTER, find_run
from hf_gist.report import EXAMPLES, REPORT


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
    """Upload a folder, into a repository that is made if need be.

    Args:
        folder (`str` or `PathLike`): what to upload.
        repo_id (`str`): `user/name`.
        repo_type (`str`, defaults to `"model"`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): whether a new repository is private; by default as the account or organisation has
            it.
        token (`str`, *optional*): by default that of `hf auth login`.
        revision (`str`, *optional*): branch to commit to; it is made if need be.
        commit_message (`str`, *optional*): by default the Hub's.
        allow_patterns (`list[str]`, *optional*): only these files.
        ignore_patterns (`list[str]`, *optional*): not these files.

    Returns:
        `str`: address of the repository.
    """
    api = HfApi(token=token, **LIBRARY)
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(url.repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=url.repo_id,
        folder_path=folder,
        repo_type=repo_type,
        revision=revision,
        commit_message=commit_message,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
    )
    return str(url)


SELECTED_FILES = ("selected.parquet", "selected.jsonl")

WITH_TEXT = (REPORT, f"{FOLDER}/{EXAMPLES}", f"{FOLDER}/{TARGETS}", "test_predictions.jsonl", *SELECTED_FILES)
"""Of a training's output folder: what holds rows of the data."""

NOT_PUSHED = ["_*", ".*", "checkpoint-*", "training_args.bin", f"{FOLDER}/partial*", *WITH_TEXT]
"""Of a training's output folder: what Trainer leaves out, and what says more of the machine than of the model."""

PUSHED_OF_A_SELECTION = [
    "README.md",
    "*.png",
    "gist_config.json",
    "manifest.json",
    "costs.json",
    "scores.parquet",
    f"{WARMUP_ADAPTER}/adapter_*",
]
"""Of the output folder of `hf-gist select`: no data, and nothing that merely lies beside it."""


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Write the model card of a run that is over, and upload the run.

    A trainer needs none of this: `trainer.push_to_hub()` does it.

    Args:
        folder (`str` or `PathLike`): output folder of a training with GIST or GAST, or of `hf-gist select`. Of the
            latter only the card, the configuration, the scores and the warm-up adapter are uploaded, and no data.
        repo_id (`str`): `user/model`; it is made if need be.
        private (`bool`, *optional*): whether a new repository is private.
        token (`str`, *optional*): by default that of `hf auth login`.
        revision (`str`, *optional*): branch to commit to.

    Returns:
        `str`: address of the repository.

    Raises:
        ValueError: if the folder holds no run.
    """
    run = find_run(folder, repo_id)
    write_card(run)
    patterns = {"ignore_patterns": NOT_PUSHED} if run.trained else {"allow_patterns": PUSHED_OF_A_SELECTION}
    return push_folder(folder, repo_id, private=private, token=token, revision=revision, **patterns)
