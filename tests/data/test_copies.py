"""Rows of the pool that repeat each other."""

import json
import random
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.commands.compare.arms import rows_of_arm
from hf_gist.commands.main import main
from hf_gist.data.copies import DIGEST, SeenRows, beyond_tokens, digest, first_rows
from hf_gist.data.leaks import LeakGuard, excluded_rows, find_leaks
from hf_gist.errors import DuplicateRowsWarning, LeakWarning
from hf_gist.functional.measurements import first_of_each
from hf_gist.gist.stream import select_stream
from hf_gist.hub.card_facts import selection_facts
from hf_gist.report import summary_table
from hf_gist.report.asked import asked
from tests.data.test_leaks import WithTokenizer
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import chats, save_model, tokenizer
from tests.test_callback import train


DISTINCT, TARGETS = token_rows(20, seed=1, low=8), token_rows(4, seed=2)


def repeated():
    """20 rows, then 10 copies of row 3, 2 of row 5 with the same words only, and a target twice: 34 rows."""
    words = {name: [1, *values] for name, values in DISTINCT[5].items()}
    return [*DISTINCT, *[DISTINCT[3]] * 10, words, words, TARGETS[1], TARGETS[1]]


def chosen(config=None, pool=None, collator=None, **kwargs):
    return select(
        lora_model(),
        as_dataset(pool or repeated()),
        as_dataset(TARGETS),
        config or GISTConfig(budget=12),
        data_collator=collator or WithTokenizer(),
        progress=False,
        **kwargs,
    )


@pytest.fixture(scope="module")
def selection(tmp_path_factory):
    with pytest.warns((LeakWarning, DuplicateRowsWarning)):
        return chosen(output_dir=tmp_path_factory.mktemp("scores"))


def test_copies_do_not_fill_the_budget(tmp_path):
    with pytest.warns(DuplicateRowsWarning, match=r"13 of 34 rows .* \(12 with the same tokens, 1 with only the same"):
        selection = chosen(output_dir=tmp_path)
    assert len(selection.indices) == 12 and set(selection.indices) < set(range(20))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["pool_duplicates"] == {"exact": 12, "same_words": 1}
    # the copy of a target is left out as a target
    assert manifest["pool_duplicates_dropped"] == selection.copies_dropped == 12
    assert "repeated rows left out      12 of 13 found; the others cannot be selected" in summary_table(selection)
    found = "13 (12 with the same tokens, 1 with only the same words), left out"
    assert ["rows that repeat an earlier row", found] in asked(selection).tables[1].rows
    assert dict(selection_facts(selection))["Rows that repeat an earlier row"] == found


def test_the_setting_can_be_changed_without_scoring(selection, tmp_path):
    selection.save(tmp_path)
    again = Selection.load(tmp_path)
    assert again.indices == selection.indices
    off = again.reselect(drop_pool_duplicates=False, budget=34)
    assert sorted(off.indices) == list(range(32)) and off.copies_dropped == 0
    assert "repeated rows kept          12; drop_pool_duplicates is off" in summary_table(off)
    on = off.reselect(drop_pool_duplicates=True, drop_target_duplicates=False, budget=34)
    # the first copy of a target stands for the other
    assert sorted(on.indices) == [*range(20), 32]
    # copies score alike, so that without the setting they are selected together
    top = again.reselect(drop_pool_duplicates=False, strategy="max", budget=34).indices
    places = sorted(top.index(row) for row in [3, *range(20, 30)])
    assert places == list(range(places[0], places[0] + 11))


def test_a_fraction_is_one_of_the_pool_as_given(selection):
    assert len(selection.reselect(budget=0.5).indices) == 17
    assert len(selection.reselect(budget=1.0).indices) == 20


@pytest.mark.parametrize("strategy", ["max", "mean", "round_robin", "random", "length_matched_random"])
def test_no_strategy_selects_copies(selection, strategy):
    for changes in ({}, {"sample_from_top": 2.0}, {"budget": 60, "budget_unit": "tokens"}):
        kept = selection.reselect(strategy=strategy, **changes).indices
        assert set(kept) <= set(range(20)) and len(set(kept)) == len(kept)


def test_arms_of_a_comparison_leave_copies_out(selection):
    for name in ("random", "length_matched_random", "gist", "whole_pool"):
        rows = rows_of_arm(name, selection.measurements, GISTConfig(budget=15), 0, None)
        assert set(rows) <= set(range(20)), name
    assert (
        len(rows_of_arm("whole_pool", selection.measurements, GISTConfig(drop_pool_duplicates=False), 0, None)) == 32
    )


def test_copies_are_not_scored_for_a_limited_cost():
    with pytest.warns(DuplicateRowsWarning):
        found = chosen(GISTConfig(budget=6, scoring_cost=0.5))
    scored = found.measurements.scored.nonzero().flatten().tolist()
    assert set(scored) <= set(range(20)) and 6 <= len(scored) < 20


@pytest.mark.parametrize("dropped", [True, False])
def test_the_callback_trains_on_no_copy(tmp_path, dropped):
    pool = [*DISTINCT, *[DISTINCT[3]] * 40]
    config = GISTConfig(budget=25, warmup_steps=5, drop_pool_duplicates=dropped)
    callback = GISTDataSelectorCallback(config, as_dataset(TARGETS))
    with pytest.warns(DuplicateRowsWarning):
        trainer, _, _ = train(tmp_path, rows=pool, callback=callback)
    run = callback.run
    warmup = {row for step in range(5) for row in run.sampler.rows_of_step(step)}
    assert len(callback.selection.indices) == (20 if dropped else 25)
    assert (max(warmup | set(callback.selection.indices)) < 20) is dropped


def test_a_stream_gives_the_rows_of_the_whole_pool_without_copies():
    rng = random.Random(0)
    pool = repeated()[:32]
    rng.shuffle(pool)
    unlabelled = next(row for row in pool if row == DISTINCT[3])
    pool.insert(0, {"input_ids": unlabelled["input_ids"], "labels": [-100] * len(unlabelled["labels"])})
    config = GISTConfig(budget=18)
    with pytest.warns(DuplicateRowsWarning):
        whole = chosen(config, pool)
    for size in (5, 16, 64):
        stream = IterableDataset.from_generator(lambda: iter(pool))
        found = select_stream(
            lora_model(), stream, as_dataset(TARGETS), config, data_collator=WithTokenizer(), chunk_rows=size,
            progress=False,
        )  # fmt: skip
        assert found.indices == whole.indices and found.repeated == whole.copies_dropped == 12
        copies = select_stream(
            lora_model(), pool, as_dataset(TARGETS), GISTConfig(budget=33, drop_pool_duplicates=False),
            data_collator=WithTokenizer(), chunk_rows=size, progress=False,
        )  # fmt: skip
        assert len(copies.indices) == 32 and copies.repeated == 0


def test_the_first_copy_that_can_be_selected_is_kept():
    """The first copy has no label and cannot be selected, so that the second one stands for the text."""
    pool = [{"input_ids": DISTINCT[0]["input_ids"], "labels": [-100] * len(DISTINCT[0]["labels"])}, *DISTINCT]
    with pytest.warns(DuplicateRowsWarning, match=r"1 of 21 rows .* \(1 with the same tokens"):
        assert sorted(chosen(GISTConfig(budget=20), pool).indices) == list(range(1, 21))


def test_no_warning_without_copies():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DuplicateRowsWarning)
        found = chosen(pool=DISTINCT)
    assert found.manifest["pool_duplicates"] == {"exact": 0, "same_words": 0} and found.measurements.copy_of is None


def test_what_makes_a_row_another_row():
    ids = [5, 6, 7]
    plain = {"input_ids": ids, "labels": [-100, 6, 7]}
    assert beyond_tokens(plain, ids) == beyond_tokens({"input_ids": ids}, ids) == b""
    others = [
        {"labels": [8, 9]},  # an encoder-decoder's answer
        {"labels": [-100, 6, 8]},
        {"label": 1},
        {"labels": torch.tensor(0)},
        {"pixel_values": np.zeros((2, 2))},
        {"pixel_values": torch.ones(2, 2)},
        {"images": [{"bytes": b"a", "path": None}]},
    ]
    found = [beyond_tokens({"input_ids": ids} | other, ids) for other in others]
    assert len(set(found)) == len(found) and all(found)
    pool = [{"input_ids": ids, "labels": label} for label in (0, 1, 1)]
    assert find_leaks(pool, TARGETS, quiet=True).copies.first.tolist() == [0, 1, 1]


def test_rows_without_words_are_compared_by_their_tokens():
    class Symbols:
        def batch_decode(self, ids, skip_special_tokens):
            return ["…?!."[: len(row)] for row in ids]

    pool = [{"input_ids": [5, 6]}, {"input_ids": [6, 5]}, {"input_ids": [5, 6]}]
    guard = LeakGuard([{"input_ids": [9]}], tokenizer=Symbols())
    leaks = guard.search(pool)
    assert leaks.rows == {"target_dataset": []} and leaks.copies.first.tolist() == [0, 1, 0]


def test_copies_of_left_out_rows_are_left_out_too():
    """So the first of several copies never stands for others while it is left out itself."""
    leaks = find_leaks(repeated(), TARGETS, tokenizer=tokenizer(), quiet=True)
    excluded = excluded_rows(leaks, 34, GISTConfig())
    assert (~excluded).nonzero().flatten().tolist() == list(range(20))
    only_targets = excluded_rows(leaks, 34, GISTConfig(drop_pool_duplicates=False))
    assert only_targets.nonzero().flatten().tolist() == [32, 33]
    only_copies = excluded_rows(leaks, 34, GISTConfig(drop_target_duplicates=False))
    assert only_copies.nonzero().flatten().tolist() == [*range(20, 32), 33]


@pytest.mark.parametrize("seed", range(20))
def test_digests_against_a_plain_loop(seed):
    rng = random.Random(seed)
    keys = [digest(bytes([rng.randrange(1 + seed * 3)])) for _ in range(rng.randint(1, 300))]
    seen: dict[bytes, int] = {}
    expected = [seen.setdefault(key, row) for row, key in enumerate(keys)]
    array = np.array(keys, DIGEST)
    assert first_rows(array).tolist() == expected
    stream, new, at = SeenRows(), [], 0
    while at < len(keys):
        step = rng.randint(1, 40)
        new += stream.add(array[at : at + step]).tolist()
        at += step
    assert new == [row == first for row, first in enumerate(expected)]
    assert sum(map(len, stream.parts)) == len(seen)
    assert all(len(a) > len(b) for a, b in zip(stream.parts, stream.parts[1:], strict=False))
    usable = torch.tensor([rng.random() < 0.7 for _ in keys])
    first_usable: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if usable[row]:
            first_usable.setdefault(key, row)
    kept = first_of_each(usable, torch.tensor(expected, dtype=torch.int32))
    assert kept.nonzero().flatten().tolist() == sorted(first_usable.values())


def test_digests_with_zero_bytes_are_told_apart():
    keys = [b"\0" * 16, b"a" + b"\0" * 15, b"a" + b"\0" * 14 + b"b", b"a\0b" + b"\0" * 13, b"a" + b"\0" * 15]
    assert first_rows(np.array(keys, DIGEST)).tolist() == [0, 1, 2, 3, 1]


def test_a_stream_of_distinct_rows_takes_16_bytes_a_row():
    seen = SeenRows()
    for start in range(0, 50_000, 4096):
        rows = np.array([digest(str(row).encode()) for row in range(start, min(start + 4096, 50_000))], DIGEST)
        assert seen.add(rows).all() and not seen.add(rows).any()
    assert sum(part.nbytes for part in seen.parts) == 16 * 50_000 and len(seen.parts) < 6


def test_without_a_tokenizer_only_tokens_are_compared():
    with pytest.warns(DuplicateRowsWarning, match=r"\(12 with the same tokens, 0 with only the same words"):
        found = chosen(collator=PaddingCollator(), config=GISTConfig(budget=34))
    assert 30 in found.indices and 31 not in found.indices


def test_the_commands_leave_copies_out(tmp_path, capsys):
    """Scoring, its forecast, a stream, and another selection from the scores."""
    save_model(tmp_path / "model")
    rows = chats(44)
    Dataset.from_list([*rows[4:], *[rows[7]] * 20]).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list(rows[:4]).to_json(tmp_path / "targets.jsonl")
    common = ["select", "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "pool.jsonl")]
    common += ["--target_file", str(tmp_path / "targets.jsonl"), "--lora_target_modules", "q_proj,v_proj"]
    common += ["--budget", "38"]
    whole, again = str(tmp_path / "whole"), str(tmp_path / "again")
    assert main([*common, "--output_dir", str(tmp_path / "no"), "--dry_run", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert (counts["candidates"], counts["duplicates"], counts["selected"]) == (60, 20, 38)
    assert main([*common, "--output_dir", whole]) == 0
    assert "repeated rows left out      20" in capsys.readouterr().out
    lines = (tmp_path / "whole" / "selected.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 38
    adapter = ["--adapter_name_or_path", f"{whole}/warmup_adapter"]
    assert main([*common, *adapter, "--streaming", "--output_dir", again]) == 0
    assert "repeated rows left out      20" in capsys.readouterr().out
    assert json.loads((tmp_path / "again" / "stream.json").read_text())["pool_duplicates_dropped"] == 20
    lines = (tmp_path / "again" / "selected.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 38
    off = ["--no-drop_pool_duplicates", "--budget", "60", "--output_dir", str(tmp_path / "off")]
    assert main(["select", "--from_scores", whole, *off]) == 0
    assert len(Selection.load(tmp_path / "off").indices) == 60
    assert "repeated rows kept          20" in capsys.readouterr().out
