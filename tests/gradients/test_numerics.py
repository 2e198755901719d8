"""Gradients that are not finite, zero or degenerate, and half-precision models: each with a defined outcome."""

import json

import pytest
import torch

from hf_gist import GISTConfig, Selection, select
from hf_gist.errors import NoEffectWarning, UnscorableRowsWarning
from hf_gist.functional.measurements import Measurements
from tests.helpers.tiny import PaddingCollator, as_dataset, base_model, lora_model, token_rows


POISON = 98
POOL = [
    {"input_ids": [min(t, 97) for t in row["input_ids"]], "labels": row["labels"]} for row in token_rows(40, seed=1)
]
TARGETS = [
    {"input_ids": [min(t, 97) for t in row["input_ids"]], "labels": row["labels"]} for row in token_rows(6, seed=2)
]


def chosen(model=None, pool=POOL, targets=TARGETS, config=None, **kwargs):
    return select(
        model or lora_model(),
        as_dataset(pool),
        as_dataset(targets),
        config or GISTConfig(budget=4, scoring_tokens_per_batch=64),
        data_collator=PaddingCollator(),
        progress=False,
        **kwargs,
    )


def poisoned_model(value):
    """Rows with the token 98 get a gradient that is not finite; all others are as ever."""
    model = lora_model(base={"tie_word_embeddings": False})
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = value
    return model


def with_poison(rows, number):
    rows = [dict(row) for row in rows]
    rows[number]["input_ids"] = [POISON, *rows[number]["input_ids"][1:]]
    return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_candidate_is_left_out_counted_and_listed(value, tmp_path):
    clean = chosen(poisoned_model(0.1))
    with pytest.warns(UnscorableRowsWarning, match="1 have a gradient that is not finite"):
        found = chosen(poisoned_model(value), with_poison(POOL, 7), output_dir=tmp_path)
    others = [row for row in range(40) if row != 7]
    assert torch.isneginf(found.scores[7]) and 7 not in found.indices
    torch.testing.assert_close(found.scores[others], clean.scores[others], rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "manifest.json").read_text())["rows_with_non_finite_gradient"] == [7]
    assert Selection.load(tmp_path).indices == found.indices


def test_a_bad_target_is_left_out_of_the_subspace():
    without = chosen(poisoned_model(0.1), targets=[row for i, row in enumerate(TARGETS) if i != 2])
    with_it = chosen(poisoned_model(float("nan")), targets=with_poison(TARGETS, 2))
    torch.testing.assert_close(with_it.scores, without.scores, rtol=0, atol=1e-6)
    assert len(with_it.group_names) == 5


def test_nothing_but_bad_targets_is_an_error():
    with pytest.raises(ValueError, match="No row of `target_dataset` has a labelled token and a finite gradient"):
        chosen(poisoned_model(float("nan")), targets=with_poison(TARGETS[:1], 0))


def test_a_zero_gradient_scores_zero_and_is_no_division():
    coordinates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    measured = Measurements(
        coordinates=coordinates, norms=torch.tensor([1.0, 0.0, 1.0]), label_tokens=torch.tensor([3, 3, 3]),
        singular_values=torch.tensor([2.0, 1.0]), target_coordinates=torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        target_label_tokens=torch.tensor([3, 3]),
    )  # fmt: skip
    for score in ("subspace_cosine", "cosine"):
        found = Selection.choose(measured, GISTConfig(budget=1, score=score, explained_variance=1.0))
        assert found.scores.tolist() == [1.0, 0.0, 0.0] and found.energy.tolist() == [1.0, 0.0, 1.0]


def test_duplicate_targets_change_neither_subspace_nor_scores():
    once, twice = chosen(), chosen(targets=[*TARGETS, *TARGETS])
    assert len(twice.singular_values) == len(once.singular_values) and twice.rank == once.rank
    torch.testing.assert_close(twice.scores, once.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(twice.singular_values, once.singular_values * 2**0.5, rtol=1e-5, atol=0)


def test_one_target_is_a_subspace_of_rank_one():
    # inside one dimension there are two directions only, so the subspace cosine tells no row from another
    with pytest.warns(NoEffectWarning, match="scored by the plain cosine instead"):
        one = chosen(targets=TARGETS[:1])
    assert one.rank == 1 and one.explained_variance == pytest.approx(1.0)
    assert len(set(one.scores.tolist())) == 40
    plain = one.reselect(score="cosine")
    assert torch.equal(plain.scores, one.scores) and plain.indices == one.indices
    with pytest.warns(NoEffectWarning):
        several = chosen(targets=TARGETS).reselect(rank=1)
    assert several.indices == chosen(targets=TARGETS, config=one.config).reselect(score="cosine").indices


def test_more_targets_than_parameters():
    model = lora_model(base={"num_hidden_layers": 1}, r=1, target_modules=["k_proj"])
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    targets = token_rows(values + 10, seed=3)
    found = chosen(model, targets=targets, config=GISTConfig(budget=4, explained_variance=1.0))
    assert len(found.singular_values) <= values and torch.isfinite(found.scores).all()
    # the targets span every direction, so nothing of a gradient is outside
    assert float(found.energy.min()) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_nearly_the_same_scores(dtype):
    exact = chosen()
    half = lora_model()
    half.get_base_model().to(dtype)
    found = chosen(half)
    assert torch.isfinite(found.scores).all()
    assert float((found.scores - exact.scores).abs().mean()) < 0.05
    both = torch.stack([found.scores, exact.scores])
    assert float(torch.corrcoef(both)[0, 1]) > 0.97


def test_the_tiny_models_are_what_these_tests_think():
    assert base_model().config.vocab_size == POISON + 1
    assert all(max(row["input_ids"]) < POISON for row in POOL + TARGETS)
