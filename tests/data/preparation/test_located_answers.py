"""Short answers whose words are in the question, in templates that render the question differently before the answer."""

import pytest
from datasets import Dataset

from hf_gist.data.preparation.labels import LabelCheck
from hf_gist.data.preparation.run import prepare
from hf_gist.data.rows import IGNORE_INDEX
from tests.helpers.words import chat_tokenizer, user


# as those of Mistral: the system's message is part of the user's if that is the last one, which it is only in the prompt
LATE_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}<s>{% for m in turns %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
# as those of reasoning models: the prompt ends inside of a reasoning that the conversation does not have
OPEN_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
SYSTEM = {"role": "system", "content": "Say yes or B."}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


def labelled(template, *turns):
    """What is labelled in a conversation, and whether the check finds a fault with it."""
    tokenizer = chat_tokenizer(template)
    prepared = prepare(Dataset.from_list([{"messages": list(turns)}]), tokenizer, None, "pool")
    labels = [label for label in prepared.rows[0]["labels"] if label != IGNORE_INDEX]
    return tokenizer.decode(labels), prepared.mislabelled.found


@pytest.mark.parametrize("template", [LATE_SYSTEM, OPEN_REASONING])
@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Is 7 prime? yes or no", "yes"),
        ("A) Rome B) Paris", "B"),
        ("2+2=4 or 5?", "4"),
        ("Repeat: no, no", "no"),
    ],
)
def test_an_answer_is_not_looked_for_in_its_question(template, question, text):
    found, wrong = labelled(template, SYSTEM, user(question), answer(text))
    assert found in (f"{text}</s>", f"{text}<|im_end|>\n") and not wrong
    found, wrong = labelled(template, SYSTEM, user(question), answer(text), user(question), answer(text))
    assert found.count(text) == 2 and question not in found and not wrong


@pytest.mark.parametrize(
    "text", ["yes or no[/INST]yes</s>", "yes or no<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"]
)
def test_labels_that_begin_inside_of_the_question_are_found(text):
    check = LabelCheck(chat_tokenizer(), False)
    ids = chat_tokenizer()(text)["input_ids"]
    (problem,) = check.problems([ids], [[answer("yes")]], [[user("Is 7 prime? yes or no")]])
    assert problem is not None and "more than its answer is labelled" in problem
    (problem,) = check.problems([chat_tokenizer()("yes</s>")["input_ids"]], [[answer("yes")]], [[user("yes or no")]])
    assert problem is None


WRITTEN_FIRST = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}"
    "{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "turn",
    [
        answer("4", reasoning_content="Okay, the user asks 2+2, which is 4."),
        answer("user", reasoning_content="The human is a user of the system."),
    ],
)
def test_a_reasoning_may_have_the_words_of_the_answer(turn):
    text, wrong = labelled(WRITTEN_FIRST, user("What is it?"), turn)
    assert turn["reasoning_content"] in text and not wrong


@pytest.mark.parametrize("code", ['def f(user):\n  return "x"', "os.system('ls')\n", "human: é\t\\"])
def test_arguments_of_calls_may_be_written_as_json(code):
    call = {"type": "function", "function": {"name": "write", "arguments": {"content": code}}}
    text, wrong = labelled(WRITTEN_FIRST, user("Write it."), answer("", tool_calls=[call]))
    assert "write" in text and not wrong


def test_a_header_among_the_labels_is_still_found():
    leaking = WRITTEN_FIRST.replace("{% generation %}", "{% generation %}user says: ")
    turn = answer("4", reasoning_content="It is 4.")
    assert labelled(leaking, user("What is it?"), turn)[1] == 1


def test_a_header_between_a_reasoning_and_its_answer_belongs_to_the_answer():
    """As in the format of gpt-oss, whose turns with a reasoning have two headers."""
    check = LabelCheck(chat_tokenizer(), False)
    turn = answer("4", reasoning_content="It is even.")
    ids = chat_tokenizer()("It is even.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>")["input_ids"]
    assert check.problems([ids], [[turn]], [[user("What is it?")]]) == [None]
    ids = chat_tokenizer()("<|start|>assistant<|message|>It is even. 4<|return|>")["input_ids"]
    assert check.problems([ids], [[turn]], [[user("What is it?")]]) != [None]
