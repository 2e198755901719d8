"""What training costs in `while_training.py`."""

import numpy as np

from hf_gist.costs.accounting import Sizes, training_cost
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.stopwatch import TRAINING
from hf_gist.data.rows import row_lengths


class Costs:
    """Costs of steps on random rows, in training passes over the pool.

    Args:
        model (`nn.Module`): with its adapter.
        variant (`Variant`): pool and targets.
    """

    def __init__(self, model, variant):
        self.pool_row = 1 / len(variant.pool)
        pool = _flops(model, variant.lengths)
        self.target_row = _flops(model, row_lengths(variant.targets)) / len(variant.targets) / pool

    def of_step(self, rows, support_rows):
        """A step on `rows` random rows of the pool, with gradients of `support_rows` target rows."""
        return rows * self.pool_row + support_rows * self.target_row


def _flops(model, lengths: np.ndarray) -> float:
    """Operations of a training pass over rows of some lengths."""
    return training_cost(ModelWork.of(model), Sizes(lengths, 0), TRAINING, 0.0).flops
