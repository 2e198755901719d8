"""The spectral filter, the scores and the budgets against plain linear algebra."""

import pytest
import torch

from hf_gist.functional.selection.budget import cut_to_budget, rows_in_budget, sampled_from_top
from hf_gist.functional.selection.ranking import group_directions, ranked, round_robin, score_candidates
from hf_gist.functional.subspace import basis_slice, captured_variance, choose_rank, spectrum, target_coordinates


def basis_of(g):
    singular, u = spectrum(g.double() @ g.double().T)
    return singular, u, basis_slice(g, singular, u)


def test_spectrum_equals_the_svd():
    g = torch.randn(12, 300, generator=torch.Generator().manual_seed(0))
    singular, u, basis = basis_of(g)
    _, expected, right = torch.linalg.svd(g.double(), full_matrices=False)
    torch.testing.assert_close(singular, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close((basis.double() @ right.T).abs(), torch.eye(12).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(target_coordinates(singular, u), g @ basis.T, rtol=1e-4, atol=1e-4)


def test_basis_is_orthonormal_also_with_a_wide_spectrum():
    generator = torch.Generator().manual_seed(1)
    scale = torch.logspace(0, -4, 10)
    g = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0] * scale
    g = g @ torch.linalg.qr(torch.randn(400, 10, generator=generator))[0].T
    singular, _, basis = basis_of(g)
    assert len(singular) == 10
    assert (basis.double() @ basis.double().T - torch.eye(10)).abs().max() <= 1e-5


def test_noise_directions_are_dropped_never_divided_by():
    g = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    g = torch.cat([g, g, g[:1] * 2])
    singular, _, basis = basis_of(g)
    assert len(singular) == 3 and torch.isfinite(basis).all()
    assert (basis.double() @ basis.double().T - torch.eye(3)).abs().max() <= 1e-5


def test_zero_gradients_are_an_error():
    with pytest.raises(ValueError, match="Every target gradient is zero"):
        spectrum(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="not finite"):
        spectrum(torch.full((2, 2), float("nan")))


def test_the_same_input_gives_the_same_basis():
    g = torch.randn(8, 60, generator=torch.Generator().manual_seed(2))
    first, second = basis_of(g)[2], basis_of(g.clone())[2]
    assert torch.equal(first, second)


@pytest.mark.parametrize(("variance", "expected"), [(0.5, 1), (0.64, 1), (0.65, 2), (0.95, 3), (1.0, 4)])
def test_rank_is_the_smallest_that_explains_enough(variance, expected):
    singular = torch.tensor([4.0, 2.0, 2.0, 1.0])
    assert captured_variance(singular).tolist() == pytest.approx([0.64, 0.8, 0.96, 1.0])
    assert choose_rank(singular, variance) == expected


def test_fixed_rank_is_cut_to_what_exists():
    singular = torch.tensor([3.0, 1.0])
    assert choose_rank(singular, 0.95, rank=1) == 1
    assert choose_rank(singular, 0.95, rank=9) == 2


def test_scores_are_the_maximum_cosine_over_group_means():
    generator = torch.Generator().manual_seed(0)
    candidates, targets = torch.randn(50, 6, generator=generator), torch.randn(8, 6, generator=generator)
    groups = [0, 1, 0, 2, 2, 1, 0, 2]
    directions = group_directions(targets, groups, 3)
    scores, best = score_candidates(candidates, directions)
    means = torch.stack([targets[[i for i in range(8) if groups[i] == h]].mean(0) for h in range(3)])
    expected = torch.nn.functional.cosine_similarity(candidates[:, None], means[None], dim=2)
    torch.testing.assert_close(scores, expected.max(1).values)
    assert best.tolist() == expected.argmax(1).tolist()
    torch.testing.assert_close(score_candidates(candidates, directions, reduce="mean")[0], expected.mean(1))


def test_a_zero_gradient_scores_zero_not_nan():
    scores, _ = score_candidates(torch.zeros(2, 3), torch.eye(3).double())
    assert scores.tolist() == [0.0, 0.0]


def test_ties_are_broken_by_index():
    assert ranked(torch.tensor([1.0, 2.0, 2.0, 0.0, 2.0])).tolist() == [1, 2, 4, 0, 3]


def test_round_robin_lets_each_group_pick_in_turn():
    directions = torch.eye(2).double()
    coordinates = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [1.0, 0.0], [0.5, 0.5]])
    eligible = torch.tensor([True, True, True, True, True])
    # group 0 ranks 3, 0, 1, 4, 2 and group 1 ranks 2, 4, 1, 0, 3
    assert round_robin(coordinates, directions, eligible) == [3, 2, 0, 4, 1]
    eligible[3] = False
    assert round_robin(coordinates, directions, eligible) == [0, 2, 1, 4]


def test_a_limited_round_robin_is_the_head_of_the_whole_one():
    generator = torch.Generator().manual_seed(0)
    coordinates, directions = torch.randn(40, 5, generator=generator), torch.randn(7, 5, generator=generator).double()
    eligible = torch.rand(40, generator=generator) > 0.2
    whole = round_robin(coordinates, directions, eligible)
    assert sorted(whole) == eligible.nonzero().flatten().tolist()
    for limit in (1, 5, 13, 100):
        assert round_robin(coordinates, directions, eligible, limit=limit) == whole[:limit]


def test_budgets():
    tokens = torch.tensor([5, 5, 10, 20])
    assert cut_to_budget([3, 2, 1, 0], 0.5, "rows", tokens) == [3, 2]
    assert cut_to_budget([3, 2, 1, 0], 3, "rows", tokens) == [3, 2, 1]
    assert cut_to_budget([3, 2, 1, 0], 30, "tokens", tokens) == [3, 2]
    assert cut_to_budget([3, 2, 1, 0], 0.5, "tokens", tokens) == [3]
    assert cut_to_budget([0, 1], 1.0, "rows", tokens) == [0, 1]
    assert rows_in_budget(0.05, "rows", 22947) == 1147
    assert rows_in_budget(0.29, "rows", 100) == 29


@pytest.mark.parametrize(
    ("budget", "unit", "message"),
    [(0.01, "rows", "selects nothing"), (9, "rows", "more than the 4 rows"), (3, "tokens", "selects no row")],
)
def test_budgets_that_cannot_be_kept(budget, unit, message):
    with pytest.raises(ValueError, match=message):
        cut_to_budget([3, 2, 1, 0], budget, unit, torch.tensor([5, 5, 10, 20]))


def test_sampling_from_the_top_draws_from_it_and_keeps_its_order():
    order, tokens = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist(), torch.full((100,), 7)
    best = sampled_from_top(order, 10, "rows", tokens, 1.0, 0)
    assert best == order[:10]
    drawn, other = (sampled_from_top(order, 10, "rows", tokens, 3.0, seed) for seed in (0, 1))
    assert drawn == [row for row in order if row in drawn] and len(drawn) == 10 and drawn != other
    assert set(drawn) <= set(order[:30]) and not set(drawn) <= set(order[:20])
    by_tokens = sampled_from_top(order, 70, "tokens", tokens, 3.0, 0)
    assert len(by_tokens) == 10 and set(by_tokens) <= set(order[:30])
    counts = torch.zeros(100)
    for seed in range(300):
        counts[sampled_from_top(order, 10, "rows", tokens, 3.0, seed)] += 1
    # each of the 30 best is drawn in a third of the cases
    assert counts[order[30:]].sum() == 0 and ((counts[order[:30]] / 300 - 1 / 3).abs() < 0.12).all()
