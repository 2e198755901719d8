"""Multiple-choice test rows: against a loop over single choices, and what is refused."""

import json
from types import SimpleNamespace

import evaluate
import pytest
import torch

from hf_gist.commands.preparing import Preparer
from hf_gist.commands.testing import sets
from hf_gist.commands.testing.loading import OWN, load_metric
from hf_gist.commands.testing.measured import standard_error
from hf_gist.commands.testing.questions import Questions
from hf_gist.commands.testing.sets import ChoiceSet
from hf_gist.commands.testing.tokens import read_choices
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import read_rows
from hf_gist.gradients.collect import row_losses
from tests.helpers.tiny import PaddingCollator, base_model
from tests.helpers.words import TEMPLATE, chat_tokenizer, tokenizer, user


def assistant(text):
    return {"role": "assistant", "content": text}


def asked(size, shift=0):
    """Rows with two to five choices of one to six words."""
    rows = []
    for i in range(size):
        texts = [
            " ".join(f"w{(i * 7 + j * 13 + k + shift) % 90}" for k in range(1 + (i + 3 * j) % 6))
            for j in range(2 + i % 4)
        ]
        answer = (i + shift) % len(texts)
        messages = [user(f"w{i} w{i + 1}"), assistant(texts[answer])]
        rows.append({"messages": messages, "choices": texts, "answer": answer})
    return rows


def read(tmp_path, rows):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_rows(RowSource(str(path)), "test_file")


def choices_of(tmp_path, rows, words=None, **settings):
    return read_choices(read(tmp_path, rows), Preparer(words or tokenizer(), **({"max_length": 64} | settings)))


def plain_loop(model, words, rows):
    """Log-likelihoods of all tokens of every choice, one at a time, from logits at all positions in fp32."""
    found = []
    for row in rows:
        question = row["messages"][:-1]
        start = len(words.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"])
        own = []
        for text in row["choices"]:
            ids = words.apply_chat_template([*question, assistant(text)], return_dict=True)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            own.append(logits[range(start - 1, len(ids) - 1), ids[start:]])
        found.append(own)
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens_per_batch", [1, 40, 8192])
def test_accuracies_and_losses_are_those_of_a_plain_loop(tmp_path, architecture, side, tokens_per_batch):
    rows = asked(24)
    model = base_model(architecture).eval()
    choices = choices_of(tmp_path, rows)
    assert choices.sizes == [len(row["choices"]) for row in rows]
    expected = plain_loop(model, tokenizer(), rows)
    losses, counts = row_losses(model, choices.rows, PaddingCollator(side), tokens_per_batch)
    flat = [values for own in expected for values in own]
    assert counts.tolist() == [len(values) for values in flat]
    torch.testing.assert_close(losses, torch.stack([-v.mean() for v in flat]).double(), rtol=1e-5, atol=1e-6)
    right = {
        "accuracy_sum": [int(torch.stack([v.sum() for v in own]).argmax()) for own in expected],
        "accuracy_per_token": [int(torch.stack([v.mean() for v in own]).argmax()) for own in expected],
    }
    assert right["accuracy_sum"] != right["accuracy_per_token"]
    found = choices.accuracies(losses, counts)
    for name, predicted in right.items():
        outcomes = [float(a == row["answer"]) for a, row in zip(predicted, rows, strict=True)]
        assert 0 < sum(outcomes) < len(rows)
        assert found[name].rows == outcomes and found[name].value == pytest.approx(sum(outcomes) / len(rows))
        assert found[name].standard_error == pytest.approx(standard_error(outcomes))


def test_the_loss_is_that_of_the_right_choices(tmp_path):
    rows = asked(12, shift=1)
    model = base_model().train()
    choices = choices_of(tmp_path, rows)
    tests = ChoiceSet(choices.rows.select(choices.right), choices)
    found = tests.measure(model, PaddingCollator())
    assert list(found) == ["loss", "accuracy_sum", "accuracy_per_token"] and model.training
    losses = [
        -own[row["answer"]].mean().item()
        for own, row in zip(plain_loop(model.eval(), tokenizer(), rows), rows, strict=True)
    ]
    assert found["loss"].rows == pytest.approx(losses, rel=1e-5)
    alone, _ = row_losses(model, tests.rows, PaddingCollator())
    assert found["loss"].value == pytest.approx(alone.mean().item(), rel=1e-6)
    assert found["loss"].standard_error == pytest.approx(standard_error(losses), rel=1e-4)


def test_a_model_that_diverged_answers_nothing(tmp_path):
    choices = choices_of(tmp_path, asked(4))
    losses = torch.ones(len(choices.rows), dtype=torch.float64)
    losses[0] = float("nan")
    losses[choices.sizes[0] + 1] = float("inf")
    assert choices.predictions(losses) == [-1, -1, 0, 0]


def forms(row):
    """The same row in every format that has an answer."""
    question, right = row["messages"][0]["content"], row["messages"][1]["content"]
    rest = {"choices": row["choices"], "answer": row["answer"]}
    roles = {"user": "human", "assistant": "gpt"}
    turns = [{"from": roles[m["role"]], "value": m["content"]} for m in row["messages"]]
    return {
        "messages": row,
        "conversations": rest | {"conversations": turns},
        "completion of messages": rest | {"prompt": row["messages"][:1], "completion": row["messages"][1:]},
        "text": rest | {"prompt": f"user {question} assistant ", "completion": right},
    }


@pytest.mark.parametrize("form", ["messages", "conversations", "completion of messages", "text"])
def test_rows_of_every_format_have_the_same_choices(tmp_path, form):
    rows = asked(6)
    expected = choices_of(tmp_path, rows)
    found = choices_of(tmp_path, [forms(row)[form] for row in rows])
    assert found.rows["input_ids"] == expected.rows["input_ids"] and found.rows["labels"] == expected.rows["labels"]
    assert found.right == expected.right


def test_only_the_last_answer_of_a_conversation_counts(tmp_path):
    row = asked(1)[0]
    longer = row | {"messages": [user("w5"), assistant("w6 w7"), *row["messages"]]}
    short, long = choices_of(tmp_path, [row]), choices_of(tmp_path, [longer])
    for one, other in zip(short.rows["labels"], long.rows["labels"], strict=True):
        assert [label for label in one if label != -100] == [label for label in other if label != -100]


BAD = [
    ({"answer": 2}, "`answer` must be from 0 to 1, the numbers of its choices, got 2"),
    ({"answer": -1}, "got -1"),
    ({"answer": True}, "`answer` must be the number of the right choice, counted from 0, got True"),
    ({"answer": "0"}, "got '0'"),
    ({"answer": 0.5}, "got 0.5"),
    ({"answer": None}, "got None"),
    ({"choices": "w1"}, "`choices` must be a list of non-empty texts, got 'w1'"),
    ({"choices": {"text": ["w1"]}}, "`choices` must be a list of non-empty texts"),
    ({"choices": ["w1", ""]}, "`choices` must be a list of non-empty texts"),
    ({"choices": ["w1", " \n"]}, "`choices` must be a list of non-empty texts"),
    ({"choices": ["w1", 2]}, "`choices` must be a list of non-empty texts"),
    ({"choices": ["w1", None]}, "`choices` must be a list of non-empty texts"),
    ({"choices": []}, "`choices` needs at least two texts"),
    ({"choices": ["w1"]}, "`choices` needs at least two texts, got ['w1']"),
    ({"choices": ["w1", "w1 "]}, "`choices` has 'w1' twice"),
    ({"choices": None}, "it has no `choices`, but other rows of the file have"),
    ({"choices": ["w2", "w1"]}, "its answer is 'w1', but choice 0, which `answer` says is right, is 'w2'"),
    ({"messages": [user("w9")]}, "`messages` must end with one turn of the assistant"),
    (
        {"messages": [user("w9"), assistant("w3"), assistant("w1")]},
        "`messages` must end with one turn of the assistant",
    ),
    ({"messages": [user("w9"), assistant("")]}, "its answer must be a text, got ''"),
    ({"choices": ["w1", " ".join(["w4"] * 80)]}, "more than --max_length, which is 64"),
    # words that the tokenizer does not know
    ({"choices": ["w1", "one", "two"]}, "choices 1 and 2 have the same tokens"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_bad_rows_are_named(tmp_path, change, reason):
    good = {"messages": [user("w9"), assistant("w1")], "choices": ["w1", "w2"], "answer": 0}
    rows = [good, good | change, good]
    with pytest.raises(ValueError, match="1 of 3 rows cannot be used") as error:
        choices_of(tmp_path, rows)
    assert "test_file test.jsonl, line 2: " in str(error.value) and reason in str(error.value)
    left = choices_of(tmp_path, rows, skip_bad_rows=True)
    assert left.sizes == [2, 2] and left.answers == [0, 0] and len(left.rows) == 4


def test_bad_rows_alone_are_an_error_even_if_they_are_left_out(tmp_path):
    row = {"messages": [user("w9"), assistant("w1")], "choices": ["w1", "w2"], "answer": 3}
    with pytest.raises(ValueError, match="2 of 2 rows cannot be used"):
        choices_of(tmp_path, [row, row], skip_bad_rows=True)


def test_choices_without_an_answer_are_named(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in asked(3)]
    with pytest.raises(ValueError, match="test_file test.jsonl, line 1 has `choices` but no `answer`"):
        choices_of(tmp_path, rows)


def test_a_template_that_drops_an_answer_is_named(tmp_path):
    drops = TEMPLATE.replace("{{ m['content'] }}{{ eos", "{{ m['content'] if m['content'] != 'w2' else 'w3' }}{{ eos")
    row = {"messages": [user("w9"), assistant("w1")], "choices": ["w1", "w2"], "answer": 0}
    with pytest.raises(ValueError, match="test.jsonl, line 2, choice 1: 'w2' is not among its labelled tokens"):
        choices_of(tmp_path, [row | {"choices": ["w1", "w4"]}, row], tokenizer(drops))


def merging(*pairs):
    """A tokenizer of characters, with tokens for some pairs of them."""
    words = chat_tokenizer()
    inner = json.loads(words.backend_tokenizer.to_str())
    for one, other in pairs:
        inner["model"]["vocab"][one + other] = len(inner["model"]["vocab"])
        inner["model"]["merges"].append([one, other])
    words._tokenizer = type(words.backend_tokenizer).from_str(json.dumps(inner))
    return words


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (["no", "yes"], "the tokens of the question are others with choice 1 than with choice 0"),
        (["yes", "you"], "it changes the tokens of the question"),
    ],
)
def test_a_choice_that_changes_the_tokens_of_the_question_is_named(tmp_path, choices, reason):
    row = {"prompt": "ask x", "completion": choices[0], "choices": choices, "answer": 0}
    assert choices_of(tmp_path, [row], merging()).sizes == [2]
    with pytest.raises(ValueError, match=f"test_file test.jsonl, line 1: .*{reason}"):
        choices_of(tmp_path, [row], merging(("x", "y")))


def test_the_metric_of_the_package_is_solved_by_hand():
    metric = evaluate.load(str(OWN / "row_accuracy"), keep_in_memory=True)
    found = metric.compute(predictions=[0, 1, 2, 2, -1], references=[0, 1, 2, 3, 1])
    assert found == {"accuracy": 0.6, "standard_error": pytest.approx(standard_error([1, 1, 1, 0, 0]))}
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0, "standard_error": None}
    assert "Examples" in metric.inputs_description and "@misc" in metric.citation


def test_a_metric_that_is_no_mean_over_rows_has_no_outcomes(tmp_path):
    raw = read(tmp_path, asked(4))

    def longest(predictions, references):
        return {"text": "-", "longest": max(len(text) for text in predictions), "other": 1}

    questions = Questions(raw.rows, longest, 3, raw.where)
    found = questions.measured(["a", "bb", "ccc", "a"])
    assert questions.name == "longest" and (found.value, found.standard_error, found.rows) == (3.0, None, None)
    found = questions.measured(["aa", "bb", "cc", "dd"])
    assert found.rows == [2.0] * 4 and found.standard_error == 0
    with pytest.raises(ValueError, match="returns no number"):
        _ = Questions(raw.rows, lambda *_: {"text": "-"}, 3, raw.where).name


def test_a_metric_without_a_value_for_one_answer_has_no_outcomes(tmp_path):
    raw = read(tmp_path, asked(4))

    def of_whole_set(predictions, references):
        return {"share": sum(map(len, predictions)) / sum(map(len, predictions[:1] + predictions))}

    questions = Questions(raw.rows, of_whole_set, 3, raw.where)
    found = questions.measured(["", "bb", "cc", "dd"])
    assert (found.value, found.standard_error, found.rows) == (1.0, None, None)


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_reference_that_the_metric_cannot_read_is_named_with_its_row(tmp_path, bad):
    raw = read(tmp_path, asked(4))

    def picky(predictions, references):
        if any(text == answers[bad] for text in references):
            raise ValueError("No number.")
        return {"same": 1.0}

    answers = Questions(raw.rows, lambda *_: {"same": 1.0}, 3, raw.where).references
    assert len(set(answers)) == 4
    message = (
        f"test_file test.jsonl, line {bad + 1}: the metric cannot read its answer '{answers[bad]}': No number. Cor"
    )
    with pytest.raises(ValueError, match=message):
        Questions(raw.rows, picky, 3, raw.where)


def test_an_installed_package_has_no_metrics_of_the_recipes(tmp_path):
    with pytest.raises(ValueError, match="`--metric a=b` is not a folder that contains a metric; give the path"):
        load_metric("b", "--metric a=b", tmp_path / "nowhere")


def test_prompts_are_those_of_the_template(tmp_path):
    raw = read(tmp_path, asked(3))
    questions = Questions(raw.rows, lambda *_: {"same": 1.0}, 3, raw.where)
    prompts = questions.prompts(tokenizer(), 64)
    assert [tokenizer().decode(ids) for ids in prompts] == [f"user w{i} w{i + 1} assistant" for i in range(3)]
    # a template that renders content parts alone
    parts = TEMPLATE.replace("{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}")
    assert questions.prompts(tokenizer(parts), 64) == prompts
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        questions.prompts(tokenizer(None), 64)
    with pytest.raises(ValueError, match="Lower `max_new_tokens` or leave the row out"):
        questions.prompts(tokenizer(), 6)


@pytest.mark.parametrize(
    "change",
    [{"tools": [{"name": "f"}]}, {"messages": [user("w1")]}, {"messages": None, "prompt": "w1", "completion": ""}],
)
def test_questions_that_cannot_be_asked_are_named(tmp_path, change):
    rows = asked(2)
    raw = read(tmp_path, [rows[0], rows[1] | change])
    with pytest.raises(ValueError, match="test_file test.jsonl, line 2 has"):
        Questions(raw.rows, lambda *_: {"same": 1.0}, 3, raw.where)


@pytest.mark.parametrize("choices", [True, False])
def test_rows_that_are_left_out_are_no_questions_either(tmp_path, choices, monkeypatch):
    rows = asked(5)
    rows[2]["messages"] = rows[2]["messages"][:1]
    if not choices:
        rows = [{"messages": row["messages"]} for row in rows]
    monkeypatch.setattr(sets, "computed_by", lambda _: lambda predictions, references: {"same": 1.0})
    space = SimpleNamespace(preparer=Preparer(tokenizer(), 64, skip_bad_rows=True), tokenizer=tokenizer())
    found = sets.read_test(read(tmp_path, rows), space, "metric", 3, 64)
    assert len(found.rows) == len(found.prompts) == len(found.questions.references) == 4
    assert found.questions.references == [row["messages"][1]["content"] for row in rows if len(row["messages"]) > 1]
