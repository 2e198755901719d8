"""Rows that cannot be prepared are all counted and named, or left out."""

import pytest
from datasets import Dataset

from hf_gist.data.preparation.messages import RowError, conversation, tools_of
from hf_gist.data.preparation.run import prepare
from tests.helpers.words import TEMPLATE, chats, tokenizer


USER = {"role": "user", "content": "w1"}
ANSWER = {"role": "assistant", "content": "w2"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", "`messages` is text that is no JSON"),
        ('{"role": "user"}', "`messages` must be a list, and is dict"),
        (7, "`messages` must be a list, and is int"),
        ([], "a conversation without a message"),
        ([USER, "w2"], "message 2 is of the type 'str', not a role with a content"),
        ([USER, {"content": "w2"}], "message 2 has no role"),
        ([USER, {"role": "asistant", "content": "w2"}], "message 2 has the role 'asistant', which the chat template"),
        ([USER, {"role": "assistant", "content": None}], r"message 2 \(assistant\) has no content"),
        (
            [{"role": "user", "content": 7}, ANSWER],
            r"message 1 \(user\) has a value of the type 'int' as its content, not a text",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}, ANSWER], "has a part of the type 'image'"),
    ],
)
def test_reasons(value, reason):
    with pytest.raises(RowError, match=reason):
        conversation(value, "messages")


def test_what_is_no_fault():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w3"}}]}
    assert conversation([USER, call], "messages")[1]["tool_calls"]
    assert conversation([{"role": "critic", "content": "w1"}], "messages", "{% if m.role == 'critic' %}")
    assert tools_of(None) is None and tools_of("") is None and tools_of('[{"name": "w1"}]') == [{"name": "w1"}]
    with pytest.raises(RowError, match="`tools` is text that is no JSON"):
        tools_of("w1")


def in_parts(role, text):
    """A turn with content parts."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


EMPTY = {"role": "assistant", "content": " \n"}
THINKS = {"role": "assistant", "content": "", "reasoning_content": "w3"}


def all_answers_are_marked():
    """Whether this transformers marks the answers after one without a token; before 5.24, it ends the mask there."""
    turns = [USER, EMPTY, USER, ANSWER]
    marks = tokenizer().apply_chat_template(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    return any(marks["assistant_masks"])


NEEDS_ALL_ANSWERS = pytest.mark.skipif(
    not all_answers_are_marked(), reason="this transformers marks no answer after an empty one"
)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER, EMPTY]}, "every answer in `messages` is empty, so there is nothing to learn but to end"),
        ({"messages": [USER, EMPTY, USER, EMPTY]}, "every answer in `messages` is empty"),
        ({"messages": [USER, EMPTY | {"weight": 1.0}]}, "every answer in `messages` is empty"),
        ({"messages": [in_parts("user", "w1"), in_parts("assistant", "")]}, "every answer in `messages` is empty"),
        ({"prompt": [USER], "completion": [EMPTY]}, "every answer in `completion` is empty"),
        ({"prompt": "w1", "completion": " "}, "`completion` is empty"),
        ({"text": "\n"}, "`text` is empty"),
        pytest.param({"messages": [USER, EMPTY, USER, ANSWER]}, None, marks=NEEDS_ALL_ANSWERS),
        ({"messages": [USER, THINKS]}, None),
        ({"prompt": "", "completion": "w2"}, None),
    ],
)
def test_rows_with_empty_answers_only_are_bad(row, reason):
    pytest.importorskip("trl", reason="TRL is not installed")
    rows = Dataset.from_list([row])
    if reason is None:
        assert prepare(rows, tokenizer(), 64, "pool").bad.reasons == {}
        return
    with pytest.raises(ValueError, match=f"1 of 1 rows cannot be used:\\n  pool, row 1: {reason}"):
        prepare(rows, tokenizer(), 64, "pool")
    assert list(prepare(rows, tokenizer(), 64, "pool", skip_bad_rows=True).bad.reasons) == [0]


@pytest.fixture
def mixed():
    """Six conversations, three of which cannot be used."""
    pytest.importorskip("trl", reason="TRL is not installed")
    rows = [{"messages": row["messages"], "tools": None} for row in chats(6)]
    rows[1]["messages"] = [USER]
    rows[3]["tools"] = "w1"
    # the template refuses it
    rows[4]["messages"] = [{"role": "system", "content": "w1"}, USER, ANSWER]
    return Dataset.from_list(rows)


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + TEMPLATE


def test_all_bad_rows_are_counted_and_the_first_three_named(mixed):
    with pytest.raises(ValueError) as error:
        prepare(mixed, tokenizer(REFUSING), None, "pool", where=lambda row: f"line {row + 1}")
    first, *shown = str(error.value).splitlines()
    assert first == "3 of 6 rows cannot be used:"
    assert shown[0] == "  line 2: `messages` has no turn of the assistant, so there is nothing to learn"
    assert shown[1].startswith("  line 4: `tools` is text that is no JSON")
    assert shown[2] == "  line 5: the chat template refuses it: no system prompt"
    assert "--skip_bad_rows" in shown[3]


def test_bad_rows_that_are_left_out_keep_their_place_without_a_label(mixed):
    prepared = prepare(mixed, tokenizer(REFUSING), None, "pool", skip_bad_rows=True)
    assert len(prepared.rows) == 6 and len(prepared.usable) == 3
    unlabelled = [row for row in range(6) if set(prepared.rows[row]["labels"]) == {-100}]
    assert unlabelled == [1, 3, 4] and prepared.bad.kept() == [0, 2, 5]
    assert prepared.bad.report()[0]["row"] == "pool, row 2"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "w1"}, {"text": None}], "pool, row 2: it has no `text`"),
        (
            [{"prompt": "w1", "completion": 7}],
            "pool, row 1: it has a value of the type 'int' in `completion`, not a text",
        ),
        ([{"prompt": "w1", "completion": None}], "pool, row 1: it has no `completion`"),
        ([{"prompt": [USER], "completion": "w1"}], "`prompt` is messages and `completion` is text; both must be"),
    ],
)
def test_wrong_values_of_other_formats(rows, reason):
    pytest.importorskip("trl", reason="TRL is not installed")
    with pytest.raises(ValueError, match=reason):
        prepare(Dataset.from_list(rows), tokenizer(), None, "pool")
