"""The metrics of the recipes, loaded by `evaluate` from their folders, on cases solved by hand."""

import socket

import evaluate
import pytest

from tests import ROOT


METRICS = ROOT / "recipes" / "metrics"


@pytest.fixture(autouse=True)
def without_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("reached for the network"))


def load(name):
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


@pytest.fixture(scope="module")
def gsm8k():
    return load("gsm8k_exact_match")


@pytest.fixture(scope="module")
def choice():
    return load("choice_accuracy")


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("3 + 4 = 7\n#### 7", "#### 7", True),
        ("#### 8", "#### 7", False),
        ("So she pays $1,234.", "#### 1234", True),
        ("#### $1,234.50", "1234.5", True),
        ("#### 5.", "#### 5", True),
        ("#### 5.00", "#### 5", True),
        ("#### 12", "#### 1", False),
        ("#### -3", "#### 3", False),
        ("It is -3.", "#### -3", True),
        ("It is -$3.", "#### -3", True),
        ("It is $-3.", "#### -3", True),
        ("It is \u22123.", "#### -3", True),
        ("10-3", "#### 3", True),
        ("the 3-4", "#### 4", True),
        ("0.5", "#### .5", True),
        ("15%", "#### 15", True),
        ("we have 2, 3 and 4", "#### 4", True),
        ("1,2,3", "#### 3", True),
        # the answer follows the first mark; then another question follows
        ("#### 7\nQuestion: what is 2 + 2?\n#### 4", "#### 7", True),
        ("#### 7 apples of 9", "#### 7", True),
        # no number after the mark: the last number of the text
        ("it is 7 ####", "#### 7", True),
        ("I do not know", "#### 7", False),
        ("", "#### 0", False),
        ("1000000000000000000001", "#### 1000000000000000000000", False),
    ],
)
def test_final_numbers(gsm8k, prediction, reference, right):
    found = gsm8k.compute(predictions=[prediction], references=[reference])
    assert found == {"exact_match": float(right), "no_number": float(not any(c.isdigit() for c in prediction))}


def test_a_share_of_several_and_a_reference_without_a_number(gsm8k):
    found = gsm8k.compute(predictions=["1", "2", "x", "4"], references=["1", "3", "4", "4"])
    assert found == {"exact_match": 0.5, "no_number": 0.25}
    with pytest.raises(ValueError, match="Reference 1 has no number: 'none'"):
        gsm8k.compute(predictions=["1", "1"], references=["1", "none"])


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("B", "B", True),
        ("(B)", "B", True),
        ("B.", "(B)", True),
        ("B) Paris", "B. Paris", True),
        ("**B**", "B", True),
        ("The answer is B", "B", True),
        ("The correct answer is (b).", "B", True),
        ("The answer is B because of A.", "B", True),
        ("Answer: C", "B", False),
        ("I think so. The answer is: option B", "(B)", True),
        ("It can only be (B).", "B", True),
        ("Paris", "(B) Paris", True),
        ("paris.", "B) Paris", True),
        ("London", "(B) Paris", False),
        # a model that continues with its own questions
        ("A\n\nQuestion: Which planet?\nAnswer: B", "A", True),
        ("(A)\nuser: next?\nassistant: the answer is (B)", "A", True),
        ("I'm not sure, (B)", "B", True),
        # articles and pronouns are not choices
        ("A dog is an animal.", "A", False),
        ("I do not know", "I", False),
        ("", "A", False),
        ("AB", "A", False),
    ],
)
def test_letters(choice, prediction, reference, right):
    assert choice.compute(predictions=[prediction], references=[reference])["accuracy"] == float(right)


@pytest.mark.parametrize("prediction", ["3.14", "The answer is 3.5 m", "The answer is 3,000"])
def test_numbers_are_no_labels(choice, prediction):
    found = choice.compute(predictions=[prediction], references=["3"], choices=["1", "2", "3", "4"])
    assert found == {"accuracy": 0.0, "no_choice": 1.0}
    assert choice.compute(predictions=["3."], references=["3"], choices=["1", "2", "3"])["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("the correct answer is answer2", True),
        ("answer2", True),
        ("Answer2.", True),
        ("the correct answer is answer1", False),
        ("the correct answer is answer20", False),
        ("the correct answer is the second", False),
    ],
)
def test_labels_of_your_own(choice, prediction, right):
    options = {"references": ["the correct answer is answer2"], "choices": ["answer1", "answer2", "answer20"]}
    assert choice.compute(predictions=[prediction], **options)["accuracy"] == float(right)


def test_shares_of_right_answers_and_of_none(choice):
    found = choice.compute(predictions=["yes", "No, it is", "true"], references=["yes"] * 3, choices=["yes", "no"])
    assert found == {"accuracy": pytest.approx(1 / 3), "no_choice": pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="Reference 0 names none of the choices yes, no: 'maybe'"):
        choice.compute(predictions=["yes"], references=["maybe"], choices=["yes", "no"])


@pytest.mark.parametrize("name", ["gsm8k_exact_match", "choice_accuracy"])
def test_they_describe_and_cite_themselves(name):
    metric = load(name)
    assert "Examples" in metric.inputs_description and "@article" in metric.citation and len(metric.description) > 100
