"""Pools that are read once, and memory over the size of the pool."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset

from hf_gist import GISTConfig, Selection, select
from hf_gist.commands.main import main
from hf_gist.gist.stream import select_stream
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model


POOL, TARGETS = token_rows(70, seed=1), token_rows(5, seed=2)


@pytest.mark.parametrize("choice", [{}, {"strategy": "mean"}, {"score": "cosine"}, {"scorer": "rds_plus"}], ids=str)
def test_a_stream_gives_the_rows_of_the_whole_pool(choice):
    config = GISTConfig(budget=9, **choice)
    whole = select(
        lora_model(), as_dataset(POOL), as_dataset(TARGETS), config, data_collator=PaddingCollator(), progress=False
    )
    stream = IterableDataset.from_generator(lambda: iter(POOL))
    found = select_stream(
        lora_model(),
        stream,
        as_dataset(TARGETS),
        config,
        data_collator=PaddingCollator(),
        chunk_rows=16,
        progress=False,
    )
    assert found.indices == whole.indices and found.seen == 70
    torch.testing.assert_close(torch.tensor(found.scores), whole.scores[whole.indices], rtol=0, atol=1e-5)
    assert [row["input_ids"] for row in found.rows] == [POOL[i]["input_ids"] for i in found.indices]


def test_rows_that_cannot_be_scored_are_counted():
    pool = [dict(row) for row in POOL[:20]]
    pool[3]["labels"] = [-100] * len(pool[3]["labels"])
    found = select_stream(
        lora_model(), pool, as_dataset(TARGETS), GISTConfig(budget=30), data_collator=PaddingCollator(), chunk_rows=7,
        progress=False,
    )  # fmt: skip
    assert found.unscorable == 1 and sorted(found.indices) == [i for i in range(20) if i != 3]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"budget": 0.1}, "the length of a stream is not known"),
        ({"budget": 5, "strategy": "round_robin"}, "A stream is read once"),
        ({"budget": 5, "sample_from_top": 2.0}, "A stream is read once"),
        ({"budget": 5, "scorer": "less"}, "several checkpoints"),
    ],
)
def test_what_needs_the_whole_pool_is_refused_before_it_is_read(choice, message):
    def never():
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=message):
        select_stream(
            lora_model(), never(), as_dataset(TARGETS), GISTConfig(**choice), data_collator=PaddingCollator()
        )


def test_the_command_reads_a_stream(tmp_path, capsys):
    save_model(tmp_path / "model")
    Dataset.from_list(chats(60)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list([row for row in chats(16) if row["source"] == "family1"]).to_json(tmp_path / "targets.jsonl")
    common = ["select", "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "pool.jsonl")]
    common += ["--target_file", str(tmp_path / "targets.jsonl"), "--lora_target_modules", "q_proj,v_proj"]
    common += ["--budget", "7", "--warmup_ratio", "0.3", "--learning_rate", "1e-2", "--explained_variance", "0.99"]
    assert main([*common, "--output_dir", str(tmp_path / "whole")]) == 0
    adapter = ["--adapter_name_or_path", str(tmp_path / "whole" / "warmup_adapter")]
    assert main([*common, *adapter, "--streaming", "--output_dir", str(tmp_path / "stream")]) == 0
    whole = Selection.load(tmp_path / "whole")
    found = json.loads((tmp_path / "stream" / "stream.json").read_text())
    assert found["scores"] == pytest.approx(whole.scores[whole.indices].tolist(), abs=1e-5)
    assert len((tmp_path / "stream" / "selected.jsonl").read_text().splitlines()) == 7
    assert "7 of 60 rows of the stream" in capsys.readouterr().out
    assert main([*common, "--streaming", "--output_dir", str(tmp_path / "no")]) == 2
    assert "needs `--adapter_name_or_path`" in capsys.readouterr().err
