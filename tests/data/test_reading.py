"""Reading rows: the very values, the place of every row, and errors that name it."""

import bz2
import codecs
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, Value

from hf_gist.data.provenance import RowSource, describe_source, digests_of
from hf_gist.data.reading.load import load_rows, raw_table, read_rows
from hf_gist.data.reading.stream import RowStream, chunk_of, text_of
from hf_gist.data.reading.table import ExactJson


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def lines_file(path, lines, end=b"\n"):
    path.write_bytes(end.join(lines) + end)
    return str(path)


def texts(*values):
    return [json.dumps({"text": value}).encode() for value in values]


def read(*files, **options):
    return read_rows(RowSource([str(file) for file in files]), "train_file", **options)


HARD = [
    {"text": "w1", "when": "2024-03-01T10:00:00", "big": 12345678901234567891, "x": 0.123456789012345, "meta": None},
    {"text": "w2", "x": 1, "meta": {"a": [1, "b", None]}, "tools": [{"name": "f", "parameters": {"y": 0.1 + 0.2}}]},
    {"text": "w3", "meta": "7", "tools": [{"name": "g", "parameters": {}}], "n": 10**30},
]
"""Values that a table rewrites: dates, large integers, floats among integers, changing types, other keys per row."""


# ---- Values ----


def test_values_of_any_type_are_returned_as_they_are(tmp_path):
    raw = read(lines_file(tmp_path / "pool.jsonl", [json.dumps(row).encode() for row in HARD]))
    for row, expected in zip(raw.rows, HARD, strict=True):
        assert {name: value for name, value in row.items() if value is not None} == {
            name: value for name, value in expected.items() if value is not None
        }
        assert type(row["x"]) is type(expected.get("x")), "an integer stays an integer"
    # also after the operations of `datasets`
    assert raw.rows.map(lambda row: {"length": len(row["text"])})["tools"][1] == HARD[1]["tools"]
    assert raw.rows.select([2])["n"][0] == 10**30 and raw.rows.select([2])["meta"][0] == "7"


def test_a_type_that_changes_after_many_rows_is_no_error(tmp_path):
    rows = [{"text": f"w{i}", "meta": None if i < 3000 else "late"} for i in range(3001)]
    raw = read(lines_file(tmp_path / "pool.jsonl", [json.dumps(row).encode() for row in rows]))
    assert raw.rows[3000]["meta"] == "late" and raw.rows[0]["meta"] is None


def test_conversations_of_texts_are_a_plain_table_and_others_keep_their_keys(tmp_path):
    plain = [
        {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]},
        {"messages": []},
    ]
    raw = read(lines_file(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in plain]))
    assert not isinstance(raw.rows.features["messages"], ExactJson) and raw.rows.to_list() == plain
    more = [*plain, {"messages": [{"role": "tool", "content": None, "name": "f"}]}]
    raw = read(lines_file(tmp_path / "b.jsonl", [json.dumps(row).encode() for row in more]))
    assert raw.rows.to_list() == more


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_are_the_very_bytes_without_marks_and_ends(tmp_path, end):
    lines = [b'{"text":  "w1"}', b'{"text": "w2", "x": 1.50}', b' {"text": "\\u00e9 \xc3\xa9"} ']
    path = tmp_path / "pool.jsonl"
    # a mark at the start and in the middle (joined files), blank lines, no end of the last line
    path.write_bytes(
        codecs.BOM_UTF8 + lines[0] + end + end + codecs.BOM_UTF8 + lines[1] + end + b"  " + end + lines[2]
    )
    raw = read(path)
    assert list(raw.texts([2, 0, 1])) == [lines[2], lines[0], lines[1]]
    assert [raw.where(row) for row in range(3)] == [f"train_file pool.jsonl, line {n}" for n in (1, 3, 5)]


def test_a_file_that_changes_while_it_is_in_use_is_an_error(tmp_path):
    path = tmp_path / "pool.jsonl"
    raw = read(lines_file(path, texts("w1", "w2")))
    lines_file(path, texts("w3", "w4", "w5"))
    with pytest.raises(ValueError, match="has changed since it was read"):
        list(raw.texts([0]))


def test_tool_calls_in_parquet_have_no_keys_of_other_calls(tmp_path):
    def row(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        tool = {"type": "function", "function": {"name": name, "parameters": {"properties": arguments}}}
        turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "tool_calls": [call]}]
        return {"messages": turns, "tools": [tool]}

    rows = [row("weather", {"city": "w3"}), row("quote", {"ticker": "w4", "days": 3})]
    path = str(tmp_path / "pool.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    raw = read(path)
    found = [turns[1]["tool_calls"][0]["function"]["arguments"] for turns in raw.rows["messages"]]
    assert found == [{"city": "w3"}, {"ticker": "w4", "days": 3}]
    assert raw.rows["tools"][0] == rows[0]["tools"] and raw.where(1) == "train_file pool.parquet, row 2"
    assert [json.loads(text)["tools"] for text in raw.texts([1, 0])] == [rows[1]["tools"], rows[0]["tools"]]
    stream = list(RowStream(RowSource(path), "train_file"))
    assert chunk_of(stream)["tools"][0] == rows[0]["tools"] and b"ticker" not in text_of(stream[0])


def test_nulls_that_were_written_are_kept(tmp_path):
    """In the layout that TRL recommends, arguments and schemas are JSON: a null there is a value."""
    function = {"name": "search", "arguments": {"words": "w3", "end": None}}
    schema = {"name": "search", "parameters": {"properties": {"end": {"default": None}}}}
    turns = [
        {"role": "user", "content": "w1", "tool_calls": None},
        {"role": "assistant", "content": "w2", "tool_calls": [{"type": "function", "function": function}]},
    ]
    rows = [{"messages": turns, "tools": [{"type": "function", "function": schema, "strict": None}]}]
    message = {"role": Value("string"), "content": Value("string"), "tool_calls": List(Json())}
    tool = {"type": Value("string"), "function": Json(), "strict": Value("bool")}
    features = Features({"messages": List(message), "tools": List(tool)})
    path = str(tmp_path / "pool.parquet")
    Dataset.from_list(rows, features=features).to_parquet(path)
    raw = read(path)
    (streamed,) = RowStream(RowSource(path), "train_file")
    for row in (raw.rows[0], chunk_of([streamed])[0], json.loads(next(raw.texts([0])))):
        assert row["messages"][1]["tool_calls"][0]["function"] == function
        # the column of the table adds this one
        assert row["tools"] == [{"type": "function", "function": schema}]


def test_json_columns_of_a_saved_table_are_exact_as_well(tmp_path):
    rows = [{"text": "w1", "calls": [{"x": 0.123456789012345}, {"y": 10**30}]}]
    texts = pyarrow.array([json.dumps(call) for call in rows[0]["calls"]])
    calls = pyarrow.ListArray.from_arrays([0, 2], pyarrow.ExtensionArray.from_storage(pyarrow.json_(), texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["w1"], "calls": calls}), tmp_path / "pool.parquet")
    raw = read(tmp_path / "pool.parquet", tmp_path / "pool.parquet")
    assert raw.rows[0] == rows[0] and raw.rows.select([0])[0] == rows[0]
    rest = lines_file(tmp_path / "rest.jsonl", [b'{"text": "w2", "calls": [{"x": 0.123456789012345}]}'])
    both = read(tmp_path / "pool.parquet", rest)
    assert both.rows["calls"][:] == [rows[0]["calls"], rows[0]["calls"][:1]]


# ---- Errors ----


BAD = {
    b'{"text": "w': "no JSON: Unterminated string starting at column 10",
    b'{"text": "w1"},': "no JSON: a comma after the object",
    b'{"text": "w1"} {"text": "w2"}': "two objects on one line",
    b"[1, 2]": "a list instead of an object",
    b'"w1"': "a text instead of an object",
    b'{"text": "\xe9"}': "no UTF-8 (byte 0xe9 at column 11)",
    b'{"text": "\\ud83d"}': r"half of a surrogate pair (\ud83d)",
    b'{"text": ' + b"[" * 100_000 + b"}": "nested too deeply",
}


@pytest.mark.parametrize(("line", "reason"), BAD.items(), ids=list(BAD.values()))
def test_a_bad_line_is_named(tmp_path, line, reason):
    path = lines_file(tmp_path / "pool.jsonl", [*texts("w1"), b"", line, *texts("w2")])
    with pytest.raises(ValueError, match="1 of 3 rows cannot be used") as error:
        read(path)
    assert "train_file pool.jsonl, line 3: " in str(error.value) and reason in str(error.value)
    with pytest.raises(ValueError, match="line 3"):
        RowStream(RowSource(path), "train_file")
    raw = read(path, skip_bad_rows=True)
    assert raw.rows["text"][:] == ["w1", "w2"] and raw.where(1) == "train_file pool.jsonl, line 4"
    assert [entry["row"] for entry in raw.skipped] == ["train_file pool.jsonl, line 3"]
    stream = RowStream(RowSource(path), "train_file", skip_bad_rows=True)
    assert [text_of(row) for row in stream] == texts("w1", "w2") and stream.skipped == raw.skipped


def test_bad_rows_of_all_files_are_counted_and_three_are_shown(tmp_path):
    one = lines_file(tmp_path / "one.jsonl", [*texts("w1"), b"{", b"{"])
    two = lines_file(tmp_path / "two.jsonl", [b"{", *texts("w2"), b"{"])
    with pytest.raises(ValueError, match="4 of 6 rows cannot be used") as error:
        read(one, two)
    shown = [text for text in str(error.value).splitlines() if "line" in text]
    assert [text.split(":")[0].strip() for text in shown] == [
        "train_file one.jsonl, line 2",
        "train_file one.jsonl, line 3",
        "train_file two.jsonl, line 1",
    ]
    raw = read(one, two, skip_bad_rows=True)
    assert raw.rows["text"][:] == ["w1", "w2"] and len(raw.skipped) == 4
    assert raw.where(1) == "train_file two.jsonl, line 2" and list(raw.texts([1])) == texts("w2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pool.jsonl", b"", "pool.jsonl` is empty"),
        ("pool.jsonl", b"\n \n", "pool.jsonl` has no rows"),
        ("pool.jsonl", "{}".encode("utf-16"), "line 1: no UTF-8 but UTF-16"),
        ("pool.json", b'[{"text": "w1"},\n{"text": }]', "line 2, column 10: no JSON: Expecting value"),
        ("pool.json", b'{"data":\n [{"text": "w1"}]}', "one JSON value with the keys data"),
        ("pool.json", b'[\n{"text": "w1"},\n{"text": "\xe9"}]', "line 3: no UTF-8"),
        ("pool.csv", b"text\nw1\n\xe9\n", "line 3: no UTF-8"),
        ("pool.csv", b"text,text\nw1,w2\n", "the column `text` is there twice"),
        ("pool.csv", b"text\n", "pool.csv` has no rows"),
        ("pool.jsonl.gz", gzip.compress(b'{"text": "w1"}\n' * 99, mtime=0)[:-9], "pool.jsonl.gz` cannot be read"),
        ("pool.jsonl.zst", b"no zstd at all", "pool.jsonl.zst` cannot be read"),
        ("pool.parquet", b"no parquet at all", "pool.parquet` cannot be read: .*Parquet magic bytes"),
        ("pool.jsonl", b"{\n{\n", "2 of 2 rows cannot be used"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_a_file_of_bad_rows_only_is_an_error_with_skip_bad_rows_as_well(tmp_path):
    with pytest.raises(ValueError, match="none of its 2 rows can be used"):
        read(lines_file(tmp_path / "pool.jsonl", [b"{", b"{"]), skip_bad_rows=True)


# ---- Formats ----


ROWS = [{"text": "w1", "id": 1}, {"text": "w2", "id": 2}]


def compressed(data, suffix):
    if suffix == ".zst":
        return pyarrow.Codec("zstd").compress(data, asbytes=True)
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}[suffix](data)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.ndjson", "pool.json", "list.json", "list.jsonl"])
def test_json_files_and_compressions(tmp_path, name, suffix):
    lines = [json.dumps(row).encode() for row in ROWS]
    data = json.dumps(ROWS, indent=1).encode() if name.startswith("list") else b"\n".join(lines)
    path = tmp_path / (name + suffix)
    path.write_bytes(compressed(data, suffix))
    raw = read(path)
    assert raw.rows.to_list() == ROWS and [json.loads(text) for text in raw.texts([1, 0])] == ROWS[::-1]
    unit = "row" if name.startswith("list") else "line"
    assert raw.where(1) == f"train_file {name}{suffix}, {unit} 2"
    assert [dict(row) for row in RowStream(RowSource(str(path)), "train_file")] == ROWS


def test_csv_with_line_breaks_in_cells_and_texts_that_look_like_numbers(tmp_path):
    path = tmp_path / "pool.csv"
    path.write_bytes(codecs.BOM_UTF8 + b'prompt,completion\r\n"w1\nw2",007\r\n\r\nw3,"1.0"\nw4,\nw5,w6,w7\nw8,True')
    with pytest.raises(ValueError, match="line 7: 3 cells, but the header has 2"):
        read(path)
    raw = read(path, skip_bad_rows=True)
    assert raw.rows["prompt"][:] == ["w1\nw2", "w3", "w4", "w8"]
    assert raw.rows["completion"][:] == ["007", "1.0", None, "True"]
    assert [raw.where(row) for row in range(4)] == [f"train_file pool.csv, line {n}" for n in (2, 5, 6, 8)]
    path.write_text('text\n"w1\nw2\n')
    with pytest.raises(ValueError, match="line 2: a quoted cell has no end"):
        read(path)
    (tmp_path / "pool.tsv").write_text("text\tid\nw1, w2\t1\n")
    assert read(tmp_path / "pool.tsv").rows.to_list() == [{"text": "w1, w2", "id": "1"}]


def test_folders_that_save_to_disk_wrote(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(
        tmp_path / "many"
    )
    assert read(tmp_path / "one").rows.to_list() == ROWS
    assert read(tmp_path / "many").where(1) == "train_file many, row 2"
    source = RowSource(None, str(tmp_path / "many"), "test")
    assert load_rows(source, "train_file").to_list() == ROWS[:1]
    with pytest.raises(ValueError, match="has no split 'dev'; its splits are train, test"):
        load_rows(RowSource(None, str(tmp_path / "many"), "dev"), "train_file")


# ---- Several ----


def test_files_folders_and_patterns(tmp_path):
    (tmp_path / "data" / "more").mkdir(parents=True)
    lines_file(tmp_path / "data" / "b.jsonl", texts("w2"))
    lines_file(tmp_path / "data" / "a.jsonl", texts("w1"))
    lines_file(tmp_path / "data" / "more" / "a.jsonl", texts("w3"))
    (tmp_path / "data" / "notes.md").write_text("no rows")
    whole = read(tmp_path / "data")
    assert whole.rows["text"][:] == ["w1", "w2", "w3"]
    assert whole.where(0) == "train_file data/a.jsonl, line 1" and whole.where(1) == "train_file b.jsonl, line 1"
    assert read(tmp_path / "data" / "*.jsonl").rows["text"][:] == ["w1", "w2"]
    assert read(tmp_path / "data" / "a.jsonl", tmp_path / "data" / "*.jsonl").rows["text"][:] == ["w1", "w2"]
    for given, message in (("*.csv", "no file matches"), ("more", "no such file")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder has no file of a known format"):
        read(tmp_path / "empty")


def test_rows_of_several_files_have_their_file_as_the_source(tmp_path):
    one = lines_file(tmp_path / "code.jsonl", [b'{"text": "w1", "meta": 1}', b'{"text": "w2", "meta": 2}'])
    two = tmp_path / "chat.jsonl.gz"
    two.write_bytes(gzip.compress(b'{"text": "w3", "meta": {"a": 0.123456789012345}}', mtime=0))
    table = Dataset.from_list(
        [{"text": "w4", "meta": "x"}], Features({"text": Value("string"), "meta": Value("string")})
    )
    table.to_parquet(tmp_path / "old.parquet")
    raw = read(one, two, tmp_path / "old.parquet")
    assert raw.rows["source"][:] == ["code", "code", "chat", "old"]
    assert raw.rows["meta"][:] == [1, 2, {"a": 0.123456789012345}, "x"]
    assert list(raw.texts([3, 2, 0]))[1:] == [
        b'{"text": "w3", "meta": {"a": 0.123456789012345}}',
        b'{"text": "w1", "meta": 1}',
    ]
    assert raw_table(raw).column_names == ["text", "meta"] and raw_table(raw)["meta"][:] == raw.rows["meta"][:]
    cut = raw.select([1, 2], [{"row": "x", "reason": "y"}])
    assert (
        list(cut.texts([0])) == [b'{"text": "w2", "meta": 2}'] and cut.where(1) == "train_file chat.jsonl.gz, line 1"
    )
    assert cut.rows["source"][:] == ["code", "chat"] and len(cut.skipped) == 1
    facts = describe_source(RowSource([one, str(two)]), {"rows": 3})
    assert [file["file"] for file in facts["files"]] == ["code.jsonl", "chat.jsonl.gz"] and len(digests_of(facts)) == 2


def test_a_file_without_the_column_has_its_name_as_the_source(tmp_path):
    one = lines_file(tmp_path / "code.jsonl", [b'{"text": "w1", "source": "a"}', b'{"text": "w2", "source": "b"}'])
    two = lines_file(tmp_path / "chat.jsonl", [b'{"text": "w3"}'])
    for files, sources in (((one, two), ["a", "b", "chat"]), ((two, one), ["chat", "a", "b"])):
        assert read(*files).rows["source"][:] == load_rows(RowSource(list(map(str, files))), "train_file")["source"][:]
        assert read(*files).rows["source"][:] == sources
    assert "source" not in read(two).rows.column_names


def test_rows_with_a_source_keep_it(tmp_path):
    one = lines_file(tmp_path / "one.jsonl", [b'{"text": "w1", "source": "x"}'])
    two = lines_file(tmp_path / "two.jsonl", [b'{"text": "w2", "source": "y"}'])
    assert read(one, two).rows["source"][:] == ["x", "y"]


def test_one_run_has_one_format(tmp_path):
    one = lines_file(tmp_path / "one.jsonl", texts("w1"))
    two = lines_file(tmp_path / "two.jsonl", [b'{"prompt": "w1", "completion": "w2"}'])
    with pytest.raises(ValueError, match="one.jsonl has `text`; two.jsonl has `prompt` and `completion`"):
        read(one, two)


# ---- Streams ----


def test_a_stream_has_the_lines_and_places_of_every_chunk(tmp_path):
    one = lines_file(tmp_path / "one.jsonl", [json.dumps(row).encode() for row in HARD])
    two = tmp_path / "two.jsonl.gz"
    two.write_bytes(gzip.compress(b"\n" + texts("w9")[0]))
    stream = RowStream(RowSource([one, str(two)]), "train_file")
    rows = list(stream)
    assert [text_of(row) for row in rows] == [*(json.dumps(row).encode() for row in HARD), *texts("w9")]
    first, where = stream.next_rows(chunk_of(rows[:3]))
    assert first["big"][0] == HARD[0]["big"] and where(2) == "train_file one.jsonl, line 3"
    _, where = stream.next_rows(chunk_of(rows[3:]))
    assert where(0) == "train_file two.jsonl.gz, line 2"
