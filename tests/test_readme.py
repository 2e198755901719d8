"""Every code block of README.md is run."""

import functools
import os
import re
import stat
import subprocess
import sys

import pytest
import torch
import transformers
import trl
from datasets import Dataset

from hf_gist import GISTConfig, Selection
from tests import ROOT
from tests.helpers import hub_runs as runs
from tests.helpers.settings_table import END, START, with_table
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model, tokenizer


README = ROOT / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def blocks(language):
    return [pytest.param(text, id=text.strip().splitlines()[0][:60]) for kind, text in BLOCKS if kind == language]


def test_every_block_is_of_a_kind_that_is_run():
    assert {kind for kind, _ in BLOCKS} == {"python", "bash"}


def put_on_the_hub(hub):
    hub.put("models/user/model", "gist_config.json", GISTConfig(budget=0.1).to_json().encode())


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks(text, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    put_on_the_hub(hub)
    if not torch.cuda.is_available():
        # SFTConfig asks for bf16 by default, for which Trainer raises an error on a CPU
        monkeypatch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, bf16=False))
    rows = chats(80)
    names = {
        "Trainer": transformers.Trainer,
        "TrainingArguments": transformers.TrainingArguments,
        "peft_model": lora_model(),
        "pool": as_dataset(token_rows(80)),
        "targets": as_dataset(token_rows(4, seed=5)),
        "collator": PaddingCollator(),
        "chats": Dataset.from_list(rows),
        "target_chats": Dataset.from_list(rows[:4]),
        "tokenizer": tokenizer(),
        "small_model": lora_model(),
        "small_pool": as_dataset(token_rows(80)),
        "raw_pool": Dataset.from_list(rows),
    }
    if "export_dataset" in text:
        names |= {"selection": runs.selection(), "pool": runs.pool()}
    before = dict(names)
    exec(compile(text, str(README), "exec"), names)
    assert set(names) - set(before)


def stub(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.mark.parametrize("text", blocks("bash"))
def test_bash_blocks(text, tmp_path, hub):
    """`pip` and `pytest` only record the call, and of the demo only the flags are parsed; all else is run."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("pip", "pytest"):
        stub(tools, name, f'echo "{name} $*" >> "$CALLS"')
    hf_gist = f'"{sys.executable}" -m hf_gist'
    stub(
        tools,
        "hf-gist",
        f'echo "hf-gist $*" >> "$CALLS"\nif [ "$1" = demo ]; then set -- "$@" --help; fi\nexec {hf_gist} "$@"',
    )
    save_model(tmp_path / "MODEL")
    Dataset.from_list(chats(80)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list(chats(4)).to_json(tmp_path / "targets.jsonl")
    Dataset.from_list(chats(12)[4:]).to_json(tmp_path / "test.jsonl")
    put_on_the_hub(hub)
    runs.select_folder(tmp_path / "out")
    environment = (
        os.environ
        | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        | {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    )
    if "--from_scores" in text:
        first = next(t for kind, t in BLOCKS if kind == "bash" and "--target_file" in t)
        text = first + text
    done = subprocess.run(["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "calls").read_text().strip()
    if "hf-gist card" in text:
        assert b"Data selection" in hub.files("models/user/model")["README.md"]
        assert "selected.parquet" in " ".join(hub.files("datasets/user/subset"))
        assert Selection.load(tmp_path / "again").config == GISTConfig(budget=0.1)
    elif "hf-gist compare" in text:
        assert "GIST (paper's rule)" in (tmp_path / "comparison" / "compare.md").read_text()
    elif "--output_dir" in text:
        assert (tmp_path / "selection" / "selected.jsonl").exists()


def test_the_two_commands_are_on_the_first_screen():
    head = "\n".join(README.read_text(encoding="utf-8").splitlines()[:45])
    assert 'pip install -e ".[report]" && hf-gist demo' in head and 'pip install -e ".[test]" && pytest' in head


def test_the_table_of_settings_is_that_of_the_code():
    text = README.read_text(encoding="utf-8")
    assert text.count(START) == text.count(END) == 1
    assert with_table(text) == text, "run python -m tests.helpers.settings_table"
