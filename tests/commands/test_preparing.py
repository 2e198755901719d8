"""Raw rows in `hf-gist select`: templates, bad rows, cuts, labels, and the adapter's own tokenizer."""

import json

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gist.commands.main import main
from hf_gist.commands.preparing import Preparer
from hf_gist.errors import TargetFormatWarning, UnscorableRowsWarning
from tests.helpers.words import TEMPLATE, chats, save_model, tokenizer, varied, write_rows


pytest.importorskip("trl", reason="TRL is not installed")

SPACED = TEMPLATE.replace("{{ eos_token }}", " {{ eos_token }}")
OTHER = "w91 " + SPACED


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    save_model(folder / "model")
    tokenizer(SPACED).save_pretrained(folder / "model")
    rows = [{"messages": row["messages"], "group": f"g{i % 2}"} for i, row in enumerate(varied(32, 0))]
    Dataset.from_list(rows[:24]).to_json(folder / "pool.jsonl")
    Dataset.from_list(rows[24:]).to_json(folder / "targets.jsonl")
    (folder / "other.jinja").write_text(OTHER)
    return folder


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def select(files, output, *more, pool=None, targets=None):
    """`hf-gist select` without scores, unless `more` asks for them."""
    return main(
        [
            "select",
            *("--model_name_or_path", str(files / "model")),
            *("--train_file", str(pool or files / "pool.jsonl")),
            *("--target_file", str(targets or files / "targets.jsonl")),
            *("--output_dir", str(output), "--budget", "4"),
            *(more or ("--strategy", "random")),
        ]
    )


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


RANDOM = ("--strategy", "random")


@pytest.fixture(scope="module")
def mixed(files):
    """The pool with three bad rows."""
    rows = rows_in(files / "pool.jsonl")
    rows[2]["messages"] = []
    rows[5]["messages"][1]["role"] = "asistant"
    rows[9]["messages"][0]["content"] = None
    return write_rows(files / "mixed.jsonl", rows)


def test_bad_rows_end_the_command_before_any_work(files, mixed, tmp_path, capsys):
    assert select(files, tmp_path / "out", pool=mixed) == 2
    error = capsys.readouterr().err
    assert "3 of 24 rows cannot be used" in error and "train_file mixed.jsonl, line 3: `messages` is empty" in error
    assert "line 6: message 2 has the role 'asistant'" in error and "line 10: message 1 (user) has no content" in error
    assert not (tmp_path / "out").exists()


def test_bad_rows_that_are_left_out_are_neither_trained_on_nor_selected(files, mixed, tmp_path, capsys):
    more = ("--warmup_ratio", "0.9", "--budget", "21", "--skip_bad_rows")
    counts = r"3 of 24 .* no labelled token \(3 of them are empty rows, or bad rows that were left out\)"
    with pytest.warns(UnscorableRowsWarning, match=counts):
        assert select(files, tmp_path, *more, pool=mixed) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "3 of 24 rows were left out; they keep their row numbers, so numbers of rows of the pool include" in told
    facts = manifest(tmp_path)
    # they do not repeat each other
    assert facts["pool_duplicates"] == {"exact": 0, "same_words": 0} and facts["pool_duplicates_dropped"] == 0
    assert [entry["row"] for entry in facts["bad_rows"]["train_file"]] == [
        f"train_file mixed.jsonl, line {line}" for line in (3, 6, 10)
    ]
    assert json.loads((tmp_path / "warmup_adapter" / "warmup.json").read_text())["barred"] == [2, 5, 9]
    # row numbers, and so the selected lines, are those of the file
    lines = rows_in(mixed)
    assert sorted(lines.index(row) for row in rows_in(tmp_path / "selected.jsonl")) == [
        row for row in range(24) if row not in (2, 5, 9)
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_targets_in_another_format_than_the_pool_warn(files, tmp_path, stream):
    plain = [{"prompt": f"w{i} w5", "completion": f" w{i + 1} w7"} for i in range(4)]
    targets = write_rows(tmp_path / "plain.jsonl", plain)
    more = ("--streaming", "--adapter_name_or_path", str(adapter_of(files, tmp_path))) if stream else RANDOM
    with pytest.warns(
        TargetFormatWarning, match="`target_file` are plain prompts with completions, those of `train_file`"
    ):
        assert select(files, tmp_path / "out", *more, targets=targets) == 0


def adapter_of(files, folder):
    """An adapter for the model, with random weights."""
    model = AutoModelForCausalLM.from_pretrained(files / "model")
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_rows_of_a_stream_are_named_by_their_line():
    preparer = Preparer(tokenizer(SPACED), 8)
    read = 0

    def chunk(rows):
        first = read
        return preparer.rows(rows, "train_file", lambda row: f"train_file pool.jsonl, line {first + row + 1}", True)

    rows = [{"messages": row["messages"]} for row in varied(6, 0)]
    assert len(chunk(Dataset.from_list(rows[:3]))) == 3
    read = 3
    rows[4]["messages"] = rows[4]["messages"][:1]
    with pytest.raises(ValueError, match=r"train_file pool.jsonl, line 5: `messages` has no turn of the assistant"):
        chunk(Dataset.from_list(rows[3:]))
    preparer.skip_bad_rows = True
    assert len(chunk(Dataset.from_list(rows[3:]))) == 3
    assert preparer.facts()["bad_rows"]["train_file"][0]["row"] == "train_file pool.jsonl, line 5"
    assert preparer.cuts["train_file"].rows == 6


def test_a_stream_may_hold_values_of_several_types(files, tmp_path):
    rows = rows_in(files / "pool.jsonl")
    rows[1]["messages"][0]["content"] = [{"type": "text", "text": rows[1]["messages"][0]["content"]}]
    pool = write_rows(tmp_path / "types.jsonl", rows)
    adapter = tmp_path / "adapter"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(files / "model"), config).save_pretrained(adapter)
    more = ("--streaming", "--strategy", "max", "--adapter_name_or_path", str(adapter))
    assert select(files, tmp_path / "out", *more, pool=pool) == 0


def test_cuts_are_printed_and_in_the_manifest_report_and_card(files, tmp_path, capsys):
    assert select(files, tmp_path, *RANDOM, "--max_length", "9") == 0
    facts = manifest(tmp_path)
    assert facts["max_length"] == 9
    counts = facts["cut_rows"]["train_file"]
    assert counts["rows"] == 24 and 0 < counts["cut"] <= 24
    line = f"train_file: {counts['cut']} of 24 rows were cut to 9 tokens"
    assert line in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert f"{counts['cut']} of 24" in page and "cut to 9 tokens" in page
    assert main(["card", str(tmp_path)]) == 0
    assert "cut to 9 tokens" in (tmp_path / "README.md").read_text()


def test_the_limit_in_use_is_in_the_manifest(files, tmp_path):
    assert select(files, tmp_path) == 0
    # of the model's positions
    assert manifest(tmp_path)["max_length"] == 64


def test_a_named_group_that_truncation_takes_is_an_error(files, tmp_path, capsys):
    rows = rows_in(files / "targets.jsonl")
    rows.append({"messages": [{"role": "user", "content": "w1 " * 40}, rows[0]["messages"][1]], "group": "long"})
    targets = write_rows(tmp_path / "targets.jsonl", rows)
    more = ("--target_group_column", "group", "--strategy", "round_robin", "--max_length", "32")
    assert select(files, tmp_path / "out", *more, targets=targets) == 2
    assert "Target groups without a usable row: 'long' (1 rows)" in capsys.readouterr().err


def test_labels_that_miss_the_answer_end_the_command(files, tmp_path, capsys):
    template = SPACED.replace("{{ m['content'] }} {{", "{{ m['content'].split(' ')[-1] }} {{")
    (tmp_path / "drops.jinja").write_text(template)
    more = (*RANDOM, "--chat_template", str(tmp_path / "drops.jinja"))
    assert select(files, tmp_path / "out", *more) == 2
    assert "the labels of 8 of 8 rows are not the assistant's answers" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="labels of 24 of 24 rows"):
        assert select(files, tmp_path / "out", *more, "--max_mislabelled", "1") == 0
    assert manifest(tmp_path / "out")["mislabelled_rows"] == {"target_file": 8, "train_file": 24}


def test_rows_are_shown_as_the_model_sees_them(files, tmp_path, capsys):
    more = (*RANDOM, "--show_labels", "2", "--chat_template", str(files / "other.jinja"))
    assert select(files, tmp_path, *more) == 0
    shown = capsys.readouterr().out
    first = rows_in(files / "pool.jsonl")[0]["messages"]
    assert shown.count("---- train_file, row") == 2 and shown.count("---- target_file, row") == 2
    assert f"w91 user {first[0]['content']} assistant⟦ {first[1]['content']} </s>⟧" in shown.replace(
        "⟦", "⟦ "
    ).replace("⟦  ", "⟦ ")
    assert select(files, tmp_path, *RANDOM, "--chat_template", "nowhere.jinja") == 2


@pytest.fixture(scope="module")
def adapters(files):
    """Three adapters: with its own template, with added tokens and their embeddings, and without the embeddings."""
    own = AutoTokenizer.from_pretrained(files / "model")
    own.chat_template = OTHER
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(files / "model"), settings).save_pretrained(files / "own")
    own.save_pretrained(files / "own")
    own.add_tokens(["<|tool|>", "<|end|>"], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(files / "model")
    model.resize_token_embeddings(len(own))
    model = get_peft_model(model, settings)
    for name in ("resized", "without"):
        model.save_pretrained(files / name, save_embedding_layers=name == "resized")
        own.save_pretrained(files / name)
    return files


def test_the_tokenizer_and_template_of_an_adapter_are_used(adapters, tmp_path, capsys):
    more = ("--adapter_name_or_path", str(adapters / "own"), "--show_labels", "1")
    assert select(adapters, tmp_path / "own", *more) == 0
    assert "w91 user" in capsys.readouterr().out
    more = (*more, "--tokenizer_name_or_path", str(adapters / "model"))
    assert select(adapters, tmp_path / "model", *more) == 0
    assert "w91 user" not in capsys.readouterr().out


def test_added_tokens_of_an_adapter(adapters, tmp_path, capsys):
    assert select(adapters, tmp_path / "a", "--adapter_name_or_path", str(adapters / "resized")) == 0
    capsys.readouterr()
    assert select(adapters, tmp_path / "b", "--adapter_name_or_path", str(adapters / "without")) == 2
    assert "the adapter brings none for the added tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [{"trainable_token_indices": [5, 6]}, {"modules_to_save": ["embed_tokens"]}],
    ids=lambda s: next(iter(s)),
)
def test_trained_embeddings_are_refused_by_name(files, tmp_path, capsys, settings):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **settings)
    get_peft_model(AutoModelForCausalLM.from_pretrained(files / "model"), config).save_pretrained(tmp_path / "adapter")
    assert select(files, tmp_path / "out", "--adapter_name_or_path", str(tmp_path / "adapter")) == 2
    error = capsys.readouterr().err
    assert "embed_tokens" in error and next(iter(settings)) in error


def test_each_of_several_files_must_be_labelled_rightly(tmp_path):
    """A small file of wrong rows is not one of a few wrong rows of all files."""
    preparer = Preparer(tokenizer(SPACED), 64)
    good = Dataset.from_list([{"messages": row["messages"]} for row in varied(200, 0)])
    wrong = SPACED.replace("{{ m['content'] }} {{", "{{ m['content'].split(' ')[-1] }} {{")
    preparer.usable(good, "test_file")
    preparer.chat_template = wrong
    with pytest.raises(ValueError, match="`test_file`: the labels of 2 of 2 rows are not the assistant's answers"):
        preparer.usable(good.select([0, 1]), "test_file")


def test_the_cuts_of_a_file_are_its_own(capsys):
    preparer = Preparer(tokenizer(SPACED), 7)
    rows = Dataset.from_list([{"messages": row["messages"]} for row in chats(4)])
    for _ in range(2):
        preparer.usable(rows, "test_file")
        assert "test_file: 4 of 4 rows were cut to 7 tokens" in capsys.readouterr().out
    assert preparer.facts()["cut_rows"]["test_file"]["rows"] == 8


def test_tokenised_rows_are_cut_only_to_a_length_that_was_asked_for():
    rows = Dataset.from_list([{"input_ids": [5] * 9, "labels": [5] * 9}])
    assert len(Preparer(tokenizer(SPACED), 7).usable(rows, "test_file")[0]["input_ids"]) == 7
    assert len(Preparer(tokenizer(SPACED), 7, cuts_tokens=False).usable(rows, "test_file")[0]["input_ids"]) == 9
