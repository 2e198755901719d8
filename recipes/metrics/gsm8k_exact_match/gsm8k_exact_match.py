"""Exact match of the final number of a worked solution, as an `evaluate` module that is loaded from this folder."""

import re
from decimal import Decimal

import datasets
import evaluate


_DESCRIPTION = """
Share of predictions whose final number equals that of the reference. The final number is the one after `####`; without
one, the last number of the text. `$`, thousands separators and a final full stop are ignored, and numbers are compared by
value: `1,000`, `$1000` and `1000.00` are the same.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): generated solutions.
    references (`list[str]`): worked solutions that end in `#### NUMBER`, or the numbers alone.

Returns:
    `dict`: `exact_match`, the share in [0, 1], and `no_number`, the share of predictions without any number.

Raises:
    ValueError: if a reference has no number, naming its row.

Examples:

    >>> metric = evaluate.load("recipes/metrics/gsm8k_exact_match")
    >>> metric.compute(predictions=["3 + 4 = 7", "#### 9"], references=["#### 7", "#### 8"])
    {'exact_match': 0.5, 'no_number': 0.0}
"""

_CITATION = """
@article{cobbe2021gsm8k,
  title={Training Verifiers to Solve Math Word Problems},
  author={Cobbe, Karl and Kosaraju, Vineet and Bavarian, Mohammad and Chen, Mark and Jun, Heewoo and Kaiser, Lukasz and
    Plappert, Matthias and Tworek, Jerry and Hilton, Jacob and Nakano, Reiichiro and Hesse, Christopher and Schulman, John},
  journal={arXiv preprint arXiv:2110.14168},
  year={2021}
}
"""

# A minus directly after a word, a number or a bracket is a subtraction. Commas only group thousands.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\].])[-\u2212]\s?)?\$?(?P<value>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
)
_MARK = "####"


def _value(match: re.Match) -> Decimal:
    value = Decimal(match["value"].replace(",", ""))
    return -value if match["sign"] else value


def final_number(text: str) -> Decimal | None:
    """The number after the first `####`, or else the last number of the text; `None` if it has none."""
    if _MARK in text:
        # text that the model writes after its answer is ignored
        line = text.split(_MARK, 1)[1].strip().split("\n", 1)[0]
        marked = _NUMBER.search(line.replace("$-", "-$"))
        if marked is not None:
            return _value(marked)
    numbers = list(_NUMBER.finditer(text.replace("$-", "-$")))
    return _value(numbers[-1]) if numbers else None


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class GSM8KExactMatch(evaluate.Metric):
    """Exact match of the final number."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/2110.14168"],
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        wanted = [final_number(text) for text in references]
        for row, number in enumerate(wanted):
            if number is None:
                raise ValueError(f"Reference {row} has no number: {references[row][:80]!r}.")
        found = [final_number(text) for text in predictions]
        return {
            "exact_match": sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted),
            "no_number": sum(number is None for number in found) / len(wanted),
        }
