"""A 16-bit model with a 32-bit adapter: its inputs are kept as they are, where that changes nothing."""

from unittest.mock import patch

import pytest
import torch

from hf_gist.config.gast import GASTConfig
from hf_gist.gradients import hooks
from tests.helpers.gast import build_model, rows, train
from tests.helpers.inputs import InputsKept
from tests.helpers.tiny import sixteen_bit


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=str)
def test_a_masked_step_is_the_same_bit_for_bit(dropout, changes, tmp_path):
    # with dropout the masked pass keeps 32-bit inputs: to drop out before the cast would round otherwise
    found = []
    for saving in (False, True):
        model = sixteen_bit(build_model(dropout=dropout))
        only_casts = hooks._only_casts if saving else lambda tracked: False
        with patch.object(hooks, "_only_casts", only_casts), InputsKept() as kept:
            trainer, recorder = train(
                model, tmp_path / str(saving), rows(count=32), config=GASTConfig(keep=3), max_steps=2, **changes
            )
        sixteen = saving and not dropout
        assert kept.dtypes() == {torch.bfloat16 if sixteen else torch.float32}
        found.append((recorder, trainer.gast.support))
    (copies, copied_support), (inputs, support) = found
    for left, right in [(copied_support, support), *zip(copies.gradients, inputs.gradients, strict=True)]:
        assert set(left) == set(right)
        assert all(left[name].any() and torch.equal(left[name], right[name]) for name in left)
