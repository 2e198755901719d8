"""Masked steps and the support pass with activation checkpointing of any kind, against a loop over samples without."""

import pytest

from hf_gist.config.gast import GASTConfig
from tests.helpers.checkpoints import CASES, checkpoint_blocks
from tests.helpers.gast import (
    build_model,
    label_counts,
    reference_gradients,
    relative_error,
    rows,
    support_rows_in,
    train,
)


SETTINGS = [
    *((case, "block", "pass") for case in CASES),
    *((case, "module", "pass") for case in ("reentrant", "llamafactory")),
    *((case, "block", "batch") for case in ("reentrant", "llamafactory")),
]


@pytest.mark.parametrize(("case", "group_by", "where"), SETTINGS)
def test_masked_gradients_are_those_without_checkpointing(case, group_by, where, tmp_path):
    config, support = GASTConfig(keep=3, seed=5, group_by=group_by), rows("qwen2", 6, seed=9)
    model = checkpoint_blocks(build_model("qwen2"), case)
    with support_rows_in(where):
        trainer, recorder = train(
            model, tmp_path, rows("qwen2", 32), config=config, support=support, gradient_accumulation_steps=2
        )
    assert trainer.gast.supports == 1
    items = sum(label_counts(batch, "qwen2").sum() for batch in recorder.batches)
    expected, masks, _ = reference_gradients(
        build_model("qwen2"), "qwen2", recorder.batches, support, config, items=items
    )
    assert relative_error(recorder.gradients[0], expected) < 1e-5
    for found, wanted in zip(recorder.masks, masks, strict=True):
        assert all(bool((found[group] == wanted[group]).all()) for group in wanted)


IN_ONE_BACKWARD_PASS = {
    "plain", "signature", "signature, method", "llamafactory, not reentrant", "llamafactory, ms-swift",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whole_samples_are_exact_or_refused(case, tmp_path):
    config, support = GASTConfig(keep=3, seed=5, group_by="model"), rows("qwen2", 6, seed=9)
    model = checkpoint_blocks(build_model("qwen2"), case)
    if case not in IN_ONE_BACKWARD_PASS:
        with pytest.raises(ValueError, match="use_reentrant.*False"):
            train(model, tmp_path, rows("qwen2", 32), config=config, support=support)
        return
    _, recorder = train(model, tmp_path, rows("qwen2", 32), config=config, support=support)
    items = label_counts(recorder.batches[0], "qwen2").sum()
    expected, _, _ = reference_gradients(build_model("qwen2"), "qwen2", recorder.batches, support, config, items=items)
    assert relative_error(recorder.gradients[0], expected) < 1e-5
