"""What `hf-gist select` makes of files in any shape: the rows written, the manifest, the errors."""

import codecs
import dataclasses
import gzip
import json

import pytest
import yaml

from hf_gist import Selection
from hf_gist.commands import flags as flags_module
from hf_gist.commands.main import build_parser, main
from hf_gist.hub.card_facts import dataset_rows, select_command
from tests.helpers.words import save_model, varied


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    save_model(folder / "model")
    rows = [{"messages": row["messages"]} for row in varied(48, seed=1)]
    lines = [json.dumps(row | {"when": "2024-03-01T10:00:00", "x": 1.50, "big": 10**25}) for row in rows]
    (folder / "code.jsonl").write_bytes(codecs.BOM_UTF8 + "\r\n".join(lines[:20]).encode())
    (folder / "chat.jsonl.gz").write_bytes(gzip.compress("\n\n".join(lines[20:]).encode()))
    targets = [{"messages": row["messages"]} for row in varied(8, seed=2)]
    (folder / "targets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in targets))
    return folder


def lines_of(folder):
    code = (folder / "code.jsonl").read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\r\n")
    return code + gzip.decompress((folder / "chat.jsonl.gz").read_bytes()).split(b"\n\n")


def flags(folder, output, *more):
    return [
        *("select", "--model_name_or_path", str(folder / "model"), "--target_file", str(folder / "targets.jsonl")),
        *("--output_dir", str(output), "--lora_target_modules", "q_proj,v_proj", "--budget", "6"),
        *("--learning_rate", "1e-2", "--warmup_ratio", "0.3", *map(str, more)),
    ]


@pytest.fixture(scope="module")
def run(folder):
    pool = ("--train_file", folder / "code.jsonl", folder / "chat.jsonl.gz")
    assert main(flags(folder, folder / "out", *pool)) == 0
    return folder / "out"


def test_lines_of_several_files_are_written_unchanged_and_files_are_sources(folder, run):
    selection = Selection.load(run)
    lines = lines_of(folder)
    assert (run / "selected.jsonl").read_bytes().splitlines() == [lines[i] for i in selection.indices]
    assert selection.config.source_column == "source"
    assert [file["file"] for file in selection.manifest["train_dataset"]["files"]] == ["code.jsonl", "chat.jsonl.gz"]


def test_a_stream_writes_the_same_lines(folder, run, tmp_path):
    pool = ("--train_file", folder / "code.jsonl", folder / "chat.jsonl.gz", "--streaming")
    assert main(flags(folder, tmp_path, *pool, "--adapter_name_or_path", run / "warmup_adapter")) == 0
    assert (tmp_path / "selected.jsonl").read_bytes() == (run / "selected.jsonl").read_bytes()


def test_from_scores_knows_the_files(folder, run, tmp_path, capsys):
    again = ["select", "--from_scores", str(run), "--output_dir", str(tmp_path / "a"), "--budget", "3", "--train_file"]
    assert main([*again, str(folder / "code.jsonl"), str(folder / "chat.jsonl.gz")]) == 0
    assert len((tmp_path / "a" / "selected.jsonl").read_bytes().splitlines()) == 3
    assert main([*again, str(folder / "chat.jsonl.gz"), str(folder / "code.jsonl")]) == 2
    assert "is not the one that was scored" in capsys.readouterr().err


def test_bad_rows_are_an_error_or_in_the_manifest(folder, tmp_path, capsys):
    lines = lines_of(folder)[:30]
    lines[3], lines[7] = lines[3] + b",", b"[]"
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(b"\n".join(lines))
    more = ("--train_file", pool)
    assert main(flags(folder, tmp_path / "no", *more)) == 2
    error = capsys.readouterr().err
    assert "2 of 30 rows cannot be used" in error and "train_file pool.jsonl, line 4: no JSON" in error
    assert main(flags(folder, tmp_path / "o", *more, "--skip_bad_rows")) == 0
    assert "2 row(s) cannot be used and are skipped" in capsys.readouterr().out
    selection = Selection.load(tmp_path / "o")
    good = [line for row, line in enumerate(lines) if row not in (3, 7)]
    assert (tmp_path / "o" / "selected.jsonl").read_bytes().splitlines() == [good[i] for i in selection.indices]
    skipped = selection.manifest["skipped_rows"]
    assert [entry["row"] for entry in skipped] == [f"train_file pool.jsonl, line {n}" for n in (4, 8)]
    again = ["select", "--from_scores", str(tmp_path / "o"), "--output_dir", str(tmp_path / "a"), *map(str, more)]
    assert main([*again, "--budget", "2", "--skip_bad_rows"]) == 0
    stream = ("--streaming", "--adapter_name_or_path", tmp_path / "o" / "warmup_adapter", "--skip_bad_rows")
    assert main(flags(folder, tmp_path / "s", *more, *stream)) == 0
    assert json.loads((tmp_path / "s" / "stream.json").read_text())["skipped_rows"] == skipped
    assert (tmp_path / "s" / "selected.jsonl").read_bytes() == (tmp_path / "o" / "selected.jsonl").read_bytes()


def test_columns_in_flags_and_in_yaml(folder, tmp_path, capsys):
    rows = [
        {"question": chat["messages"][0]["content"], "answer": chat["messages"][1]["content"], "id": i}
        for i, chat in enumerate(varied(30, seed=3))
    ]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pool = ("--train_file", tmp_path / "pool.jsonl")
    assert main(flags(folder, tmp_path / "no", *pool)) == 2
    assert "`--columns prompt=question completion=answer`" in capsys.readouterr().err
    assert main(flags(folder, tmp_path / "a", *pool, "--columns", "prompt=question", "completion=answer")) == 0
    written = [json.loads(line) for line in (tmp_path / "a" / "selected.jsonl").read_text().splitlines()]
    assert all(row in rows for row in written), "the rows of the file, not the renamed ones"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"columns": {"prompt": "question", "completion": "answer"}}))
    assert main(flags(folder, tmp_path / "b", *pool, "--config", tmp_path / "run.yaml")) == 0
    assert (tmp_path / "a" / "selected.jsonl").read_bytes() == (tmp_path / "b" / "selected.jsonl").read_bytes()
    assert Selection.load(tmp_path / "b").manifest["columns"] == {"prompt": "question", "completion": "answer"}
    pool = ("--train_file", folder / "code.jsonl", "--columns", "prompt=nothing", "completion=here")
    assert main(flags(folder, tmp_path / "no", *pool)) == 2
    assert "no set has these columns: train_file has messages" in capsys.readouterr().err


# ---- Flags ----


@dataclasses.dataclass(frozen=True)
class Shares:
    """Settings with mappings.

    Args:
        shares (`dict`): share of each source.
        caps (`dict`): rows of each source.
        names (`dict`): texts.
    """

    shares: dict[str, int | float] | None = None
    caps: dict[str, int] = dataclasses.field(default_factory=dict)
    names: dict[str, str] | None = None


def parse(monkeypatch, *given):
    monkeypatch.setitem(flags_module.TITLES, Shares, "shares")
    monkeypatch.setitem(flags_module.GROUPS, "shares", (Shares,))
    parser = build_parser()
    own = type(parser)("test")
    flags_module.add_settings_flags(own, (Shares,))
    space = own.parse_args(list(given))
    space.command = "shares"
    return flags_module.settings_of(space)[1][0]


def test_mappings_are_flags_of_pairs(monkeypatch, tmp_path, capsys):
    shares = parse(monkeypatch, "--share", "code=0.3", "a=b=2", "--share", "code=0.5", "--caps", "chat=500")
    assert shares == Shares({"code": 0.5, "a=b": 2}, {"chat": 500})
    assert parse(monkeypatch, "--names", "prompt=a=b").names == {"prompt": "a=b"}
    (tmp_path / "a.yaml").write_text("caps: {chat: 7}\nshares: {code: 1}\n")
    assert parse(monkeypatch, "--config", str(tmp_path / "a.yaml")) == Shares({"code": 1}, {"chat": 7})
    (tmp_path / "a.yaml").write_text("caps: {chat: many}\n")
    with pytest.raises(ValueError, match="`caps` must be a mapping of names, each to int"):
        parse(monkeypatch, "--config", str(tmp_path / "a.yaml"))
    for wrong in ("code", "=3", "code=much", "code="):
        with pytest.raises(SystemExit):
            parse(monkeypatch, "--shares", wrong)
        assert "is not of the form NAME=NUMBER" in capsys.readouterr().err


def test_the_card_names_all_files_and_the_columns(run):
    selection = Selection.load(run)
    manifest = selection.manifest | {"columns": {"prompt": "question"}, "skipped_rows": [{"row": "x", "reason": "y"}]}
    command = select_command(dataclasses.replace(selection, manifest=manifest), "hf://user/model")
    assert "--train_file code.jsonl chat.jsonl.gz" in command and "--columns prompt=question" in command
    assert "--skip_bad_rows" in command
    names = [row["name"] for row in dataset_rows(manifest)]
    assert names == ["code.jsonl", "chat.jsonl.gz", "targets.jsonl"]
    hub = {"train_dataset": {"hub": [{"id": "a/b", "revision": None}, {"id": "a/c", "revision": None}]}}
    assert "--dataset_name a/b a/c" in select_command(dataclasses.replace(selection, manifest=hub), "hf://user/model")
