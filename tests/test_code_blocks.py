"""Every code block of README.md and of the guides is run."""

import functools
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
import trl
from datasets import Dataset

from hf_gist import GISTConfig, Selection
from hf_gist.commands.main import main
from tests.helpers import hub_runs as runs
from tests.helpers.markdown import GUIDES, README, blocks
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model, tokenizer


DOCUMENTS = [README, *GUIDES]
END_OF_ARGUMENT, END_OF_CALL = "\x1f", "\x1e"
SHORT_COMPARISON = ["--seeds", "0", "--max_steps", "1"]
"""Every method, with one training of one step instead of three trainings of all passes."""


def blocks_of(language: str) -> list:
    """The blocks of a language in all documents, each text once."""
    found: dict[str, str] = {}
    for path in DOCUMENTS:
        for kind, text in blocks(path):
            if kind == language:
                found.setdefault(text, f"{path.stem}: {text.strip().splitlines()[0][:50]}")
    return [pytest.param(text, id=name) for text, name in found.items()]


def test_every_block_is_of_a_kind_that_is_run():
    """BibTeX is compared with that of the cards in `test_readme.py`; text is output."""
    kinds = {(path, kind) for path in DOCUMENTS for kind, _ in blocks(path)}
    assert {kind for _, kind in kinds} <= {"python", "bash", "bibtex", "text"}
    assert {path for path, kind in kinds if kind == "bibtex"} == {README}


def put_on_the_hub(hub) -> None:
    hub.put("models/user/model", "gist_config.json", GISTConfig(budget=0.1).to_json().encode())


def write_files(folder: Path) -> None:
    """The model, the rows and the finished run that the blocks name."""
    save_model(folder / "MODEL")
    rows = chats(92)
    for name, part in {"pool": rows[:80], "targets": rows[80:84], "test": rows[84:]}.items():
        Dataset.from_list(part).to_json(folder / f"{name}.jsonl")
    runs.select_folder(folder / "out")


# ---- Python ----


@pytest.mark.parametrize("text", blocks_of("python"))
def test_python_blocks(text, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    put_on_the_hub(hub)
    if not torch.cuda.is_available():
        # SFTConfig asks for bf16 by default, for which Trainer raises an error on a CPU
        monkeypatch.setattr(trl, "SFTConfig", functools.partial(trl.SFTConfig, bf16=False))
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "true")
    rows = chats(80)
    names = {
        "Trainer": transformers.Trainer,
        "TrainingArguments": transformers.TrainingArguments,
        "args": transformers.TrainingArguments("out", num_train_epochs=2, report_to="none"),
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
    if "hf_gist" not in text:
        exec("from hf_gist import GISTConfig, GISTDataSelectorCallback", names)
    if "export_dataset" in text:
        names |= {"selection": runs.selection(), "pool": runs.pool()}
        runs.selection().save("out/gist")
        runs.pool().to_json("pool.jsonl")
    elif "push_to_hub" in text:
        runs.select_folder(Path("out"))
    before = dict(names)
    exec(compile(text, "block", "exec"), names)
    assert set(names) - set(before)


# ---- Shell ----


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def recorded_calls(text: str, folder: Path) -> list[list[str]]:
    """The programs that a block calls, with their arguments as the shell gives them.

    Args:
        text (`str`): the block; `pip`, `pytest`, `python` and `hf-gist` only record their call.
        folder (`Path`): where it runs.
    """
    tools = folder / "tools"
    tools.mkdir()
    record = (
        f'for a in "${{0##*/}}" "$@"; do printf "%s{END_OF_ARGUMENT}" "$a"; done >> "$CALLS"; '
        f'printf "{END_OF_CALL}" >> "$CALLS"'
    )
    for name in ("pip", "pytest", "hf-gist"):
        stub(tools, name, record)
    stub(tools, "python", f'{record}; if [ "$2" = venv ]; then mkdir -p "$3/bin"; : > "$3/bin/activate"; fi')
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(folder / "calls")}
    done = subprocess.run(["bash", "-euc", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (folder / "calls").read_text().split(END_OF_CALL)[:-1]
    return [call.split(END_OF_ARGUMENT)[:-1] for call in calls]


def test_calls_are_recorded_as_the_shell_gives_them(tmp_path):
    text = 'pip install -e ".[test]" && hf-gist select --a "b c" \\\n    --d  # a comment\nhf-gist report out'
    assert recorded_calls(text, tmp_path) == [
        ["pip", "install", "-e", ".[test]"],
        ["hf-gist", "select", "--a", "b c", "--d"],
        ["hf-gist", "report", "out"],
    ]


@pytest.mark.parametrize("text", blocks_of("bash"))
def test_bash_blocks(text, tmp_path, hub, monkeypatch):
    """Every call of `hf-gist` is run, of the demo only the flags are parsed."""
    write_files(tmp_path)
    put_on_the_hub(hub)
    monkeypatch.chdir(tmp_path)
    calls = recorded_calls(text, tmp_path)
    assert calls
    for program, *arguments in calls:
        if program == "hf-gist" and arguments[0] == "demo":
            with pytest.raises(SystemExit, match="^0$"):
                main([*arguments, "--help"])
        elif program == "hf-gist":
            short = SHORT_COMPARISON if arguments[0] == "compare" else []
            assert main([*arguments, *short]) == 0, arguments
            check_files(arguments, tmp_path, hub)


def check_files(arguments: list[str], folder: Path, hub) -> None:
    """What a command of a block should have written."""
    command = arguments[0]
    output = folder / arguments[arguments.index("--output_dir") + 1] if "--output_dir" in arguments else None
    if command == "compare":
        assert "plain cosine, round robin, a third of the top" in (output / "compare.md").read_text()
    elif command == "select" and "--dry_run" not in arguments:
        assert (output / "selected.jsonl").exists()
        if "--config" in arguments:
            assert Selection.load(output).config == GISTConfig(budget=0.1)
    elif command == "report":
        assert (folder / arguments[1] / "report.html").exists()
    elif command == "card" and "--dataset" in arguments:
        assert "selected.parquet" in " ".join(hub.files("datasets/user/subset"))
    elif command == "card" and "--push" in arguments:
        assert b"Data selection" in hub.files("models/user/model")["README.md"]
    elif command == "card":
        assert "Data selection" in (folder / arguments[1] / "README.md").read_text()
