"""Reading files."""

import json

import pytest
from datasets import Dataset

from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import load_rows


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
