"""What the commands and the callback print: no line is wider than 100 columns."""

import ast
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

import hf_gist
from hf_gist.commands.compare.printing import results
from hf_gist.commands.demo import run_demo
from hf_gist.commands.main import COMMANDS, main
from hf_gist.errors import LeakWarning
from hf_gist.report import summary_line, summary_table
from hf_gist.utils.terminal import in_columns, named, named_path, wrapped
from tests.commands.test_compare import made_runs
from tests.commands.test_demo import MINIATURE
from tests.helpers.reports import selection_of
from tests.helpers.words import chats, save_model


COLUMNS = 100


def too_wide(told):
    # a progress bar rewrites its line
    return [line for line in told.split("\n") if len(line.split("\r")[-1]) > COLUMNS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminal")
    save_model(folder / "model")
    Dataset.from_list(chats(60)).to_json(folder / "pool.jsonl")
    Dataset.from_list(chats(12)[:6]).to_json(folder / "targets.jsonl")
    Dataset.from_list(chats(90)[70:]).to_json(folder / "held.jsonl")
    return folder


FLAGS = (
    "--model_name_or_path model --train_file pool.jsonl --target_file targets.jsonl --source_column source "
    "--lora_target_modules q_proj,v_proj --learning_rate 1e-2 --per_device_train_batch_size 4"
).split()
"""Relative paths: only a path may be as long as it is."""


def test_demo(tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.chdir(tmp_path)
    run_demo("gist_demo", seed=3, settings=MINIATURE)
    told = capsys.readouterr()
    assert too_wide(told.out) == [] and too_wide(told.err) == []
    assert "target test loss" in told.out and "GIST: kept" in told.out and "Traceback" not in told.err
    # of other libraries; the one step of warm-up of this small demo has a learning rate of 0, and the library says so
    others = [w for w in recwarn if "hf_gist" not in str(w.filename) and w.category.__module__ != "hf_gist.errors"]
    assert [str(warning.message) for warning in others] == []


def test_select_and_what_follows_it(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    runs = [
        ["select", *FLAGS, "--budget", "0.1", "--output_dir", "out", "--warmup_ratio", "0.5"],
        ["select", *FLAGS, "--budget", "0.1", "--output_dir", "dry", "--dry_run"],
        ["select", "--from_scores", "out", "--budget", "0.2", "--output_dir", "again"],
        [*("select", *FLAGS, "--budget", "5", "--output_dir", "stream", "--streaming", "--strategy", "max")]
        + ["--adapter_name_or_path", "out/warmup_adapter"],
        ["report", "stream"],
        ["report", "out"],
    ]
    for argv in runs:
        assert main(argv) == 0, argv
        told = capsys.readouterr()
        assert too_wide(told.out) == [] and too_wide(told.err) == [], argv
        assert told.out.strip()


def test_compare(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    more = ["--test_file", "held.jsonl", "--methods", "random", "gist", "--seeds", "0", "1", "--max_steps", "2"]
    assert main(["compare", *FLAGS, "--budget", "0.1", "--output_dir", "compared", *more]) == 0
    told = capsys.readouterr()
    assert too_wide(told.out) == [] and too_wide(told.err) == []
    assert "report                      compared/report.html" in told.out


def test_a_comparison_of_all_sizes_fits():
    runs = made_runs()
    for run in runs:
        run.update(rows=1_234_567, steps=123_456, method=run["method"].replace("gist", "gist_cosine_round_robin"))
    told = results(runs, pool_tokens=3)
    assert too_wide(told) == []
    lines = told.split("\n")
    assert lines[1].split() == "method mean ± rows ± seeds minus random better rows steps cost".split()
    assert lines[2].startswith("gist_cosine_round_robin") and len({len(line) for line in lines[1:5]}) == 1


@pytest.mark.parametrize("length", [5, 60, 500])
def test_summaries_fit_whatever_the_names(length):
    names = ["".join(random.Random(i).choices("abc def", k=length)) for i in range(30)]
    selection = selection_of(5000, 12, names)
    assert too_wide(wrapped(summary_line(selection, 1_000_000))) == []
    table = summary_table(selection)
    assert too_wide(table) == [] and "and 10 more sources, with" in table


def test_parts_of_the_output():
    assert named("kept rows", "240") == "kept rows                   240"
    long = named("energy", "word " * 40)
    assert too_wide(long) == [] and all(line.startswith(" " * 28) for line in long.split("\n")[1:])
    path = "a folder/" * 30
    assert named_path("report", path) == f"{'report':<28}{path}"
    assert in_columns([["a", "bb"], ["ccc", "1"]]) == "a    bb\nccc   1"
    assert wrapped("x" * 200) == "x" * 200


def test_warnings_of_the_library_are_a_name_and_a_message_in_a_command(tmp_path, monkeypatch, capsys):
    told = {}

    def run(flags):
        for category in (LeakWarning, UserWarning):
            told[category] = warnings.formatwarning(
                "rows " * 40, category, "hf_gist/data/leaks.py", 7, "leaks = find()"
            )

    before = warnings.formatwarning
    monkeypatch.setitem(COMMANDS, "report", replace(COMMANDS["report"], run=run))
    assert main(["report", str(tmp_path)]) == 0
    assert told[LeakWarning].startswith("LeakWarning: rows rows") and too_wide(told[LeakWarning]) == []
    assert "leaks" not in told[LeakWarning] and told[LeakWarning].count("\n") > 1
    assert told[UserWarning] == before("rows " * 40, UserWarning, "hf_gist/data/leaks.py", 7, "leaks = find()")
    assert warnings.formatwarning is before


def test_every_warning_of_the_library_has_a_class_of_its_own():
    for path in Path(hf_gist.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                assert len(node.args) == 2, f"{path}:{node.lineno}"
