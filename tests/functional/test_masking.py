"""The draws and what is reported about them, without a model."""

import math

import pytest
import torch

from hf_gist.config.gast import GASTConfig
from hf_gist.functional import mask_statistics, masking
from hf_gist.functional.group_gradients import GroupGradients, SupportGradient
from hf_gist.functional.sample_gradients import DenseGradient, FactoredGradient, sample_gradient


VALID = torch.ones(4, dtype=torch.bool)


def draws(alignments, count, **options):
    options = {"keep": 2, "mode": "stochastic", "temperature": 1.0, **options}
    noise = masking.gumbel_noise(0, 0, 0, count, len(alignments))
    return torch.stack([masking.draw(alignments, row, VALID[: len(alignments)], **options) for row in noise])


def test_draws_follow_the_softmax_without_replacement():
    alignments = torch.tensor([2.0, 0.5, -1.0, 0.0])
    p = torch.softmax(masking.standardise(alignments, VALID), 0)
    found = draws(alignments, 6000).float().mean(0)
    # inclusion probability of two successive draws
    expected = torch.stack([p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)])
    assert torch.allclose(found, expected, atol=0.025)


def test_modes():
    alignments = torch.tensor([2.0, 0.5, -1.0, 0.0])
    assert draws(alignments, 5, mode="topk").tolist() == [[True, True, False, False]] * 5
    assert draws(alignments, 5, mode="all").all()
    assert torch.allclose(draws(alignments, 6000, mode="random").float().mean(0), torch.full((4,), 0.5), atol=0.025)
    cold = draws(alignments, 200, temperature=0.01)
    assert (cold == torch.tensor([True, True, False, False])).all()
    hot = draws(alignments, 6000, temperature=1e6).float().mean(0)
    assert torch.allclose(hot, torch.full((4,), 0.5), atol=0.025)


def test_topk_without_a_difference_does_not_follow_the_order_of_the_batch():
    assert len({tuple(row) for row in draws(torch.zeros(4), 50, mode="topk").tolist()}) > 1


def test_samples_without_a_loss_are_never_kept():
    valid = torch.tensor([True, False, True, True])
    noise = masking.gumbel_noise(0, 0, 0, 100, 4)
    for row in noise:
        kept = masking.draw(torch.tensor([0.0, 9.0, 1.0, 2.0]), row, valid, keep=2, mode="stochastic", temperature=1.0)
        assert not kept[1] and kept.sum() == 2
    assert masking.sample_scales(kept, valid, True).sum() == 3
    few = torch.tensor([True, False, False, False])
    kept = masking.draw(torch.zeros(4), noise[0], few, keep=2, mode="topk", temperature=1.0)
    assert kept.tolist() == few.tolist()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflow_keeps_everything_so_that_a_gradient_scaler_sees_it(bad):
    alignments = torch.tensor([0.0, bad, 1.0, 2.0])
    assert draws(alignments, 3).all()


def test_scale_of_the_loss_does_not_matter():
    alignments = torch.tensor([1e-30, 3e-30, -2e-30, 0.0])
    for factor in (1.0, 1e25, 1e50):
        scaled = (alignments.double() * factor).float()
        assert torch.allclose(masking.standardise(scaled, VALID), masking.standardise(alignments, VALID), atol=1e-5)
    assert masking.standardise(torch.full((4,), 0.1), VALID).tolist() == [0.0] * 4


def test_noise_is_a_function_of_seed_rank_and_counter_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    noise = masking.gumbel_noise(1, 0, 5, 3, 8)
    assert torch.equal(noise, masking.gumbel_noise(1, 0, 5, 3, 8))
    for other in ((2, 0, 5), (1, 1, 5), (1, 0, 6)):
        assert not torch.equal(noise, masking.gumbel_noise(*other, 3, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_support_rows_are_permutations_in_turn():
    rows = masking.support_rows(0, 5, 0, 12)
    assert sorted(rows[:5]) == sorted(rows[5:10]) == list(range(5))
    assert rows[3:9] == masking.support_rows(0, 5, 3, 6)
    assert masking.support_rows(0, 2, 0, 7)[:2] != [] and len(masking.support_rows(0, 2, 0, 7)) == 7


def test_kept_count():
    assert [masking.kept_count(k, 16) for k in (8, 20, 0.5, 1.0, 0.01)] == [8, 16, 8, 16, 1]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_batch_that_says_nothing_is_not_counted(broken):
    masks = torch.tensor([[True, True, False, False]])
    uniform = masking.log_probabilities(torch.zeros(4), VALID, 1.0)[None]
    one, other = (mask_statistics.MaskStatistics() for _ in range(2))
    nobody = torch.zeros(4, dtype=torch.bool)
    for statistics in (one, other):
        statistics.add(torch.full((1, 4), 0.25), masks, uniform, VALID)
    other.add(torch.full((1, 4), broken), masks, uniform, VALID)
    other.add(torch.zeros(1, 4), masks, masking.log_probabilities(torch.zeros(4), nobody, 1.0)[None], nobody)
    assert one.means(one.sums) == other.means(other.sums)


def test_statistics():
    masks = torch.tensor([[True, True, False, False], [True, False, True, False]])
    assert float(mask_statistics.layer_agreement(masks)) == pytest.approx(0.5)
    assert float(mask_statistics.layer_agreement(masks[:1])) == 1.0
    uniform = masking.log_probabilities(torch.zeros(4), VALID, 1.0)
    assert float(mask_statistics.normalised_entropy(uniform)) == pytest.approx(1.0)
    certain = masking.log_probabilities(torch.tensor([0.0, -1e4, -1e4, -1e4]), VALID, 1.0)
    assert float(mask_statistics.normalised_entropy(certain)) == pytest.approx(0.0)
    statistics = mask_statistics.MaskStatistics(may_keep_none=True)
    statistics.add(torch.full((2, 4), 0.25), masks, torch.stack([uniform, uniform]), VALID)
    means = statistics.means(statistics.sums * 3)
    assert means == pytest.approx(
        {
            "alignment": 0.25,
            "kept_fraction": 0.5,
            "draw_entropy": 1.0,
            "layer_agreement": 0.5,
            "without_sample": 0.0,
        }
    )


@pytest.mark.parametrize("shape", [(5, 3, 7, 4), (5, 2, 40, 30)])
def test_dense_and_factored_gradients_agree(shape):
    batch, tokens, inputs, outputs = shape
    torch.manual_seed(0)
    a, d = torch.randn(batch, tokens, inputs), torch.randn(batch, tokens, outputs)
    support, scales = torch.randn(outputs, inputs), torch.rand(batch)
    dense, factored = DenseGradient(torch.bmm(d.transpose(1, 2), a)), FactoredGradient(a, d)
    for method, argument in (("dot", support), ("squares", None), ("weighted_sum", scales)):
        arguments = () if argument is None else (argument,)
        assert torch.allclose(
            getattr(dense, method)(*arguments), getattr(factored, method)(*arguments), rtol=1e-3, atol=1e-3
        )
    found = sample_gradient("linear", "weight", a, d)
    assert found.prefers_factors == (inputs == 40)
    assert torch.equal(found.dense().values, dense.values)
    assert torch.allclose(found.weighted_sum(scales), dense.weighted_sum(scales), atol=1e-4)


def reported(seed=0, batch=5):
    """Of a group: two small matrices, a large one, and a bias in another dtype."""
    torch.manual_seed(seed)
    made = {}
    for name, tokens, inputs, outputs in (("a", 30, 7, 4), ("b", 30, 3, 6), ("large", 2, 40, 30)):
        made[name] = FactoredGradient(torch.randn(batch, tokens, inputs), torch.randn(batch, tokens, outputs))
    made["bias"] = DenseGradient(torch.randn(batch, 4).bfloat16())
    return made


def test_the_gradients_of_a_group_are_those_of_its_matrices():
    apart = reported()
    shapes = {name: gradient.dense().values.shape[1:] for name, gradient in apart.items()}
    group = GroupGradients(sum(shape.numel() for shape in shapes.values()))
    for name, gradient in apart.items():
        group.add(name, gradient, shapes[name])
        assert name in group
    assert list(group.shapes) == ["a", "b"] and list(group.others) == ["large", "bias"]
    support = SupportGradient({name: torch.randn(shape) for name, shape in shapes.items()})
    samples, appended, scales = slice(0, 3), slice(3, None), torch.rand(3)
    part = group.rows(samples)
    torch.testing.assert_close(part.dot(support), sum(g.dot(support[n])[samples] for n, g in apart.items()))
    torch.testing.assert_close(part.squares(), sum(g.squares()[samples] for g in apart.values()))
    torch.testing.assert_close(part.square_of(support), sum(s.square().sum() for s in support.values()))
    sums, totals = part.weighted_sum(scales), SupportGradient()
    group.rows(appended).add_sum_to(totals)
    for name, gradient in apart.items():
        values = gradient.dense().values
        torch.testing.assert_close(sums[name], torch.einsum("b,b...->...", scales.to(values.dtype), values[samples]))
        torch.testing.assert_close(totals[name], values[appended].float().sum(0), rtol=1e-2, atol=1e-2)
    assert torch.equal(totals.flat(["a", "b"]), torch.cat([totals["a"].flatten(), totals["b"].flatten()]))


def draw_step_by_step(alignments, noise, valid, keep, temperature):
    """The same draw from the probabilities of the softmax."""
    chosen = alignments[valid].double()
    scores = (chosen - chosen.mean()) / chosen.std(correction=0)
    keys = torch.log_softmax(scores / temperature, 0) + noise[valid]
    kept = torch.zeros_like(valid)
    kept[valid.nonzero()[:, 0][keys.topk(min(keep, len(keys))).indices]] = True
    return kept


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_a_draw_is_that_from_the_probabilities(temperature):
    torch.manual_seed(0)
    noise = masking.gumbel_noise(0, 0, 0, 200, 9)
    for row in noise:
        alignments, valid = torch.randn(9), torch.rand(9) > 0.2
        found = masking.draw(alignments, row, valid, keep=4, mode="stochastic", temperature=temperature)
        assert torch.equal(found, draw_step_by_step(alignments, row, valid, 4, temperature))


def test_standardising_all_groups_at_once_is_standardising_each():
    alignments, valid = torch.randn(3, 6), torch.tensor([True] * 5 + [False])
    together = masking.standardise(alignments, valid)
    assert torch.equal(together, torch.stack([masking.standardise(row, valid) for row in alignments]))


def test_alignments_of_half_precision_do_not_overflow():
    # scaled by a GradScaler: every gradient is finite in fp16, their product with the support in fp16 is not
    torch.manual_seed(0)
    a, d = torch.randn(4, 6, 256).half(), (8 * torch.randn(4, 6, 8)).half()
    a[..., 0] = 90
    support = 900 * torch.randn(8, 256).half()
    exact = FactoredGradient(a.double(), d.double())
    expected = (exact.d * (exact.a @ support.double().T)).sum((1, 2))
    found = FactoredGradient(a, d).dot(support)
    assert not torch.isfinite(a @ support.T).all()
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02 * expected.abs().max().item())
    assert torch.equal(FactoredGradient(a, d).dot(torch.zeros_like(support)), torch.zeros(4))


def test_config_reports_every_problem_at_once_and_round_trips():
    with pytest.raises(ValueError, match="keep.*temperature.*support_every.*start_step"):
        GASTConfig(keep=1.5, temperature=0.0, support_every=0, start_step=-1)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        GASTConfig(mode="best")
    config = GASTConfig(keep=8, mode="random", source_column="source")
    assert GASTConfig.from_yaml(config.to_yaml()) == GASTConfig.from_json(config.to_json()) == config
