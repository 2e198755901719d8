"""Where data came from: Hub repositories, files, and names without local paths."""

import hashlib
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from hf_gist.data.provenance import RowSource, describe_dataset, describe_source, hub_origins, public_name


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(*folders):
    """A dataset with cached files at the paths that `datasets` uses for a Hub repository."""
    files = [{"filename": f"/cache/jane___open_orca/default/0.0.0/{name}/cache-1.arrow"} for name in folders]
    return SimpleNamespace(cache_files=files, split="train", __len__=lambda: 3)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "datasets--Jane--OpenOrca" / "snapshots" / COMMIT).mkdir(parents=True)
    return tmp_path


def test_a_hub_dataset_is_identified_by_the_commit_of_its_cached_files(downloads):
    # the cache of `datasets` has the name in lower case, the download cache has it unchanged
    assert hub_origins(cached(COMMIT)) == [{"id": "Jane/OpenOrca", "revision": COMMIT}]


def test_unknown_and_ambiguous_origins_are_left_out(downloads):
    assert hub_origins(cached("f" * 40)) == [] and hub_origins(cached("d" * 64)) == [] and hub_origins([1]) == []
    (downloads / "datasets--Eve--Copy" / "snapshots" / COMMIT).mkdir(parents=True)
    assert hub_origins(cached(COMMIT)) == []
    assert describe_dataset([1, 2]) == {"rows": 2, "fingerprint": None}


def test_requested_names_are_in_the_description(tmp_path):
    facts = {"rows": 3, "hub": [{"id": "Jane/OpenOrca", "revision": COMMIT}]}
    named = describe_source(RowSource(dataset_name="Jane/OpenOrca", revision="main"), facts)
    assert named["hub"] == [{"id": "Jane/OpenOrca", "revision": COMMIT}], "the commit says more than the branch"
    assert describe_source(RowSource(dataset_name="a/b", revision="v1"), {})["hub"] == [
        {"id": "a/b", "revision": "v1"}
    ]
    (tmp_path / "pool.jsonl").write_bytes(b"rows")
    file = describe_source(RowSource(str(tmp_path / "pool.jsonl")), {})
    assert file == {"file": "pool.jsonl", "sha256": hashlib.sha256(b"rows").hexdigest()}
    (tmp_path / "folder").mkdir()
    assert describe_source(RowSource(None, str(tmp_path / "folder"), "test", "main"), {}) == {
        "file": "folder",
        "split": "test",
        "config_name": "main",
    }


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("gpt2", "gpt2"),
        ("meta/llama", "meta/llama"),
        ("/home/jane/llama", "llama"),
        ("~/llama/", "llama"),
        ("../jane/llama", "llama"),
        ("runs/jane/llama", "llama"),
        ("C:\\Users\\jane\\llama", "llama"),
        ("", None),
        (None, None),
    ],
)
def test_of_a_path_only_the_last_part_is_public(name, public):
    assert public_name(name) == public
