"""The embedded demo: its pool, its tokenizer, and one run of the whole story in miniature."""

import json
import random
import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hf_gist import Selection
from hf_gist.commands.demo import DemoResult, DemoSettings, run_demo
from hf_gist.commands.demo.model import ModelSizes, train_tokenizer
from hf_gist.commands.demo.printing import verdict
from hf_gist.commands.demo.result import GIST, RANDOM, UNTRAINED, WHOLE
from hf_gist.commands.demo.run import as_dataset, share_by_length
from hf_gist.commands.demo.tasks import (
    NEIGHBOURS,
    TARGET_TASK,
    TASKS,
    DataSizes,
    Row,
    distinct_rows,
    equal_parts,
    make_data,
    reading_text,
)
from hf_gist.commands.demo.training import quiet_and_small
from hf_gist.data.preparation.run import tokenize
from hf_gist.data.rows import IGNORE_INDEX


SMALL = DataSizes(reading=240, pool=240, target_share=0.1, targets=8, test=16)
MINIATURE = DemoSettings(
    data=SMALL,
    model=ModelSizes(vocabulary=320, hidden=32, layers=2, heads=2, block=64, epochs=1),
    budget=0.1,
    passes=2,
)


@pytest.fixture(scope="module")
def data():
    return make_data(SMALL, seed=1)


@pytest.fixture(scope="module")
def tokenizer(data):
    return train_tokenizer(data.reading, 320)


# ---- The pool ----


def test_default_pool_is_large_and_its_sets_share_no_question():
    sizes = DataSizes()
    made = make_data(sizes, seed=42)
    counts = Counter(row.task for row in made.pool)
    assert len(made.pool) == sizes.pool >= 4000
    assert counts.keys() == TASKS.keys() and len(counts) >= 6
    assert counts[TARGET_TASK] == round(sizes.target_share * sizes.pool)
    assert len(made.reading) == sizes.reading
    assert {row.task for row in made.targets + made.test} == {TARGET_TASK}
    prompts = [row.prompt for row in made.pool + made.targets + made.test]
    prompts += [text.split("\n")[0] for text in made.reading]
    assert len(set(prompts)) == len(prompts) == sizes.pool + sizes.targets + sizes.test + sizes.reading


def test_same_seed_same_rows():
    assert make_data(SMALL, 5) == make_data(SMALL, 5)
    assert make_data(SMALL, 5) != make_data(SMALL, 6)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_a_question_with_an_answer_on_one_line(task):
    for row in distinct_rows(task, 50, random.Random(0)):
        assert row.prompt and row.answer and "\n" not in row.prompt + row.answer
        assert [message["role"] for message in row.messages()] == ["user", "assistant"]


@pytest.mark.parametrize("task", [TARGET_TASK, *NEIGHBOURS])
def test_sums_are_right(task):
    for row in distinct_rows(task, 50, random.Random(0)):
        sums = re.findall(r"(\d+) ([*+-]) (\d+) = (\d+)", row.answer)
        assert len(sums) == 2
        for left, sign, right, result in sums:
            left, right = int(left), int(right)
            assert {"*": left * right, "+": left + right, "-": left - right}[sign] == int(result)
        assert row.answer.endswith(f"The answer is {sums[-1][-1]}.")


def test_asking_for_too_many_rows_names_the_task(monkeypatch):
    monkeypatch.setitem(TASKS, "calendar", lambda rng: ("always the same question", "", "answer"))
    with pytest.raises(ValueError, match="'calendar'"):
        distinct_rows("calendar", 2, random.Random(0))


def test_the_base_model_reads_results_but_no_working():
    row = Row("change", "Which?", "Because so.", "The answer is 4.")
    assert row.answer == "Because so. The answer is 4."
    assert reading_text([row]) == ["Which?\nThe answer is 4."]
    assert Row("sort", "Which?", "", "4 5").answer == "4 5"


def test_equal_parts_add_up():
    assert equal_parts(10, ["a", "b", "c"]) == {"a": 4, "b": 3, "c": 3}


# ---- The tokenizer ----


def test_tokenizer_round_trip_and_single_digits(tokenizer):
    text = "Mia buys 12 pens."
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(token.lstrip("Ġ") in "0123456789" for token in tokenizer.tokenize("1234567890"))


def test_loss_is_on_the_answer_and_its_end(tokenizer, data):
    row = data.targets[0]
    tokens = tokenize(as_dataset([row]), tokenizer, None, "targets")[0]
    labelled = [label for label in tokens["labels"] if label != IGNORE_INDEX]
    assert tokenizer.decode(labelled) == row.answer + tokenizer.eos_token


def test_length_does_not_give_the_target_away():
    made = make_data(DataSizes(), seed=42)
    words = train_tokenizer([*made.reading, *(row.answer for row in made.pool)], 600)
    pool, targets = (tokenize(as_dataset(rows), words, None, "rows") for rows in (made.pool, made.targets))
    assert share_by_length(pool, targets) < 0.4


# ---- The story ----


@pytest.mark.figures
def test_miniature_run_leaves_everything_that_it_names(tmp_path, capsys):
    folder = tmp_path / "demo"
    result = run_demo(folder, seed=3, settings=MINIATURE)
    told = capsys.readouterr().out

    assert result.losses.keys() == {GIST, RANDOM, WHOLE, UNTRAINED}
    assert all(torch.isfinite(torch.tensor(loss)) for loss in result.losses.values())
    assert result.rows == {GIST: 24, RANDOM: 24, WHOLE: 240}
    # one warm-up step of 16 rows (5 % of 240, rounded up), two passes of two steps
    assert result.steps == {GIST: 5, RANDOM: 5, WHOLE: 15}
    assert result.kept == 24 and result.hidden == 24 and 0 <= result.found <= 24

    selection = Selection.load(folder / "gist")
    tasks = [json.loads(line)["task"] for line in (folder / "pool.jsonl").read_text().splitlines()]
    assert sum(tasks[i] == TARGET_TASK for i in selection.indices) == result.found
    assert json.loads((folder / "demo.json").read_text())["losses"] == result.losses
    assert {"spectrum.png", "scores.png"} <= {path.name for path in (folder / "gist").glob("*.png")}
    assert str(folder / "report.html") in told and (folder / "report.html").is_file()
    AutoModelForCausalLM.from_pretrained(folder / "base_model")
    assert AutoTokenizer.from_pretrained(folder / "base_model").chat_template
    for number in (*result.losses.values(), *result.seconds.values()):
        assert f"{number:.4f}" in told or f"{number:.1f}" in told
    # one flag a line
    calls = " ".join(told.replace("\\\n", "").split())
    for command in ("hf-gist select --from_scores", "hf-gist select --model_name_or_path"):
        assert command in calls
    # with the pool, so that the command writes its rows
    assert calls.count(f"--train_file {folder}/pool.jsonl") == 2


def test_verdict_tells_the_truth_both_ways():
    result = DemoResult(losses={GIST: 1.0, RANDOM: 1.5, WHOLE: 0.75})
    assert "lower target loss than X: by 0.5000" in verdict(result, RANDOM, "X")
    assert "did NOT" in verdict(result, WHOLE, "X") and "0.2500 higher" in verdict(result, WHOLE, "X")


def test_quietness_ends_with_the_demo():
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    with pytest.raises(KeyError), quiet_and_small():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert logging.get_verbosity() == verbosity and torch.get_num_threads() == threads
    assert logging.is_progress_bar_enabled()
