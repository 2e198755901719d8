"""`hf-gist card`, and `--config hf://`."""

import json

import pytest
from datasets import Dataset

from hf_gist import GISTConfig, Selection, push_to_hub
from hf_gist.commands.main import main
from tests.helpers.hub_runs import pool, select_folder, selection
from tests.helpers.words import chats, save_model


def test_card_writes_and_pushes_nothing_by_itself(hub, tmp_path, capsys):
    folder = select_folder(tmp_path / "out")
    assert main(["card", str(folder)]) == 0
    assert (folder / "README.md").is_file() and str(folder / "README.md") in capsys.readouterr().out
    assert not hub.repos


def test_push_uploads_the_run_and_no_data(hub, tmp_path, capsys):
    folder = select_folder(tmp_path / "out")
    (folder / "pool.jsonl").write_text("private")
    assert main(["card", str(folder), "--repo_id", "jane/choice", "--push", "--private"]) == 0
    files = hub.files("models/jane/choice")
    assert set(files) == {
        "README.md", "gist_config.json", "manifest.json", "scores.parquet", "scores.png", "spectrum.png", "sources.png", "lengths.png", "energy.png",
        "warmup_adapter/adapter_config.json",
    }  # fmt: skip
    assert hub.private == {"models/jane/choice": True}
    assert b"hf://jane/choice" in files["README.md"] and b"/home/jane" not in b"".join(files.values())
    assert f"pushed to                   {hub.endpoint}/jane/choice" in capsys.readouterr().out


def test_a_training_is_pushed_as_the_trainer_pushes_it(hub, tmp_path):
    made = selection()
    made.save(tmp_path / "gist")
    left = {"training_args.bin", "_private", "checkpoint-1/x", "gist/partial/y", "report.html", "gist/examples.json"}
    for name in ("adapter_model.safetensors", *left):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    push_to_hub(tmp_path, "jane/model")
    files = set(hub.files("models/jane/model"))
    assert {"adapter_model.safetensors", "README.md", "gist_config.json", "gist/scores.parquet"} <= files
    assert not left & files


def test_the_dataset_is_pushed_with_its_card(hub, tmp_path):
    folder = select_folder(tmp_path / "out")
    assert main(["card", str(folder), "--dataset", "--repo_id", "jane/subset", "--push", "--license", "mit"]) == 0
    files = hub.files("datasets/jane/subset")
    assert {"README.md", "selected.parquet", "scores.parquet", "gist_config.json"} <= set(files)
    chosen = Dataset.from_parquet(str(folder / "_dataset" / "selected.parquet"))
    assert chosen["gist_row"] == Selection.load(folder).indices
    assert not (folder / "README.md").exists(), "the card of the model is another one"


def test_the_dataset_of_a_training_needs_its_pool(tmp_path, capsys):
    made = selection()
    made.save(tmp_path / "out" / "gist")
    assert main(["card", str(tmp_path / "out"), "--dataset"]) == 2
    assert "give the pool with `--train_file`" in capsys.readouterr().err
    pool().to_json(tmp_path / "pool.jsonl")
    assert main(["card", str(tmp_path / "out"), "--dataset", "--train_file", str(tmp_path / "pool.jsonl")]) == 0
    chosen = Dataset.from_parquet(str(tmp_path / "out" / "_dataset" / "selected.parquet"))
    assert chosen["source"] == [f"s{i % 2}" for i in made.indices]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--push"], "`--push` needs `--repo_id"),
        (["--private"], "`--private` needs `--push`"),
        (["--revision", "x"], "`--revision` needs `--push`"),
        (["--license", "mit"], "`--license` needs `--dataset`"),
        ([], "holds no run of hf_gist"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, flags, message):
    assert main(["card", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def files(tmp_path):
    save_model(tmp_path / "model")
    Dataset.from_list(chats(80)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list([row for row in chats(16) if row["source"] == "family1"]).to_json(tmp_path / "targets.jsonl")
    return tmp_path


def test_a_run_is_repeated_from_its_card(hub, files):
    data = ["--model_name_or_path", str(files / "model"), "--train_file", str(files / "pool.jsonl")]
    data += ["--target_file", str(files / "targets.jsonl"), "--lora_target_modules", "q_proj,v_proj"]
    first, again = str(files / "first"), str(files / "again")
    settings = ["--budget", "8", "--warmup_ratio", "0.5", "--strategy", "round_robin", "--no-drop_target_duplicates"]
    (files / "eval.jsonl").write_text(json.dumps(chats(5)[4]) + "\n")
    settings += ["--max_length", "40", "--eval_file", str(files / "eval.jsonl")]
    settings += ["--learning_rate", "1e-2", "--per_device_train_batch_size", "4"]
    assert main(["select", *data, *settings, "--output_dir", first]) == 0
    assert main(["card", first, "--repo_id", "jane/choice", "--push"]) == 0
    # the command on the card, with this machine's paths where the card has names
    text = hub.files("models/jane/choice")["README.md"].decode()
    command = text.split("hf-gist select ")[1].split("\n```")[0].replace("\\\n", "").split()
    for flag, value in (
        ("--model_name_or_path", "model"),
        ("--train_file", "pool.jsonl"),
        ("--target_file", "targets.jsonl"),
        ("--eval_file", "eval.jsonl"),
    ):
        assert command[command.index(flag) + 1] == value
        command[command.index(flag) + 1] = str(files / value)
    command[command.index("--output_dir") + 1] = again
    assert main(["select", *command]) == 0
    assert Selection.load(again).indices == Selection.load(first).indices
    assert Selection.load(again).config == Selection.load(first).config == GISTConfig.from_pretrained("jane/choice")
    # flags override it
    flags = ["--config", "hf://jane/choice", "--budget", "4", "--output_dir", again]
    assert main(["select", *flags, *data, *settings[-4:]]) == 0 and len(Selection.load(again).indices) == 4
    manifest = json.loads((files / "first" / "manifest.json").read_text())
    assert manifest["train_dataset"]["file"] == "pool.jsonl" and len(manifest["train_dataset"]["sha256"]) == 64
    assert str(files) not in json.dumps(manifest) + text


def test_neither_an_export_nor_local_paths_are_pushed_with_a_model(hub, files):
    run = files / "run"
    flags = ["--model_name_or_path", str(files / "model"), "--train_file", str(files / "pool.jsonl"), "--budget", "8"]
    flags += ["--target_file", str(files / "targets.jsonl"), "--lora_target_modules", "q_proj", "--warmup_steps", "2"]
    flags += ["--per_device_train_batch_size", "4", "--output_dir", str(run)]
    assert main(["select", *flags]) == 0
    assert main(["card", str(run), "--dataset"]) == 0
    (run / "_dataset" / "mine.png").write_bytes(b"x")
    (run / "mine.png").write_bytes(b"x")
    assert main(["card", str(run), "--repo_id", "jane/model", "--push"]) == 0
    pushed = hub.files("models/jane/model")
    assert not [name for name in pushed if name.startswith("_dataset") or name == "mine.png"]
    assert "warmup_adapter/adapter_config.json" in pushed
    assert str(files).encode() not in b"".join(content for name, content in pushed.items() if name.endswith("json"))


def test_rows_that_a_run_left_out_are_left_out_of_its_dataset(files):
    broken = (files / "pool.jsonl").read_text().splitlines()
    broken[3] = '{"messages": '
    pool = files / "broken.jsonl"
    pool.write_text("\n".join(broken) + "\n")
    run = str(files / "run")
    flags = ["--model_name_or_path", str(files / "model"), "--train_file", str(pool), "--skip_bad_rows"]
    flags += ["--target_file", str(files / "targets.jsonl"), "--lora_target_modules", "q_proj", "--budget", "70"]
    assert main(["select", *flags, "--strategy", "random", "--output_dir", run]) == 0
    written = (files / "run" / "selected.jsonl").read_text().splitlines()
    (files / "run" / "selected.jsonl").unlink()
    assert main(["card", run, "--dataset", "--train_file", str(pool)]) == 0
    chosen = Dataset.from_parquet(str(files / "run" / "_dataset" / "selected.parquet"))
    assert chosen["messages"][:] == [json.loads(line)["messages"] for line in written]


def test_a_config_of_the_hub_says_nothing_of_models_or_code(hub, files, capsys):
    hostile = {"budget": 4, "model_name_or_path": "evil/model", "trust_remote_code": True}
    hub.put("models/jane/bad", "gist_config.json", json.dumps(hostile).encode())
    assert main(["select", "--config", "hf://jane/bad", "--output_dir", str(files / "o")]) == 2
    assert "unknown key(s) model_name_or_path, trust_remote_code" in capsys.readouterr().err
    assert main(["compare", "--config", "hf://jane/none", "--output_dir", str(files / "o")]) == 2
    assert "does not exist or is private" in capsys.readouterr().err
