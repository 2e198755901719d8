"""Columns with other names: `--columns`, Alpaca, ShareGPT, and the error for unknown ones."""

import json

import pytest

from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import read_rows
from hf_gist.data.reading.stream import RowStream, chunk_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def pool(tmp_path, *rows, name="pool.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowSource(str(path))


def read(source, columns=None):
    return read_rows(source, "train_file", columns)


CHAT = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


def test_columns_are_renamed_and_the_lines_are_not(tmp_path):
    source = pool(tmp_path, {"id": 1, "question": "w1", "answer": "w2", "text": "w9"})
    raw = read(source, {"prompt": "question", "completion": "answer"})
    assert raw.rows[0] == {"id": 1, "prompt": "w1", "completion": "w2"} and raw.renamed
    assert json.loads(next(raw.texts([0])))["question"] == "w1"
    # two columns change places
    raw = read(pool(tmp_path, {"prompt": "w1", "completion": "w2"}), {"prompt": "completion", "completion": "prompt"})
    assert raw.rows[0] == {"prompt": "w2", "completion": "w1"}
    raw = read(pool(tmp_path, {"messages": CHAT, "functions": [{"name": "f"}]}), {"tools": "functions"})
    assert raw.rows[0] == {"messages": CHAT, "tools": [{"name": "f"}]}


def test_a_conversation_inside_an_object(tmp_path):
    row = {"custom_id": "a", "body": {"model": "m", "messages": CHAT, "temperature": 0.123456789012345}}
    source = pool(tmp_path, row, {"custom_id": "b", "body": {}})
    raw = read(source, {"messages": "body.messages"})
    assert raw.rows["messages"][:] == [CHAT, None] and raw.rows["body"][0] == row["body"]
    with pytest.raises(ValueError, match=r"--columns messages=body\.messages"):
        read(source)
    stream = RowStream(source, "train_file", {"messages": "body.messages"})
    rows, where = stream.next_rows(chunk_of(list(stream)))
    assert rows["messages"][0] == CHAT and where(1) == "train_file pool.jsonl, line 2"


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"id": 1, "question": "w1", "response": "w2"}, "prompt=question completion=response"),
        ({"a": "w1", "b": "w2"}, "prompt=a completion=b"),
        ({"a": "w1"}, "text=a"),
        ({"id": 1, "chat": CHAT}, "messages=chat"),
    ],
)
def test_unknown_columns_are_listed_with_an_example_made_of_them(tmp_path, row, example):
    with pytest.raises(ValueError, match=f"train_file pool.jsonl has the columns {', '.join(row)}; expected") as error:
        read(pool(tmp_path, row))
    assert f"`--columns {example}`" in str(error.value)


def test_a_column_that_is_not_there_is_named(tmp_path):
    source = pool(tmp_path, {"question": "w1", "answer": "w2"})
    with pytest.raises(
        ValueError, match="train_file pool.jsonl has no column reply. Its columns are question, answer"
    ):
        read(source, {"prompt": "question", "completion": "reply"})
    # a set without any of them is read as it is
    raw = read(pool(tmp_path, {"text": "w1"}), {"prompt": "question", "completion": "answer"})
    assert raw.rows.column_names == ["text"] and not raw.renamed


def test_alpaca_becomes_prompt_and_completion(tmp_path):
    with_input = {"instruction": "w1", "input": "w2", "output": "w3", "text": "w9"}
    raw = read(pool(tmp_path, with_input, {"instruction": "w4", "input": "", "output": "w5", "text": "w9"}))
    assert raw.rows["completion"][:] == ["w3", "w5"] and "text" not in raw.rows.column_names
    assert raw.rows["prompt"][:] == [
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nw1\n\n### Input:\nw2\n\n### Response:\n",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nw4\n\n### Response:\n",
    ]
    assert "Alpaca rows, read as `prompt`" in raw.notes[0] and "train_file pool.jsonl" in raw.notes[0]
    named = read(pool(tmp_path, with_input), {"prompt": "instruction", "completion": "output"})
    assert named.rows["prompt"][:] == ["w1"] and not named.notes, "--columns comes first"
    csv = tmp_path / "alpaca.csv"
    csv.write_text('instruction,input,output\n"w1\nw2",,w3\n')
    assert "### Instruction:\nw1\nw2\n\n### Response" in read(RowSource(str(csv))).rows["prompt"][0]


def test_sharegpt_is_kept_and_said(tmp_path):
    turns = [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]
    raw = read(pool(tmp_path, {"conversations": turns, "tools": "[]"}))
    assert raw.rows["conversations"][0] == turns and "ShareGPT rows" in raw.notes[0]
    assert not read(pool(tmp_path, {"conversations": CHAT})).notes
