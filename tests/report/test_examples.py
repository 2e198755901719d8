"""Example rows: which rows, how much of their text is written, and which rows of the pool are read."""

import json

import pytest
import torch
from datasets import Dataset
from pyarrow import parquet
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.commands.main import main
from hf_gist.report import keep_examples, page, read_examples
from hf_gist.report.examples import (
    CHARACTERS_KEPT,
    GROUPS_SHOWN,
    NO_ROWS,
    NO_TEXT,
    NO_TOKENIZER,
    ROWS_PER_END,
    TOKENS_DECODED,
    example_groups,
    text_spans,
)
from hf_gist.report.parts import TextSpan
from hf_gist.training.loading import padding_collator
from tests.helpers.reports import Page, selection_of
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, patterned_rows, token_rows
from tests.helpers.words import chats, save_model, tokenizer


pytestmark = pytest.mark.figures


class Counting(list):
    """Rows that remember which of them were read."""

    def __init__(self, rows):
        super().__init__(rows)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def page_text(folder, selection):
    return Page(page.render(page.selection_sections(selection, folder), {}, [])).text


# ---- Which rows ----


@pytest.mark.parametrize("strategy", ["max", "mean", "round_robin"])
def test_best_and_worst_are_those_of_a_plain_loop(strategy):
    selection = selection_of(columns={"task": list("aaabbbcccddd")}, target_group_column="task", strategy=strategy)
    groups = example_groups(selection)
    assert {group.name for group in groups} == set("abcd")
    kept = set(selection.indices)
    for group in groups:
        own = [
            row
            for row in range(400)
            if torch.isfinite(selection.scores[row]) and selection.group_names[selection.best_group[row]] == group.name
        ]
        by_score = sorted(own, key=lambda row: (-float(selection.scores[row]), row))
        assert group.best == by_score[:ROWS_PER_END] and group.worst == by_score[::-1][:ROWS_PER_END]
        assert group.size == len(own) and group.kept == len(kept & set(own))
        assert group.targets == ["aaabbbcccddd".index(group.name) + i for i in range(2)]
    assert [group.kept for group in groups] == sorted((group.kept for group in groups), reverse=True)


def test_unselectable_rows_are_not_shown_and_no_row_is_shown_twice():
    selection = selection_of(12, 2, leaked=[5], budget=2)
    shown = [row for group in example_groups(selection) for row in group.best + group.worst]
    assert len(shown) == len(set(shown)) and not {0, 1, 5} & set(shown)


def test_at_most_eight_groups_and_one_for_a_random_draw():
    assert len(example_groups(selection_of(2000, 100))) == GROUPS_SHOWN
    drawn = selection_of(strategy="random")
    assert [group.best for group in example_groups(drawn)] == [drawn.indices[: 2 * ROWS_PER_END]]


def test_unusable_target_rows_keep_the_numbers_of_the_others(tmp_path):
    targets = token_rows(4, seed=2)
    targets[1] = targets[1] | {"labels": [-100] * len(targets[1]["labels"])}
    found = select(
        lora_model(), token_rows(20), targets, GISTConfig(budget=4), data_collator=PaddingCollator(), progress=False
    )
    assert found.group_names == ["0", "2", "3"]
    found.save(tmp_path)
    assert Selection.load(tmp_path).group_names == ["0", "2", "3"]
    assert found.measurements.target_numbers == [0, 2, 3]


# ---- Text ----


def test_prompt_and_answer_are_separate_spans():
    words = tokenizer()
    ids = words("w1 w2 w3 w4 w5")["input_ids"]
    expected = [TextSpan("prompt", "w1 w2"), TextSpan("answer", "w3 w4 w5")]
    assert text_spans({"input_ids": ids, "labels": [-100, -100, *ids[2:]]}, words) == expected
    assert (
        text_spans({"input_ids": torch.tensor(ids), "labels": torch.tensor([-100, -100, *ids[2:]])}, words) == expected
    )
    assert text_spans({"input_ids": ids, "completion_mask": [0, 0, 1, 1, 1]}, words) == expected
    both = {"completion_mask": [0, 1, 1, 1, 1], "assistant_masks": [1, 0, 1, 1, 1]}
    assert text_spans({"input_ids": ids, **both}, words) == expected
    turns = text_spans({"input_ids": ids, "labels": [-100, ids[1], -100, -100, ids[4]]}, words)
    assert [span.kind for span in turns] == ["prompt", "answer", "prompt", "answer"]


def test_labels_that_are_not_input_tokens():
    words = tokenizer()
    ids, labels = words("w1 w2")["input_ids"], words("w7 w8")["input_ids"]
    assert text_spans({"input_ids": ids, "labels": [*labels, -100]}, words)[1] == TextSpan("answer", "w7 w8")
    assert text_spans({"input_ids": ids, "labels": labels}, words)[1] == TextSpan("answer", "w7 w8")
    assert text_spans({"input_ids": ids, "labels": 2}, words)[1] == TextSpan("answer", "label 2")
    assert text_spans({"input_ids": ids, "labels": [0.5, 1.0]}, words)[1] == TextSpan("answer", "label [0.5, 1.0]")
    assert text_spans({"input_ids": ids}, words) == [TextSpan("text", "w1 w2")]


def test_raw_rows_of_every_format():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    expected = [TextSpan("prompt", "q"), TextSpan("answer", "a")]
    assert text_spans({"messages": chat}) == text_spans({"prompt": "q", "completion": "a"}) == expected
    assert text_spans({"prompt": chat[:1], "completion": chat[1:]}) == expected
    assert text_spans({"text": "t"}) == [TextSpan("text", "t")]
    for row in ({"input_ids": [1]}, {"other": 1}, "no row", {"text": None}, {"messages": ["no turn"]}):
        assert text_spans(row) == []


def test_long_rows_are_cut_and_only_their_beginning_is_decoded():
    class Slow:
        def decode(self, ids, skip_special_tokens):
            assert len(ids) <= TOKENS_DECODED
            return "long " * 1000

    ids = [3] * 100_000
    spans = text_spans({"input_ids": ids, "labels": [-100] * 50_000 + ids[50_000:]}, Slow())
    assert [span.kind for span in spans] == ["prompt", "answer"]
    assert all(len(span.text) == CHARACTERS_KEPT and span.cut for span in spans)
    assert len(text_spans({"messages": [{"role": "user", "content": "x"}] * 1000})) < 10


# ---- The file ----


def test_only_the_shown_rows_are_read(tmp_path):
    selection = selection_of()
    selection.save(tmp_path)
    pool, targets = (Counting({"text": f"{name} {i}"} for i in range(size)) for name, size in (("p", 400), ("t", 12)))
    keep_examples(tmp_path, selection, pool, targets)
    groups = example_groups(selection)
    assert sorted(pool.read) == sorted(row for group in groups for row in group.best + group.worst)
    assert sorted(targets.read) == sorted(row for group in groups for row in group.targets)
    found = page_text(tmp_path, selection)
    for group in groups:
        assert all(f"p {row}" in found for row in group.best + group.worst)
        assert all(f"t {row}" in found for row in group.targets)


def test_texts_of_other_scores_are_not_shown(tmp_path):
    selection, other = selection_of(), selection_of(401)
    keep_examples(tmp_path, other, [{"text": "stale"}] * 401, [{"text": "stale"}] * 12)
    selection.save(tmp_path)
    found = page_text(tmp_path, selection)
    assert "stale" not in found and "belongs to other scores" in found


@pytest.mark.parametrize(
    ("pool", "reason"),
    [(token_rows(400), NO_TOKENIZER), ([{"pixels": 1}] * 400, NO_TEXT), (None, NO_ROWS)],
)
def test_the_page_has_the_reason_for_missing_text(tmp_path, pool, reason):
    selection = selection_of()
    selection.save(tmp_path)
    keep_examples(tmp_path, selection, pool, None)
    assert reason in read_examples(tmp_path, selection).missing and reason in page_text(tmp_path, selection)
    assert "row " in page_text(tmp_path, selection)


# ---- In commands and trainings ----


def test_a_later_push_deletes_the_text_before_the_upload(tmp_path, monkeypatch):
    uploaded = []

    def upload(trainer, *args, **kwargs):
        uploaded.append(
            {path.name: path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".html")}
        )

    monkeypatch.setattr(Trainer, "push_to_hub", upload)
    trainer, selection = trained(tmp_path)
    before = read_examples(tmp_path / "gist", selection)
    texts = [spans[0].text for spans in before.rows.values()]
    assert all(text in (tmp_path / "report.html").read_text() for text in texts)
    columns = parquet.read_schema(tmp_path / "gist" / "targets.parquet").names
    trainer.push_to_hub()
    assert "text" in columns
    assert parquet.read_schema(tmp_path / "gist" / "targets.parquet").names == ["__row__"]
    assert len(uploaded) == 1 and "report.html" in uploaded[0] and "examples.json" in uploaded[0]
    assert not any(text in held for text in texts for held in uploaded[0].values())
    assert "because `push_to_hub` uploads this folder" in uploaded[0]["examples.json"]


def trained(folder, **changes):
    pool, words = as_dataset(patterned_rows(64)), tokenizer()
    config = GISTConfig(budget=8, warmup_ratio=0.25, source_column="source")
    callback = GISTDataSelectorCallback(
        config,
        target_dataset=as_dataset([row | {"text": f"note {i}"} for i, row in enumerate(patterned_rows(4, seed=9))]),
        train_dataset=pool,
    )
    args = TrainingArguments(
        str(folder), num_train_epochs=2, per_device_train_batch_size=8, report_to="none", save_strategy="no",
        use_cpu=True, **changes,
    )  # fmt: skip
    trainer = Trainer(
        model=lora_model(), args=args, train_dataset=pool, data_collator=padding_collator(words), callbacks=[callback]
    )
    trainer.train()
    return trainer, callback.selection


def test_a_training_with_the_callback_leaves_a_report(tmp_path, capsys):
    _, selection = trained(tmp_path, disable_tqdm=True)
    assert "report" not in capsys.readouterr().out
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "kept 8 of 64 rows" in text and (tmp_path / "gist" / "scores.png").is_file()
    row = patterned_rows(64)[example_groups(selection)[0].best[0]]
    assert tokenizer().decode(row["input_ids"][2:]) in text


def test_no_text_is_written_to_a_folder_that_is_uploaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda *args, **kwargs: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *args, **kwargs: None)
    _, selection = trained(tmp_path, push_to_hub=True, hub_token="none")
    assert parquet.read_schema(tmp_path / "gist" / "targets.parquet").names == ["__row__"]
    assert Selection.load(tmp_path / "gist").indices == selection.indices
    values = json.loads((tmp_path / "gist" / "examples.json").read_text())
    assert not any(values["rows"].values()) and not any(values["targets"].values())
    assert "because `push_to_hub` uploads this folder" in page_text(tmp_path / "gist", selection)


def test_reselecting_reuses_known_texts_and_reads_the_others_from_the_pool(tmp_path):
    save_model(tmp_path / "model")
    Dataset.from_list(chats(80)).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list([row for row in chats(16) if row["source"] == "family1"]).to_json(tmp_path / "targets.jsonl")
    flags = ["select", "--model_name_or_path", str(tmp_path / "model"), "--train_file", str(tmp_path / "pool.jsonl")]
    flags += ["--target_file", str(tmp_path / "targets.jsonl"), "--output_dir", str(tmp_path / "first")]
    assert (
        main([*flags, "--per_device_train_batch_size", "8", "--lora_target_modules", "q_proj", "--budget", "8"]) == 0
    )
    first = Selection.load(tmp_path / "first")
    texts = read_examples(tmp_path / "first", first)
    assert all(texts.rows.values()) and all(texts.targets.values()) and not texts.missing
    again = ["select", "--from_scores", str(tmp_path / "first"), "--budget", "4"]
    assert main([*again, "--output_dir", str(tmp_path / "second")]) == 0
    second = read_examples(tmp_path / "second", Selection.load(tmp_path / "second"))
    assert all(second.targets[n] == texts.targets[n] for n in second.targets.keys() & texts.targets.keys())
    assert all(second.rows[n] == texts.rows[n] for n in second.rows.keys() & texts.rows.keys())
    more = ["--strategy", "round_robin", "--train_file", str(tmp_path / "pool.jsonl")]
    assert main([*again, *more, "--output_dir", str(tmp_path / "third")]) == 0
    assert all(read_examples(tmp_path / "third", Selection.load(tmp_path / "third")).rows.values())
    assert (tmp_path / "third" / "report.html").is_file()
