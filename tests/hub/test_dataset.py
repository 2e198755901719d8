"""A selection as a dataset folder, read back by `datasets`."""

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard

from hf_gist import GISTConfig, export_dataset
from tests.helpers.hub_runs import pool, selection


def test_both_configs_load_from_the_folder(tmp_path):
    made, rows = selection(["a"] * 15 + ["b"] * 5), pool()
    folder = export_dataset(made, rows, tmp_path / "subset", repo_id="jane/subset", license="mit")
    chosen = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert chosen["gist_row"] == made.indices and chosen["gist_order"] == list(range(5))
    assert chosen["gist_score"] == pytest.approx(made.scores[made.indices].tolist())
    assert chosen["messages"] == rows.select(made.indices)["messages"]
    scores = load_dataset(str(folder), "scores", split="train", cache_dir=str(tmp_path / "cache"))
    assert scores["score"] == pytest.approx(made.scores.tolist()) and scores["source"] == ["a"] * 15 + ["b"] * 5
    assert [row for row in scores["row"] if scores["selected"][row]] == sorted(made.indices)
    assert GISTConfig.from_pretrained(folder) == made.config


def test_the_card_is_valid_and_says_where_the_rows_came_from(tmp_path):
    folder = export_dataset(
        selection(["a"] * 15 + ["b"] * 5), pool(), tmp_path / "s", repo_id="jane/subset", license="mit"
    )
    card = DatasetCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["tags"] == ["hf-gist", "gist"] and data["size_categories"] == ["n<1K"]
    assert data["source_datasets"] == ["jane/pool"]
    assert [c["config_name"] for c in data["configs"]] == ["selected", "scores"]
    for part in (
        'load_dataset("jane/subset"',
        "hf://datasets/jane/subset",
        "![Scores](scores.png)",
        "| `a` | ",
        "2602.18584",
    ):
        assert part in card.text, part
    assert (folder / "scores.png").is_file()
    unlicensed = export_dataset(selection(), pool(), tmp_path / "u")
    assert "license" not in DatasetCard.load(unlicensed / "README.md").data.to_dict()


def test_other_rows_are_refused(tmp_path):
    made = selection()
    with pytest.raises(ValueError, match="`rows` has 19 rows, but 20 were scored"):
        export_dataset(made, pool(19), tmp_path / "s")
    with pytest.raises(ValueError, match="datasets.Dataset, got list"):
        export_dataset(made, [{}] * 20, tmp_path / "s")
    taken = Dataset.from_list([{"gist_row": i} for i in range(20)])
    with pytest.raises(ValueError, match="the column.s. gist_row already"):
        export_dataset(made, taken, tmp_path / "s")
    assert not (tmp_path / "s").exists()
