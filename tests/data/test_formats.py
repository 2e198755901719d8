"""Reading files and tokenizing rows into `input_ids` and `labels`."""

import json

import pytest
from datasets import Dataset

from hf_gist.data.formats import tokenize, tokenize_row
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import load_rows
from tests.helpers.words import TEMPLATE, chats, tokenizer


PLAIN = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def words_of(encoded, tok):
    ids, labels = encoded["input_ids"], encoded["labels"]
    return tok.convert_ids_to_tokens(ids), [tok.convert_ids_to_tokens(i) if i != -100 else None for i in labels]


@pytest.mark.parametrize("template", [TEMPLATE, PLAIN], ids=["generation marks", "prefixes"])
def test_only_assistant_turns_carry_a_loss(template):
    tok = tokenizer(template)
    messages = [
        {"role": "user", "content": "w1 w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": "w4"},
        {"role": "assistant", "content": "w5 w6"},
    ]
    # the word-level tokenizer needs a space before the end token to see it as a word of its own
    tok.chat_template = template.replace("{{ eos_token }}", " {{ eos_token }}")
    ids, labels = words_of(tokenize_row({"messages": messages}, tok), tok)
    assert ids == ["user", "w1", "w2", "assistant", "w3", "</s>", "user", "w4", "assistant", "w5", "w6", "</s>"]
    assert [word for word in labels if word is not None] == ["w3", "</s>", "w5", "w6", "</s>"]
    assert labels[4] == "w3" and labels[9] == "w5"


def test_a_template_that_renders_earlier_turns_differently_is_an_error():
    template = PLAIN.replace("assistant {{ m", "assistant {% if loop.last %}w9 w9 {% endif %}{{ m")
    tok = tokenizer(template.replace("{{ eos_token }}", " {{ eos_token }}"))
    one = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w3"}]
    ids, labels = words_of(tokenize_row({"messages": one}, tok), tok)
    assert ids == ["user", "w1", "assistant", "w9", "w9", "w3", "</s>"]
    assert labels == [None, None, None, "w9", "w9", "w3", "</s>"]
    with pytest.raises(ValueError, match="renders an earlier assistant turn differently"):
        tokenize_row({"messages": one * 2}, tok)
    # with labels on all tokens, the answers need not be located
    assert tokenize_row({"messages": one * 2}, tok, answers_only=False)["labels"]


def test_a_conversation_may_begin_with_the_assistant():
    tok = tokenizer(PLAIN.replace("{{ eos_token }}", " {{ eos_token }}"))
    messages = [{"role": "assistant", "content": "w3"}, {"role": "user", "content": "w4"}]
    assert words_of(tokenize_row({"messages": messages}, tok), tok)[1][:3] == ["assistant", "w3", "</s>"]


def test_in_a_conversational_prompt_only_the_completion_carries_a_loss():
    tok = tokenizer(TEMPLATE.replace("{{ eos_token }}", " {{ eos_token }}"))
    prompt = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "w4"}]}
    assert [word for word in words_of(tokenize_row(row, tok), tok)[1] if word] == ["w4", "</s>"]


def test_empty_cells_and_missing_labels_are_errors_with_their_place():
    with pytest.raises(ValueError, match="Row 1 of `train_file` has no `text`"):
        tokenize(Dataset.from_list([{"text": "w1"}, {"text": None}]), tokenizer(), None, "train_file")
    with pytest.raises(ValueError, match="has `input_ids` but no `labels`"):
        tokenize(Dataset.from_list([{"input_ids": [5, 6]}]), tokenizer(), None, "train_file")


@pytest.mark.parametrize("packed", [False, True])
def test_tools_and_template_arguments_of_a_row_reach_the_template(packed):
    template = "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}{% if style %}{{ style }} {% endif %}" + TEMPLATE
    tok = tokenizer(template.replace("{{ eos_token }}", " {{ eos_token }}"))
    tools = [{"name": "w7"}, {"name": "w8"}]
    row = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
    row |= {"tools": json.dumps(tools) if packed else tools, "chat_template_kwargs": {"style": "w9"}}
    ids, labels = words_of(tokenize_row(row, tok), tok)
    assert ids == ["w7", "w8", "w9", "user", "w1", "assistant", "w2", "</s>"]
    assert [word for word in labels if word] == ["w2", "</s>"]


def test_numbers_in_a_text_column_are_an_error():
    rows = Dataset.from_list([{"prompt": "w1", "completion": 7}])
    with pytest.raises(ValueError, match="Row 0 of `train_file` has 7 in `completion`, which is not text"):
        tokenize(rows, tokenizer(), None, "train_file")


def test_prompt_and_completion():
    tok = tokenizer()
    ids, labels = words_of(tokenize_row({"prompt": "w1 w2", "completion": " w3 "}, tok), tok)
    assert ids == ["w1", "w2", "w3", "</s>"] and labels == [None, None, "w3", "</s>"]


def test_text_and_all_tokens():
    tok = tokenizer()
    assert tokenize_row({"text": "w1 w2"}, tok)["labels"] == tokenize_row({"text": "w1 w2"}, tok)["input_ids"]
    encoded = tokenize_row({"prompt": "w1", "completion": " w2"}, tok, answers_only=False)
    assert encoded["labels"] == encoded["input_ids"]


def test_tokenize_keeps_the_columns_and_cuts_long_rows():
    rows = tokenize(Dataset.from_list(chats(4)), tokenizer(), 5, "train_file")
    assert rows["source"][0] == "family0" and all(len(ids) == 5 for ids in rows["input_ids"])
    assert all(len(ids) == len(labels) for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True))
    assert tokenize(rows, tokenizer(), 3, "train_file") is rows


def test_unknown_formats_are_errors():
    with pytest.raises(ValueError, match="`train_file` has the columns question; expected `input_ids`"):
        tokenize(Dataset.from_list([{"question": "w1"}]), tokenizer(), None, "train_file")
    with pytest.raises(ValueError, match="no chat template"):
        tokenize(Dataset.from_list(chats(1)), tokenizer(template=None), None, "train_file")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files(tmp_path, suffix):
    rows, path = Dataset.from_list([{"text": "w1"}, {"text": "w2"}]), tmp_path / f"rows.{suffix}"
    {"csv": rows.to_csv, "parquet": rows.to_parquet}.get(suffix, rows.to_json)(path)
    assert load_rows(RowSource(str(path)), "train_file")["text"] == ["w1", "w2"]


def test_a_configuration_of_a_dataset(tmp_path):
    for name in ("main", "other"):
        (tmp_path / name).mkdir()
        Dataset.from_list([{"text": name}]).to_parquet(tmp_path / name / "rows.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/rows.parquet\n" for name in ("main", "other"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert load_rows(RowSource(None, str(tmp_path), "train", "other"), "train_file")["text"] == ["other"]
    with pytest.raises(ValueError, match="main"):
        load_rows(RowSource(None, str(tmp_path)), "train_file")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "rows.txt").write_text(json.dumps({"text": "w1"}))
    for arguments, message in (
        ((None, None), "Give exactly one of `--train_file` and `--dataset_name`"),
        (("a.jsonl", "user/data"), "exactly one"),
        ((str(tmp_path / "missing.jsonl"), None), "no such file"),
        ((str(tmp_path / "rows.txt"), None), "unknown format"),
    ):
        with pytest.raises(ValueError, match=message):
            load_rows(RowSource(*arguments), "train_file")
    with pytest.raises(ValueError, match="`--target_file` and `--target_dataset_name`"):
        load_rows(RowSource(), "target_file")
