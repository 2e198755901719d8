"""Multiple-choice test rows: every choice tokenised as the answer, and the choice of the highest log-likelihood."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from hf_gist.commands.testing.loading import row_accuracy
from hf_gist.commands.testing.measured import Measured


ACCURACY_SUM = "accuracy_sum"
ACCURACY_PER_TOKEN = "accuracy_per_token"


@dataclass(frozen=True)
class Choices:
    """The choices of `R` test rows.

    Args:
        rows (`Dataset`): `input_ids` and `labels` of all `C` choices: those of the first row, then of the second, ...;
            only the choice is labelled.
        sizes (`list[int]`): number of choices of each row `[R]`.
        answers (`list[int]`): number of the right choice of each row `[R]`, from 0.
    """

    rows: Dataset
    sizes: list[int]
    answers: list[int]

    @property
    def right(self) -> list[int]:
        """Where the right choices are in `rows` `[R]`."""
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        return [start + answer for start, answer in zip(starts, self.answers, strict=False)]

    def accuracies(self, losses: Tensor, counts: Tensor) -> dict[str, Measured]:
        """The two accuracies: by the log-likelihood of the whole choice, and by its mean per token.

        Args:
            losses (`Tensor`): mean token loss of each choice `[C]`.
            counts (`Tensor`): labelled tokens of each choice `[C]`.
        """
        costs = {ACCURACY_SUM: losses * counts, ACCURACY_PER_TOKEN: losses}
        return {name: self._accuracy(self.predictions(values)) for name, values in costs.items()}

    def predictions(self, costs: Tensor) -> list[int]:
        """The choice of the lowest cost of each row `[R]`, the first of equal ones; -1 where a cost is not finite.

        Args:
            costs (`Tensor`): negative log-likelihoods `[C]`.
        """
        parts = costs.split(self.sizes)
        return [int(part.argmin()) if bool(part.isfinite().all()) else -1 for part in parts]

    def _accuracy(self, predictions: list[int]) -> Measured:
        found = row_accuracy().compute(predictions=predictions, references=self.answers)
        rows = [float(a == b) for a, b in zip(predictions, self.answers, strict=True)]
        return Measured(found["accuracy"], found["standard_error"], rows)
