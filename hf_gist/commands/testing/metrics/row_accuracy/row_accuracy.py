"""Share of rows that are answered rightly, with its standard error, as an `evaluate` module loaded from this folder."""

import math

import datasets
import evaluate


_DESCRIPTION = """
Share of rows whose predicted choice is the right one, and the standard error of that share over the rows.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): number of the choice that the model answers each row with; -1 for none.
    references (`list[int]`): number of the right choice of each row.

Returns:
    `dict`: `accuracy`, the share in [0, 1], and `standard_error`, `sqrt(accuracy * (1 - accuracy) / (rows - 1))`; `None` for
    a single row.

Examples:

    >>> metric = evaluate.load("row_accuracy")
    >>> metric.compute(predictions=[0, 1, 2, 2, 0], references=[0, 1, 2, 3, 1])
    {'accuracy': 0.6, 'standard_error': 0.2449489742783178}
"""

_CITATION = """
@misc{miller2024adding,
  title={Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations},
  author={Miller, Evan},
  year={2024},
  eprint={2411.00640},
  archivePrefix={arXiv}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RowAccuracy(evaluate.Metric):
    """Share of rows that are answered rightly."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2411.00640"],
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float | None]:
        rows = len(references)
        accuracy = sum(a == b for a, b in zip(predictions, references, strict=True)) / rows
        error = math.sqrt(accuracy * (1 - accuracy) / (rows - 1)) if rows > 1 else None
        return {"accuracy": accuracy, "standard_error": error}
