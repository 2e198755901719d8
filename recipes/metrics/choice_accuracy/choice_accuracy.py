"""Accuracy on multiple-choice questions, as an `evaluate` module that is loaded from this folder."""

import re

import datasets
import evaluate


_DESCRIPTION = """
Share of predictions that name the choice of the reference. A choice is named by its label, as in `B`, `(B)`, `B.`,
`B) Paris`, `The answer is B`, or by exactly the text that follows the label in the reference. Labels are the letters A to Z
unless `choices` are given (`["answer1", "answer2"]`, `["true", "false"]`).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): generated answers.
    references (`list[str]`): correct answers.
    choices (`list[str]`, *optional*): the labels, by default the letters A to Z.

Returns:
    `dict`: `accuracy`, the share in [0, 1], and `no_choice`, the share of predictions that name no choice.

Raises:
    ValueError: if a reference names none of the choices, naming its row.

Examples:

    >>> metric = evaluate.load("recipes/metrics/choice_accuracy")
    >>> metric.compute(predictions=["The answer is B.", "(C)"], references=["(B)", "(A)"])
    {'accuracy': 0.5, 'no_choice': 0.0}
"""

_CITATION = """
@article{clark2018arc,
  title={Think you have Solved Question Answering? Try ARC, the AI2 Reasoning Challenge},
  author={Clark, Peter and Cowhey, Isaac and Etzioni, Oren and Khot, Tushar and Sabharwal, Ashish and Schoenick, Carissa
    and Tafjord, Oyvind},
  journal={arXiv preprint arXiv:1803.05457},
  year={2018}
}
"""

_LETTERS = [chr(ord("A") + i) for i in range(26)]
_OPEN, _CLOSE = r"[(\[\"'*`]*", r"[)\]\"'*`.:,]*"


class Labels:
    """Finds the label that an answer names.

    Args:
        choices (`list[str]`): the labels.
    """

    def __init__(self, choices: list[str]) -> None:
        self.known = {choice.lower(): choice for choice in choices}
        one = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
        # "A" and "I" are also words: a single letter counts if its case matches or punctuation follows
        short = all(len(choice) == 1 for choice in choices)
        case = "" if short else "(?i)"
        # "3.14" and "1,000" name no choice, and "I'm" does not name I
        end = r"(?=[)\]\"*`:]|[.,](?!\d)|'(?!\w)|\s*$)" if short else r"(?!\w|[.,]\d)"
        says = rf"(?i:\banswer(?:\s+is\b|\s*:)[:\s]*(?:(?:option|choice)\s+)?){_OPEN}"
        self.start = re.compile(rf"{case}^\s*{_OPEN}({one}){end}")
        self.patterns = [
            re.compile(rf"{case}{says}({one})(?!\w|[.,]\d)"),
            re.compile(rf"(?i){says}({one}){end}"),
            re.compile(rf"(?i)\(({one})\)"),
        ]

    def find(self, text: str) -> str | None:
        """The label that the text names: at the start of its first line, after "answer is", or in brackets.

        A model that continues with its own questions may answer those too, so the start comes first. `None` if there is
        no label.
        """
        first = text.strip().split("\n", 1)[0]
        if (match := self.start.search(first)) is not None:
            return self.known[match[1].lower()]
        for pattern in self.patterns:
            match = pattern.search(text)
            if match is not None:
                return self.known[match[1].lower()]
        return None

    def text_of(self, reference: str) -> str:
        """The reference without its label, in lower case, to compare with an answer that has no label."""
        one = "|".join(map(re.escape, self.known))
        return _plain(re.sub(rf"^\s*{_OPEN}(?:{one})(?!\w){_CLOSE}", "", reference, count=1, flags=re.IGNORECASE))


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" \t\n.\"'").split())


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ChoiceAccuracy(evaluate.Metric):
    """Accuracy on multiple-choice questions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/1803.05457"],
        )

    def _compute(
        self, predictions: list[str], references: list[str], choices: list[str] | None = None
    ) -> dict[str, float]:
        labels = Labels(choices or _LETTERS)
        wanted = [labels.find(text) for text in references]
        for row, label in enumerate(wanted):
            if label is None:
                raise ValueError(
                    f"Reference {row} names none of the choices {', '.join(labels.known.values())}: "
                    f"{references[row][:80]!r}."
                )
        right, without = 0, 0
        for prediction, label, reference in zip(predictions, wanted, references, strict=True):
            found, text = labels.find(prediction), labels.text_of(reference)
            by_text = found is None and text != "" and _plain(prediction) == text
            right += found == label or by_text
            without += found is None and not by_text
        return {"accuracy": right / len(wanted), "no_choice": without / len(wanted)}
