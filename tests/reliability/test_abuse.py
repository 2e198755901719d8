"""Full disks, damaged and hostile files, and code that must not run."""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import hf_gist
from hf_gist import GISTConfig, Selection, select
from hf_gist.commands.main import main
from hf_gist.utils.disk import write
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model
from tests.test_callback import train


PACKAGE = Path(hf_gist.__file__).parent
NAMES = ["a b.jsonl", "ümlaut-漢字.jsonl", "$(touch pwned).jsonl", "'; rm -rf x;'.jsonl", "-rf.jsonl", "a\nb.jsonl"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    select(
        lora_model(), as_dataset(token_rows(30, seed=1)), as_dataset(token_rows(4, seed=2)), GISTConfig(budget=5),
        data_collator=PaddingCollator(), output_dir=folder, progress=False,
    )  # fmt: skip
    return folder


# ---- Disks ----


def test_a_full_disk_is_an_error_and_leaves_what_was_there(saved, tmp_path, monkeypatch):
    selection = Selection.load(saved)
    selection.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(tensors, path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_gist.gist.artifacts.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        selection.reselect(budget=9).save(tmp_path)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(left) == set(before) and left["coordinates.safetensors"] == before["coordinates.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_device_that_is_full(tmp_path):
    def to_full(path):
        with open("/dev/full", "w") as device:
            device.write("x" * 10_000)

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", to_full)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line_on_the_command_line(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    save_model(tmp_path / "model")
    Dataset.from_list(chats(20)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list(chats(2)).to_json(tmp_path / "targets.jsonl")
    flags = ["select", "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "pool.jsonl")]
    flags += ["--lora_target_modules", "q_proj", "--target_file"]
    folder = ["--output_dir", str(tmp_path / "file" / "out")]
    assert main([*flags, str(tmp_path / "targets.jsonl"), *folder]) == 2
    assert "Not a directory" in capsys.readouterr().err
    assert main([*flags, str(tmp_path / "pool.jsonl"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "No row of the pool is left to train on: all 20 are" in capsys.readouterr().err


# ---- Files that are not what they should be ----


@pytest.mark.parametrize(
    "name", ["coordinates.safetensors", "subspace.safetensors", "scores.parquet", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["empty", "truncated", "random", "pickle"])
def test_damaged_artifacts_are_named(saved, tmp_path, name, damage):
    Selection.load(saved).save(tmp_path)
    content = (tmp_path / name).read_bytes()
    bomb = pickle.dumps(print)
    changed = {"empty": b"", "truncated": content[: len(content) // 2], "random": b"\x07" * 200, "pickle": bomb}[
        damage
    ]
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Selection.load(tmp_path)


@pytest.mark.parametrize("change", ["shape", "dtype", "nan"])
def test_tampered_coordinates_are_noticed(saved, tmp_path, change):
    Selection.load(saved).save(tmp_path)
    tensors = load_file(tmp_path / "coordinates.safetensors")
    tensors["coordinates"] = {
        "shape": tensors["coordinates"][:-1].clone(),
        "dtype": tensors["coordinates"].to(torch.int8),
        "nan": torch.full_like(tensors["coordinates"], float("nan")),
    }[change]
    save_file(tensors, tmp_path / "coordinates.safetensors")
    with pytest.raises(ValueError, match="coordinates.safetensors"):
        Selection.load(tmp_path)


def test_nothing_is_unpickled():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "dill", "joblib", "shelve"} & {name.split(".")[0] for name in names}, path


# ---- What users type ----


@pytest.mark.parametrize("name", NAMES)
def test_hostile_file_names(tmp_path, name, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    Dataset.from_list(chats(24)).to_json(tmp_path / "pool.jsonl")
    (tmp_path / name).write_bytes((tmp_path / "pool.jsonl").read_bytes())
    target = chats(8)[1:2]
    Dataset.from_list(target).to_json(tmp_path / "targets.jsonl")
    flags = ["select", "--model_name_or_path", "model", f"--train_file={name}", "--target_file", "targets.jsonl"]
    flags += ["--output_dir", "out", "--lora_target_modules", "q_proj", "--budget", "3", "--warmup_steps", "1"]
    assert main(flags) == 0, capsys.readouterr().err
    assert len((tmp_path / "out" / "selected.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget: many\n", "`budget` must be int or float"),
        ("strategy: [max]\n", "`strategy` must be one of"),
        ("seed: 1.5\n", "`seed` must be int"),
        ("budgget: 5\n", "unknown key(s): budgget"),
        ("- 1\n", "not a mapping"),
        ("budget: !!python/object/apply:os.system ['touch pwned']\n", "is not valid YAML"),
        ("budget: {\n", "is not valid YAML"),
    ],
)
def test_wrong_yaml_is_named_and_never_run(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    assert main(["select", "--config", "run.yaml", "--output_dir", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def test_code_of_a_model_is_run_only_when_asked_for(tmp_path):
    save_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = "evil"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w').close()\n")
    Dataset.from_list(chats(20)).to_json(tmp_path / "pool.jsonl")
    flags = ["--model_name_or_path", tmp_path / "model", "--train_file", tmp_path / "pool.jsonl"]
    flags += ["--target_file", tmp_path / "pool.jsonl", "--output_dir", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_gist", "select", *map(str, flags)], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, env={**__import__("os").environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 2 and "trust_remote_code" in done.stderr
    assert not (tmp_path / "pwned").exists()


# ---- Trainer's own features ----


class TooLarge(TrainerCallback):
    """Lets the model run out of memory for training batches of more than two rows."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if getattr(self, "handle", None) is None:
            self.handle = model.register_forward_pre_hook(self.look, with_kwargs=True)

    @staticmethod
    def look(module, args, kwargs):
        if module.training and len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def test_auto_find_batch_size_starts_over_with_the_callback(tmp_path):
    trainer, callback, recorder = train(
        tmp_path, GISTConfig(budget=20, warmup_ratio=0.1), auto_find_batch_size=True, extra=[TooLarge()]
    )
    steps = [rows for rows in recorder.rows if 0 < len(rows) <= 2]
    seen = [row for rows in steps[-20:] for row in rows]
    assert sorted(seen) == sorted(callback.selection.indices * 2)
    assert trainer.state.global_step == trainer.state.max_steps


def test_old_checkpoints_are_removed(tmp_path):
    _, callback, _ = train(
        tmp_path, GISTConfig(budget=20, warmup_ratio=0.1), save_strategy="steps", save_steps=2, save_total_limit=1
    )
    (last,) = tmp_path.glob("checkpoint-*")
    assert json.loads((last / "gist" / "selected.json").read_text())["indices"] == callback.selection.indices
