"""Raw rows to `input_ids` and `labels`, with a word-level tokenizer."""

import json
import sys

import pytest
from datasets import Dataset

from hf_gist.data.preparation.run import prepare, tokenize
from hf_gist.data.preparation.turns import mask_of
from hf_gist.errors import NoEffectWarning
from tests.helpers.words import TEMPLATE, chats, tokenizer


PLAIN = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
SPACED = TEMPLATE.replace("{{ eos_token }}", " {{ eos_token }}")
"""The word-level tokenizer needs a space before the end token to see it as a word of its own."""

TURNS = [
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w5 w6"},
]


@pytest.fixture(autouse=True)
def spaced(request):
    """TRL is needed for conversations only."""
    if "text" not in request.node.name:
        pytest.importorskip("trl", reason="TRL is not installed")


def words(row, template=SPACED, **arguments):
    """The words of a prepared row, and the labelled ones; `None` for the others."""
    tok = tokenizer(template)
    prepared = tokenize(Dataset.from_list([row]), tok, None, "train_file", **arguments)[0]
    labels = [tok.convert_ids_to_tokens(i) if i != -100 else None for i in prepared["labels"]]
    return tok.convert_ids_to_tokens(prepared["input_ids"]), labels


def labelled(row, template=SPACED):
    return [word for word in words(row, template)[1] if word]


@pytest.mark.parametrize(
    "template", [SPACED, PLAIN.replace("{{ eos_token }}", " {{ eos_token }}")], ids=["marks", "none"]
)
def test_only_assistant_turns_carry_a_loss(template):
    ids, labels = words({"messages": TURNS}, template)
    assert ids == ["user", "w1", "w2", "assistant", "w3", "</s>", "user", "w4", "assistant", "w5", "w6", "</s>"]
    assert labels == [None] * 4 + ["w3", "</s>"] + [None] * 3 + ["w5", "w6", "</s>"]


def test_a_conversation_may_begin_with_the_assistant():
    plain = PLAIN.replace("{{ eos_token }}", " {{ eos_token }}")
    assert words({"messages": TURNS[1:]}, plain)[1][:3] == [None, "w3", "</s>"]
    assert words({"messages": TURNS[1:]})[1][:3] == [None, "w3", "</s>"]


def test_a_template_may_end_the_conversation_with_a_token_of_its_own():
    template = PLAIN.replace("{{ eos_token }}", " w70 ") + "{% if not add_generation_prompt %}</s>{% endif %}"
    assert labelled({"messages": TURNS}, template) == ["w3", "w70", "w5", "w6", "w70", "</s>"]


def test_a_template_may_render_earlier_turns_differently():
    # `w9` is before the last answer only
    template = PLAIN.replace("assistant {{ m", "assistant {% if loop.last %}w9 {% endif %}{{ m")
    assert labelled({"messages": TURNS}, template.replace("{{ eos_token }}", " {{ eos_token }}")) == [
        *("w3", "</s>"),
        *("w9", "w5", "w6", "</s>"),
    ]


def test_an_answer_that_cannot_be_located_names_the_row_and_the_way_out():
    template = PLAIN.replace(
        "{{ m['content'] }}{{ eos", "{% if loop.last %}{{ m['content'] }}{% else %}w9{% endif %}{{ eos"
    )
    rows = Dataset.from_list([{"messages": TURNS[:2]}, {"messages": TURNS}])
    with pytest.raises(ValueError, match=r"1 of 2 rows .* labels .* not the assistant's answers|--chat_template FILE"):
        tokenize(rows, tokenizer(template), None, "train_file")


def test_in_a_conversational_prompt_only_the_completion_carries_a_loss():
    row = {"prompt": TURNS[:3], "completion": [{"role": "assistant", "content": "w4"}]}
    assert labelled(row) == ["w4", "</s>"]


def test_prompt_and_completion_as_text():
    ids, labels = words({"prompt": "w1 w2", "completion": " w3 "})
    assert ids == ["w1", "w2", "w3", "</s>"] and labels == [None, None, "w3", "</s>"]
    assert labelled({"text": "w1 w2 "}) == ["w1", "w2", "</s>"]


def test_a_prompt_with_a_completion_is_preferred_to_messages_as_in_trl():
    assert labelled({"messages": TURNS, "prompt": "w1", "completion": " w7 "}) == ["w7", "</s>"]
    # a prompt alone is a column like any other
    assert labelled({"messages": TURNS[:2], "prompt": "w1"}) == ["w3", "</s>"]


@pytest.mark.parametrize("packed", [False, True])
def test_tools_and_template_arguments_of_a_row_reach_the_template(packed):
    template = "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}{% if style %}{{ style }} {% endif %}" + SPACED
    tools = [{"name": "w7"}, {"name": "w8"}]
    row = {"messages": json.dumps(TURNS[:2]) if packed else TURNS[:2], "tools": json.dumps(tools) if packed else tools}
    options = {"style": "w9"}
    ids, labels = words(row | {"chat_template_kwargs": json.dumps(options) if packed else options}, template)
    assert ids == ["w7", "w8", "w9", "user", "w1", "w2", "assistant", "w3", "</s>"]
    assert [word for word in labels if word] == ["w3", "</s>"]


def test_of_several_templates_the_default_is_used():
    assert labelled({"messages": TURNS}, {"default": SPACED, "rag": "w9"}) == ["w3", "</s>", "w5", "w6", "</s>"]
    plain = PLAIN.replace("{{ eos_token }}", " {{ eos_token }}")
    named = {"default": plain, "tool_use": "w9 " + plain}
    assert words({"messages": TURNS[:2], "tools": [{"name": "w7"}]}, named)[0][0] == "w9"
    assert words({"messages": TURNS[:2]}, named)[0][0] == "user"


def test_a_token_over_the_beginning_of_an_answer_is_labelled_and_one_over_its_end_is_not():
    offsets = [(0, 4), (4, 7), (7, 9), (9, 12), (12, 15)]
    assert mask_of(offsets, [(5, 10), (12, 15)]) == [False, True, True, False, True]


def test_sharegpt_rows_with_calls():
    # before transformers 5.24, a space behind the mark would end the marking: the call is in front of the empty content
    template = SPACED.replace(
        "{{ m['content'] }}", "{% for t in m.tool_calls or [] %}{{ t.function.name }} {% endfor %}{{ m['content'] }}"
    )
    call = json.dumps({"name": "w60", "arguments": {}})
    turns = [("system", "w1"), ("human", "w2"), ("function_call", call), ("observation", "w4"), ("gpt", "w5")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    template = template.replace("m['role'] == 'user'", "m['role'] != 'assistant'")
    assert labelled(row, template) == ["w60", "</s>", "w5", "</s>"]


def test_content_parts_are_joined():
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in TURNS]
    parts[1]["content"].append({"type": "text", "text": " w9"})
    assert labelled({"messages": parts}) == ["w3", "w9", "</s>", "w5", "w6", "</s>"]
    # a template that renders nothing but parts gets them
    only_parts = SPACED.replace("{{ m['content'] }}", "{% for p in m['content'] %}{{ p.text }}{% endfor %}")
    assert labelled({"messages": TURNS}, only_parts) == ["w3", "</s>", "w5", "w6", "</s>"]


def test_null_keys_of_a_table_are_not_rendered():
    def call(**arguments):
        calls = [{"function": {"name": "w60", "arguments": arguments}}]
        return {"messages": [TURNS[0], {"role": "assistant", "content": "w3", "tool_calls": calls}]}

    def schema(**properties):
        return [{"name": "w61", "parameters": properties}]

    answer = "{{ m['content'] }} w{{ m.tool_calls[0].function.arguments | length }} w60"
    template = "{% for t in tools %}w{{ t.parameters | length }} {% endfor %}" + SPACED.replace(
        "{% generation %}{{ m['content'] }}", "{% generation %}" + answer
    )
    rows = [call(a="w1") | {"tools": schema(a={"x": 1})}, call(b="w2", c="w3") | {"tools": schema(b={"y": 1})}]
    tok = tokenizer(template)
    prepared = tokenize(Dataset.from_list(rows), tok, None, "train_file")
    assert [tok.decode(ids).split()[0] for ids in prepared["input_ids"]] == ["w1", "w1"]
    shown = [[tok.decode([i]) for i in ids if i != -100] for ids in prepared["labels"]]
    assert shown == [["w3", "w1", "w60", "</s>"], ["w3", "w2", "w60", "</s>"]]


def test_a_template_of_a_file_replaces_the_tokenizers():
    assert words({"messages": TURNS[:2]}, None, chat_template=SPACED)[0][-2:] == ["w3", "</s>"]
    with pytest.raises(ValueError, match="no chat template; give one with `--chat_template FILE`"):
        words({"messages": TURNS[:2]}, None)


def test_without_trl_texts_can_be_prepared_and_conversations_name_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    assert labelled({"text": "w1 w2 "}) and labelled({"prompt": "w1", "completion": " w2 "})
    # TRL leaves a template with marks as it is
    assert labelled({"messages": TURNS}) and words({"messages": TURNS}, chat_template=SPACED)
    missing = r'TRL is not installed: `pip install "hf_gist\[trl\]"`'
    with pytest.raises(ValueError, match=missing):
        words({"messages": TURNS}, chat_template=PLAIN)
    with pytest.raises(ValueError, match=missing):
        labelled({"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]})


def test_columns_are_kept_and_long_rows_cut_and_counted():
    prepared = prepare(Dataset.from_list(chats(4)), tokenizer(SPACED), 7, "train_file")
    rows = prepared.rows
    assert rows["source"][0] == "family0" and all(len(ids) == 7 for ids in rows["input_ids"])
    assert all(len(ids) == len(labels) for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True))
    assert prepared.cuts.to_dict() == {"rows": 4, "cut": 4, "answers_cut_off": 0}
    assert prepare(rows, tokenizer(), 7, "train_file").rows is rows
    cuts = prepare(Dataset.from_list(chats(4)), tokenizer(SPACED), 5, "train_file").cuts
    assert cuts.describe("train_file") == (
        "train_file: 4 of 4 rows were cut to 5 tokens; 4 of them lost the whole answer"
    )


def test_tokenised_rows_are_cut_and_counted_too():
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "attention_mask": [1] * 4, "note": [1, 2, 3, 4]}]
    rows += [{"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [1] * 2, "note": [1]}]
    prepared = prepare(Dataset.from_list(rows), tokenizer(), 3, "train_file")
    assert prepared.rows[0] == {
        "input_ids": [5, 6, 7],
        "labels": [-100, -100, 7],
        "attention_mask": [1] * 3,
        "note": [1, 2, 3, 4],
    }
    assert prepared.rows[1] == rows[1] and prepared.cuts.to_dict() == {"rows": 2, "cut": 1, "answers_cut_off": 0}
    prepared = prepare(Dataset.from_list(rows), tokenizer(), 2, "train_file")
    assert prepared.cuts.to_dict() == {"rows": 2, "cut": 1, "answers_cut_off": 1}
    assert prepared.rows["labels"][:] == [[-100, -100], [5, 6]]
    with pytest.warns(NoEffectWarning, match="no effect on the rows of `train_file`, which are tokenised already"):
        prepare(Dataset.from_list(rows), tokenizer(), None, "train_file", chat_template=SPACED)


def test_a_tokenizer_that_does_not_tell_the_place_of_tokens_is_refused_for_conversations():
    class Slow(type(tokenizer())):
        is_fast = False

    slow = tokenizer(SPACED)
    slow.__class__ = Slow
    with pytest.raises(ValueError, match="which Slow does not tell. Load a fast tokenizer"):
        prepare(Dataset.from_list(chats(2)), slow, None, "train_file")
    both = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in chats(2)]
    assert not prepare(Dataset.from_list(both), slow, None, "train_file").bad.reasons


def test_unknown_formats_are_errors():
    with pytest.raises(ValueError, match="`train_file` has the columns question; expected `input_ids`"):
        tokenize(Dataset.from_list([{"question": "w1"}]), tokenizer(), None, "train_file")
    with pytest.raises(ValueError, match="has `input_ids` but no `labels`"):
        tokenize(Dataset.from_list([{"input_ids": [5, 6]}]), tokenizer(), None, "train_file")
