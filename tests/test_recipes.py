"""The recipes start, and the GAST recipe trains."""

import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from tests.words import chats, save_model


RECIPES = Path(__file__).parent.parent / "recipes"
SCRIPTS = [path for path in sorted(RECIPES.rglob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


def run(*command, cwd=None):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_script_says_what_it_takes(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage:" in done.stdout and "--" in done.stdout


def test_the_gast_recipe_trains_and_leaves_its_configuration(tmp_path):
    save_model(tmp_path / "model")
    Dataset.from_list(chats(24)).to_json(tmp_path / "train.jsonl")
    flags = ["--model_name_or_path", "model", "--train_file", "train.jsonl", "--output_dir", "out", "--max_steps", "2"]
    flags += ["--per_device_train_batch_size", "4", "--report_to", "none", "--source_column", "source", "--use_cpu"]
    done = run(RECIPES / "gast" / "gast_lora.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"gast_config.json", "gast_selection.parquet", "gast_selection.png", "adapter_model.safetensors"} <= files
    assert "GAST masks" in done.stdout + done.stderr
