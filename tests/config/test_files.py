"""Configurations from folders and from the Hub."""

import json

import pytest

from hf_gist import GASTConfig, GISTConfig
from hf_gist.config.files import config_from_uri
from hf_gist.hub.push import push_folder


GIST = GISTConfig(budget=7, rank=3, source_column="source")
GAST = GASTConfig(keep=3, mode="random")


@pytest.mark.parametrize("config", [GIST, GAST])
def test_a_folder_gives_back_what_was_saved(tmp_path, config):
    config.save_pretrained(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [config.FILE]
    assert type(config).from_pretrained(tmp_path / "new") == config
    assert type(config).from_pretrained(str(tmp_path / "new")) == config


def test_the_output_folder_of_a_training_is_enough(tmp_path):
    GIST.save_pretrained(tmp_path / "gist")
    assert GISTConfig.from_pretrained(tmp_path) == GIST


@pytest.mark.parametrize("config", [GIST, GAST])
def test_a_repository_gives_back_what_was_pushed(hub, tmp_path, config):
    config.save_pretrained(tmp_path / "run")
    push_folder(tmp_path / "run", "jane/model")
    assert type(config).from_pretrained("jane/model") == config
    # from the cache alone, once it is there
    hub.repos.clear()
    assert type(config).from_pretrained("jane/model", local_files_only=True) == config


def test_revisions_and_datasets_are_told_apart(hub, tmp_path):
    other = GISTConfig(budget=8)
    GIST.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    push_folder(tmp_path / "a", "jane/model")
    push_folder(tmp_path / "b", "jane/model", revision="try")
    push_folder(tmp_path / "b", "jane/rows", repo_type="dataset", private=True)
    assert GISTConfig.from_pretrained("jane/model") == GIST
    assert GISTConfig.from_pretrained("jane/model", revision="try") == other
    assert config_from_uri(GISTConfig, "hf://jane/model@try") == other
    assert config_from_uri(GISTConfig, "hf://datasets/jane/rows") == other
    assert hub.private == {"models/jane/model": False, "datasets/jane/rows": True}


def test_mistakes_say_what_is_missing(hub, tmp_path):
    hub.put("models/jane/model", "README.md", b"")
    hub.put("models/jane/broken", GIST.FILE, b"{")
    hub.put("models/jane/newer", GIST.FILE, json.dumps({"budget": 3, "of_tomorrow": 1}).encode())
    hub.put("models/jane/wrong", GIST.FILE, json.dumps({"budget": -1}).encode())
    for name, message in {
        "jane/nothing": "'jane/nothing' does not exist or is private",
        "jane/model": "has no `gist_config.json`",
        "jane/broken": "is not valid JSON",
        "jane/newer": "unknown key.s. of_tomorrow",
        "jane/wrong": "`budget` must be",
        "./nowhere": "is neither a local folder nor a Hub id",
        "a/b/c": "is neither a local folder nor a Hub id",
        "jane model": "is neither a local folder nor a Hub id",
        str(tmp_path): "has no `gist_config.json`; a run writes it",
    }.items():
        with pytest.raises(ValueError, match=message):
            GISTConfig.from_pretrained(name)
    with pytest.raises(ValueError, match="has no revision 'v9'"):
        GISTConfig.from_pretrained("jane/model", revision="v9")
    with pytest.raises(ValueError, match="cannot be reached"):
        GISTConfig.from_pretrained("jane/unseen", local_files_only=True)
    with pytest.raises(ValueError, match="give the repository alone"):
        config_from_uri(GISTConfig, "hf://jane/model/file.json")
    with pytest.raises(ValueError, match="is not a Hub address"):
        config_from_uri(GISTConfig, "hf://")


def test_a_hub_address_never_means_a_folder_here(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GISTConfig(budget=9).save_pretrained(tmp_path / "jane" / "model")
    hub.put("models/jane/model", GIST.FILE, GIST.to_json().encode())
    assert config_from_uri(GISTConfig, "hf://jane/model") == GIST
