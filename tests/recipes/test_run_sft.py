"""Every YAML of the recipes through the real entry point, on a tiny model; mistakes; several processes."""

import functools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from datasets import Dataset

from hf_gist import GASTConfig, GISTConfig, Selection
from hf_gist.commands import main as cli
from hf_gist.commands.testing.questions import encode_prompt, question_and_answer
from tests import ROOT
from tests.helpers.tiny import base_model
from tests.helpers.words import save_model, tokenizer, varied


RECIPES = ROOT / "recipes"
RUNS = sorted([*RECIPES.glob("sft/*.yaml"), *RECIPES.glob("paper/*.yaml")])
ACCELERATE = sorted(RECIPES.glob("accelerate/*.yaml"))
SELECT_SMALL = ["--model_name_or_path", "model", "--max_length", "32"]
SMALL = [*SELECT_SMALL, "--gradient_accumulation_steps", "1", "--max_new_tokens", "8"]
POOL = 80

sys.path.insert(0, str(RECIPES))
run_sft = pytest.importorskip("run_sft", reason="TRL is not installed")
import generation  # noqa: E402


def named(paths):
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in paths]


def commands(path):
    """The commands in the comments that a YAML starts with: paragraphs that begin with a program."""
    comments = path.read_text(encoding="utf-8").partition("\n\n")[0].removeprefix("# ").split("\n#\n")
    paragraphs = [text.replace("\n#", "\n").removeprefix("# ").replace("\\\n", " ") for text in comments]
    return [shlex.split(text) for text in paragraphs if text.split()[0] in ("accelerate", "hf-gist")]


def launch_command(path):
    """The command in the comment that a YAML starts with."""
    return commands(path)[0]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the recipes expect it: the checkout's `recipes` and the data files, with tiny models."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "recipes").symlink_to(RECIPES)
    save_model(folder / "model")
    base_model(hidden_size=64, intermediate_size=128, seed=1).save_pretrained(folder / "large")
    tokenizer().save_pretrained(folder / "large")
    rows = varied(POOL + 28, 7)
    for name, part in (
        ("pool", rows[:POOL]),
        ("targets", rows[POOL : POOL + 8]),
        ("eval", rows[POOL + 8 : POOL + 16]),
    ):
        Dataset.from_list(part).to_json(folder / f"{name}.jsonl")
    Dataset.from_list(rows[POOL + 16 : POOL + 21]).to_json(folder / "test.jsonl")
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def run(path, *flags):
    """The launch command of a YAML in this process, on the tiny model."""
    command = launch_command(path)
    script = command.index("recipes/run_sft.py")
    assert command[:2] == ["accelerate", "launch"] and script == 4
    return run_sft.main([*command[script + 1 :], *SMALL, *flags])


def few_steps(settings):
    if "gist" in settings:
        # the warm-up and one pass, or as many passes as choosing again needs
        epochs = 2 + settings["gist"].get("reselect_every", 0)
        return ["--num_train_epochs", str(epochs), "--gist.warmup_steps", "2"]
    return ["--max_steps", "3"]


@functools.cache
def select_with_proxy():
    command = launch_command(RECIPES / "sft" / "proxy_select.yaml")
    assert command[0] == "hf-gist" and cli.main([*command[1:], *SELECT_SMALL, "--budget", "12"]) == 0
    return Selection.load(read(RECIPES / "sft" / "proxy_select.yaml")["output_dir"])


def selection_for(path):
    """What a recipe for selected rows trains on: from the command in its comments, or from that of the small model."""
    if len(commands(path)) == 1:
        return select_with_proxy()
    command = commands(path)[1]
    assert command[:4] == ["hf-gist", "select", "--config", "recipes/sft/proxy_select.yaml"]
    assert cli.main([*command[1:], *SELECT_SMALL, "--budget", "12"]) == 0
    return Selection.load(read(path)["selected_rows"])


@pytest.mark.parametrize("path", named(RUNS))
def test_every_yaml_runs_and_keeps_its_settings(path):
    settings = read(path)
    assert launch_command(path)[-2:] == ["--config", str(path.relative_to(ROOT))]
    if path.stem == "proxy_select":
        assert len(select_with_proxy().indices) == 12
        return
    if settings.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    # a large model for what another one selected, and for blocks of 64 values in 4 bits
    large = "selected_rows" in settings or "load_in_4bit" in settings
    flags = few_steps(settings) + (["--model_name_or_path", "large"] if large else [])
    if "selected_rows" in settings:
        chosen = selection_for(path).indices
    if "attn_implementation" in settings:
        flags += ["--attn_implementation", "sdpa"]
    trainer = run(path, *flags)
    output, lora = Path(settings["output_dir"]), trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == tuple(
        settings[f"lora_{name}"] for name in ("r", "alpha", "dropout")
    )
    assert trainer.args.per_device_train_batch_size == settings["per_device_train_batch_size"]
    assert trainer.args.learning_rate == settings["learning_rate"] and trainer.args.packing == settings.get(
        "packing", False
    )
    trained = trainer.model.get_parameter(next(n for n, _ in trainer.model.named_parameters() if "lora_B" in n))
    assert trained.abs().sum() > 0
    files = {file.name for file in output.iterdir()}
    assert {"adapter_model.safetensors", "recipe.json", "all_results.json"} <= files
    recipe, results = (
        json.loads((output / "recipe.json").read_text()),
        json.loads((output / "all_results.json").read_text()),
    )
    if "gist" in settings:
        selection = Selection.load(output / "gist")
        assert selection.config == GISTConfig(**settings["gist"] | {"warmup_steps": 2}) == GISTConfig(**recipe["gist"])
        assert len(selection.indices) == int(selection.config.budget * POOL)
    if "gast" in settings:
        assert trainer.gast_config == GASTConfig(**settings["gast"]) == GASTConfig(**recipe["gast"])
        assert "gast_selection.parquet" in files
    if settings.get("packing"):
        check_packed(trainer, chosen)
    elif "selected_rows" in settings:
        pool, used = lines("pool.jsonl"), trainer.train_dataset
        assert [row["messages"] for row in used] == [pool[i]["messages"] for i in chosen]
    assert trainer.model.config.hidden_size == (64 if large else 32)
    assert ("eval_loss" in results) == ("eval_file" in settings)
    if "test_file" in settings:
        assert 0 <= results["test_exact_match"] <= 1 and results["test_samples"] == 5
        references = [row["messages"][-1]["content"] for row in lines("test.jsonl")]
        assert [row["reference"] for row in lines(output / "test_predictions.jsonl")] == references


def check_packed(trainer, chosen):
    """The rows hold the tokens of the selected examples, each once, and several in a row."""
    pool, rows = lines("pool.jsonl"), trainer.train_dataset
    assert len(rows) < len(chosen) == sum(len(row["seq_lengths"]) for row in rows)
    encode = functools.partial(trainer.processing_class.apply_chat_template, tokenize=True, return_dict=False)
    expected = sorted(list(encode(pool[i]["messages"])) for i in chosen)
    found = []
    for row in rows:
        ends = torch.tensor(row["seq_lengths"]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        found += [list(row["input_ids"][start:end]) for start, end in zip(starts, ends, strict=True)]
    assert sorted(found) == expected


def test_the_issue_has_all_its_recipes():
    names = {path.stem for path in RUNS}
    assert {"lora", "gist", "gast", "gist_gast", "online", "qlora", "proxy_select", "proxy_train", "packed"} <= names
    assert {path.stem for path in ACCELERATE} == {"single_gpu", "multi_gpu", "fsdp2", "zero3", "cpu"}


@pytest.mark.parametrize("path", named(ACCELERATE))
def test_accelerate_reads_its_configurations(path):
    config = load_config_from_file(str(path))
    command = launch_command(path)
    assert command[:4] == ["accelerate", "launch", "--config_file", f"recipes/accelerate/{path.name}"]
    assert all(Path(part).is_file() for part in command if part.startswith("recipes/"))
    kinds = {"multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds.get(path.stem, "NO") and config.use_cpu == (path.stem == "cpu")
    assert config.fsdp_config.get("fsdp_version") == (2 if path.stem == "fsdp2" else None)
    if path.stem == "zero3":
        assert "gist" not in read(Path(command[-1])) and "gast" not in read(Path(command[-1]))


def test_every_value_of_the_paper_settings_has_its_source():
    for path in RECIPES.glob("paper/*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            bare = line.strip().endswith(":") or line.startswith(("#", "use_peft:")) or not line.strip()
            assert bare or any(f"{kind}" in line.split("#", 1)[1] for kind in ("paper", "code", "LESS", "ours")), line


# ---- Settings ----


def parsed(*flags, **values):
    Path("run.yaml").write_text(yaml.safe_dump({"model_name_or_path": "model", "train_file": "pool.jsonl"} | values))
    return run_sft.parse_arguments(["--config", "run.yaml", *flags])


def test_flags_override_the_file_and_switch_methods_on():
    off = parsed("--use_peft", "--learning_rate", "1e-3", learning_rate="2e-4", bf16=False)
    assert off.gist is None and off.gast is None and off.training.learning_rate == 1e-3
    both = {"use_peft": True, "target_file": "targets.jsonl", "gist": {"budget": 0.1, "rank": 3}, "gast": None}
    on = parsed(
        "--gist.budget", "7", "--gist.explained_variance", "5e-1", "--gist.drop_target_duplicates", "false", **both
    )
    expected = GISTConfig(budget=7, rank=3, explained_variance=0.5, drop_target_duplicates=False)
    assert on.gist == expected and on.gast == GASTConfig()
    assert parsed("--gast.keep", "0.25", use_peft=True).gast == GASTConfig(keep=0.25)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bf16 is on where there is a GPU for it")
def test_without_a_gpu_for_it_bf16_is_off():
    assert parsed().training.bf16 is False and parsed("--bf16", "true", "--use_cpu").training.bf16


GIST = {"gist": {"budget": 4}, "target_file": "targets.jsonl", "use_peft": True}


@pytest.mark.parametrize(
    ("values", "flags", "message"),
    [
        ({"learning_rat": 1}, (), "unknown key(s) learning_rat;"),
        ({"gist": {"budgets": 1}}, (), "unknown key(s) gist.budgets;"),
        ({"gist": 5}, (), "`gist` must be a mapping of fields to values, got 5"),
        ({}, ("--gist.budgets", "1"), "--gist.budgets"),
        (GIST, ("--gist.budget", "abc"), "`budget` must be int or float, got 'abc'"),
        (GIST | {"gist": {"strategy": "best"}}, (), "`strategy` must be one of"),
        ({"gist": None, "use_peft": True}, (), "GIST needs `target_file`"),
        ({"target_file": "targets.jsonl"}, (), "target rows are for GIST, which is off"),
        ({"support_file": "targets.jsonl"}, (), "`support_file` is for GAST, which is off"),
        (GIST | {"use_peft": False}, (), "set `use_peft: true`"),
        (GIST | {"selected_rows": "selection"}, (), "both select the rows"),
        ({"test_file": "test.jsonl"}, (), "`test_file` and `metric` must be given together"),
        ({"test_file": "test.jsonl", "metric": "bleu"}, (), "`metric: bleu` is neither"),
        ({"test_file": "text.jsonl", "metric": "gsm8k_exact_match"}, (), "Row 0 of `test_file` has no question"),
        ({"test_file": "test.jsonl", "metric": "choice_accuracy"}, (), "Reference 0 names none of the choices"),
        ({"choices": ["A"]}, (), "`choices` are for `metric: choice_accuracy`"),
        ({"max_new_tokens": 0}, (), "`max_new_tokens` must be at least 1, got 0"),
        ({"train_file": "nowhere.jsonl"}, (), "`--train_file nowhere.jsonl`: no such file"),
        ({"dataset_name": "some/data"}, (), "Give exactly one of `--train_file` and `--dataset_name`"),
        ({"model_name_or_path": None}, (), "`model_name_or_path` is missing"),
        ({"selected_rows": "nowhere"}, (), "nowhere/coordinates.safetensors does not exist"),
    ],
)
def test_mistakes_end_in_one_line_before_a_model_is_loaded(monkeypatch, values, flags, message):
    Path("text.jsonl").write_text('{"text": "w1 w2"}\n')
    Path("run.yaml").write_text(yaml.safe_dump({"model_name_or_path": "model", "train_file": "pool.jsonl"} | values))
    monkeypatch.setattr(run_sft, "train_and_evaluate", lambda *_: pytest.fail("went on"))
    with pytest.raises(SystemExit) as stopped:
        run_sft.main(["--config", "run.yaml", *flags])
    assert str(stopped.value).startswith("run_sft.py: error: ") and message in str(stopped.value)


def test_a_selection_of_another_pool_is_refused():
    select_with_proxy()
    rows = lines("pool.jsonl")
    for other in (rows[::-1], rows[:-1]):
        Dataset.from_list(other).to_json("other.jsonl")
        with pytest.raises(SystemExit, match="was made from another pool"):
            run(RECIPES / "sft" / "proxy_train.yaml", "--train_file", "other.jsonl")


def test_a_prompt_without_room_for_its_answer_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr(run_sft.SFTTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="`max_new_tokens: 60` that is more than the model's 64 positions"):
        run(RECIPES / "sft" / "lora.yaml", "--max_new_tokens", "60")


def test_held_out_rows_are_never_selected():
    pool = lines("pool.jsonl")
    Dataset.from_list(pool[:30]).to_json("leaked_test.jsonl")
    Dataset.from_list(pool[30:60]).to_json("leaked_eval.jsonl")
    leaked = ("--test_file", "leaked_test.jsonl", "--eval_file", "leaked_eval.jsonl", "--output_dir", "out/leaks")
    flags = (
        "--num_train_epochs",
        "2",
        "--gist.warmup_steps",
        "2",
        "--gist.budget",
        "20",
        "--gist.sample_from_top",
        "1",
    )
    text = r"30 rows of the pool are also in `eval_dataset\['{}_file'\]`"
    with pytest.warns(match=text.format("eval")), pytest.warns(match=text.format("test")):
        run(RECIPES / "sft" / "gist.yaml", *flags, *leaked, "--max_new_tokens", "1")
    assert sorted(Selection.load("out/leaks/gist").indices) == list(range(60, 80))


def test_sources_are_those_of_the_rows_that_the_trainer_keeps():
    """`SFTTrainer` drops a row whose answer is cut off; the script has no flag for rows of the callback."""
    pool = lines("pool.jsonl")
    pool[3]["messages"][0]["content"] = " ".join(["w1"] * 200)
    Dataset.from_list([row | {"origin": f"o{number % 2}"} for number, row in enumerate(pool)]).to_json("long.jsonl")
    flags = ("--train_file", "long.jsonl", "--gist.source_column", "origin", "--output_dir", "out/long")
    flags += ("--max_length", "32", "--num_train_epochs", "2", "--gist.warmup_steps", "2", "--max_new_tokens", "1")
    run(RECIPES / "sft" / "gist.yaml", *flags)
    assert set(Selection.load("out/long/gist").measurements.sources) == {"o0", "o1"}
    assert len(Selection.load("out/long/gist").scores) == len(pool) - 1


# ---- Answers ----


@pytest.fixture(scope="module")
def trained(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(RECIPES / "sft" / "lora.yaml", "--max_steps", "1", "--output_dir", "out/answers")


def test_answers_are_greedy_and_the_same_in_any_batch(trained):
    rows = varied(7, 3)
    pairs = [question_and_answer(row, "Row 0") for row in rows]
    assert [answer for _, answer in pairs] == [row["messages"][1]["content"] for row in rows]
    prompts = [encode_prompt(question, trained.processing_class) for question, _ in pairs]
    assert trained.processing_class.decode(prompts[0]).endswith("assistant")
    prompts[2] = prompts[2] + prompts[0]
    alone, together = (generation.generate_answers(trained, prompts, size, 6) for size in (1, 4))
    assert alone == together and len(set(alone)) > 1
    ids = list(prompts[2])
    model = trained.model.eval()
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    end = trained.processing_class.eos_token_id
    answer = ids[len(prompts[2]) :]
    answer = answer[: answer.index(end)] if end in answer else answer
    assert alone[2] == trained.processing_class.decode(answer, skip_special_tokens=True).strip()


def test_prompt_and_completion_rows_are_questions_too(trained):
    text = question_and_answer({"prompt": "w1 w2", "completion": "w3"}, "Row 0")
    assert text == ("w1 w2", "w3") and len(encode_prompt(text[0], trained.processing_class)) == 2
    turn = {"prompt": [{"role": "user", "content": "w1"}], "completion": [{"role": "assistant", "content": "w3"}]}
    assert question_and_answer(turn, "Row 0") == (turn["prompt"], "w3")
    for bad in ({"messages": turn["prompt"]}, {"text": "w1"}, {"prompt": "w1", "completion": ""}):
        with pytest.raises(ValueError, match="Row 5 of `test_file`"):
            question_and_answer(bad, "Row 5 of `test_file`")


# ---- By its launch command ----


def launch(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    starter = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    done = subprocess.run([*starter, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_train_and_answer_as_one_does():
    results = []
    for config, processes, batch in (("cpu", 1, 16), ("multi_gpu", 2, 8)):
        output = f"out/launched{processes}"
        launch(
            *("--config_file", f"recipes/accelerate/{config}.yaml", "--num_processes", str(processes)),
            *("recipes/run_sft.py", "--config", "recipes/sft/gist.yaml", *SMALL, "--output_dir", output),
            *few_steps({"gist": {}}),
            *("--per_device_train_batch_size", str(batch), "--use_cpu"),
        )
        found = json.loads(Path(output, "all_results.json").read_text())
        results.append((Selection.load(f"{output}/gist"), lines(f"{output}/test_predictions.jsonl"), found))
    (one, answers, alone), (two, shared, together) = results
    assert two.manifest["processes"] == 2 and one.indices == two.indices
    assert answers == shared and len(answers) == 5
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-3)
    assert together["test_exact_match"] == alone["test_exact_match"]
