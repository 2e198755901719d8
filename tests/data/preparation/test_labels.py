"""Labels that are not the assistant's answers are counted and shown."""

import pytest
from datasets import Dataset

from hf_gist.data.preparation.findings import Mislabelled
from hf_gist.data.preparation.run import prepare
from hf_gist.data.preparation.shown import marked_rows
from hf_gist.errors import MislabelledRowsWarning
from tests.helpers.words import TEMPLATE, chats, tokenizer


SPACED = TEMPLATE.replace("{{ eos_token }}", " {{ eos_token }}")
DROPS_CALLS = [
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w60", "arguments": {"a": "w2"}}}]},
    {"role": "assistant", "content": "w3"},
]


def problem(template, messages):
    pytest.importorskip("trl", reason="TRL is not installed")
    found = prepare(Dataset.from_list([{"messages": messages}]), tokenizer(template), None, "pool").mislabelled
    return found.examples[0] if found.found else None


def test_good_labels_are_no_problem():
    assert problem(SPACED, chats(1)[0]["messages"]) is None
    # words that the tokenizer does not know are compared as it writes them
    assert problem(SPACED, [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "unheard of"}]) is None


def test_a_template_that_drops_a_part_of_the_answer():
    last_word = SPACED.replace("{{ m['content'] }} {{", "{{ m['content'].split(' ')[-1] }} {{")
    assert "'w1 w2 w3' is not among its labelled tokens: 'w3 </s>'" in problem(
        last_word, [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w1 w2 w3"}]
    )
    # before transformers 5.24, a space behind the mark would end the marking
    drops_calls = SPACED.replace("{% generation %}", "{% generation %}w9 ")
    assert "'w60' is not among its labelled tokens" in problem(drops_calls, DROPS_CALLS)


@pytest.mark.parametrize(
    "wrong",
    [
        # transformers 5.2 does not count a mark at the very beginning
        "w10 {% generation %}user {{ messages[0]['content'] }} {% endgeneration %}" + SPACED,
        SPACED.replace("user {{ m['content'] }}", "user {% generation %}{{ m['content'] }}{% endgeneration %}"),
    ],
    ids=["header", "question"],
)
def test_a_template_that_labels_more_than_the_answer(wrong):
    messages = [{"role": "user", "content": "w11 w12 w13"}, {"role": "assistant", "content": "w2"}]
    assert "more than its answer is labelled" in problem(wrong, messages)


def test_a_large_share_is_an_error_and_a_small_one_a_warning():
    found = Mislabelled.of({4: "'w1' is not there", 7: "b", 8: "c", 9: "d"}, 100, lambda row: f"line {row + 1}")
    with pytest.raises(ValueError, match=r"labels of 4 of 100 rows(.|\n)*  line 5: 'w1' is not there\n") as error:
        found.check("pool")
    assert "--chat_template FILE" in str(error.value) and "line 10" not in str(error.value)
    with pytest.warns(MislabelledRowsWarning, match="4 of 100 rows"):
        found.check("pool", 0.04)


def test_rows_are_shown_with_the_labelled_part_marked():
    pytest.importorskip("trl", reason="TRL is not installed")
    rows = [{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}] * 3
    tok = tokenizer(SPACED)
    shown = marked_rows(prepare(Dataset.from_list(rows), tok, None, "pool").rows, 2, tok, "pool")
    assert len(shown) == 2 and shown[0].splitlines()[0].startswith("---- pool, row 1: 5 tokens")
    assert "".join(shown[0].splitlines()[1].split()) == "userw1assistant⟦w2</s>⟧"
