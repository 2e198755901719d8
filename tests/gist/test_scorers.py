"""Baselines against plain computations: RDS+, LESS, random draws, and the cheaper scorings."""

import math
from typing import Literal, get_args, get_type_hints

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from hf_gist import GISTConfig, Selection, per_sample_gradients_reference, select
from hf_gist.functional.selection.ranking import length_matched_order, uniform_order
from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.checks import check_distribution
from hf_gist.gist.scorers.base import CheckpointVectors, Scorer
from hf_gist.gist.scorers.less import LESS_SIZE, adam_checkpoint, check_optimizer
from hf_gist.gist.scorers.rds_plus import HiddenStateVectors
from hf_gist.gist.scorers.table import SCORERS
from hf_gist.gist.stream import check_stream_config
from hf_gist.gist.wording import SCORES, STRATEGIES
from hf_gist.gradients.models import adapter_parameters
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.hub.card_facts import is_gist, select_command, selection_facts
from hf_gist.report import save_selection_figures, summary_line, summary_table
from hf_gist.report.asked import asked
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


COLLATOR = PaddingCollator()


def selected(config, model=None, pool=None, targets=None, **kwargs):
    pool = token_rows(24, seed=1) if pool is None else pool
    targets = token_rows(5, seed=2) if targets is None else targets
    return select(
        model or lora_model(),
        as_dataset(pool),
        as_dataset(targets),
        config,
        data_collator=COLLATOR,
        progress=False,
        **kwargs,
    )


def gradients(model, rows, keep=lambda name: True):
    reference = per_sample_gradients_reference(model, rows, COLLATOR)
    return [{name: g for name, g in row.items() if keep(name)} for row in reference]


def flat(rows):
    return torch.stack([torch.cat([g.flatten() for g in row.values()]) for row in rows]).double()


def best_cosine(candidates, targets):
    return torch.nn.functional.cosine_similarity(candidates[:, None], targets[None], dim=2).max(1).values


# ---- RDS+ ----


def weighted_state(model, row):
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        states = model.get_base_model()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double()
    weights = torch.arange(1, len(states) + 1).double()
    return (states * (weights / weights.sum())[:, None]).sum(0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_rds_plus_equals_a_loop_over_rows(side):
    model, pool, targets = lora_model().eval(), token_rows(24, seed=1), token_rows(5, seed=2)
    got = select(
        model,
        as_dataset(pool),
        as_dataset(targets),
        GISTConfig(scorer="rds_plus", budget=4),
        data_collator=PaddingCollator(side),
        progress=False,
    )
    states = [torch.stack([weighted_state(model, row) for row in rows]) for rows in (pool, targets)]
    expected = best_cosine(*states)
    torch.testing.assert_close(got.scores.double(), expected, rtol=0, atol=1e-5)
    assert got.indices == expected.topk(4).indices.tolist()


def test_rds_plus_is_computed_in_fp32_under_autocast():
    model, dtypes = lora_model().eval(), []
    vectors = HiddenStateVectors(model)

    def sink(name, values):
        # what the library does with the values must not be rounded either
        dtypes.append((values.dtype, (values @ values.T).dtype))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors(COLLATOR(token_rows(3)), sink, TokenLoss(model))
    assert dtypes == [(torch.float32, torch.float32)]
    exact, rounded = (selected(GISTConfig(scorer="rds_plus", budget=4, scoring_dtype=d)) for d in ("auto", "bfloat16"))
    torch.testing.assert_close(rounded.scores, exact.scores, atol=0.03, rtol=0)


def test_rds_plus_of_a_classifier_is_refused():
    with pytest.raises(ValueError, match="no output head"):
        select(
            lora_model("bert"),
            as_dataset(token_rows(6, architecture="bert")),
            as_dataset(token_rows(2, architecture="bert")),
            GISTConfig(scorer="rds_plus", budget=2),
            data_collator=COLLATOR,
            progress=False,
        )


# ---- LESS ----


def trained(model, steps=3):
    """A model and an Adam optimizer that have taken a few steps."""
    optimizer = torch.optim.AdamW(adapter_parameters(model).values(), lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        batch = COLLATOR(token_rows(4, seed=10 + step))
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_the_adam_update_is_the_step_that_torch_takes():
    model = lora_model().eval()
    optimizer = trained(model)
    checkpoint = adam_checkpoint(model, optimizer, 1e-2, copy_weights=True)
    parameters = adapter_parameters(model)
    sample = gradients(model, token_rows(1, seed=3))[0]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = sample[name].clone()
    optimizer.step()
    for name, parameter in parameters.items():
        step = (before[name] - parameter.detach()) / 1e-2
        update = checkpoint.update(name, sample[name].flatten()[None])[0].view_as(step)
        torch.testing.assert_close(update, step, rtol=1e-3, atol=1e-3)


def sketch_matrix(sketch, rows):
    """Sketches of gradients by an explicit `[m, D]` matrix per parameter."""
    total = 0
    for name in rows[0]:
        values = torch.stack([row[name].flatten() for row in rows]).double()
        cells, signs = sketch._map_of(name, values.shape[1], torch.device("cpu"))
        matrix = torch.zeros(sketch.size, values.shape[1], dtype=torch.float64)
        matrix[cells, torch.arange(len(cells))] = signs.double()
        total = total + values @ matrix.T
    return total


def test_less_equals_a_sum_of_cosines_over_checkpoints():
    model, pool, targets = lora_model().eval(), token_rows(12, seed=1), token_rows(4, seed=2)
    for i, row in enumerate(targets):
        row["task"] = "ab"[i % 2]
    checkpoints = []
    for rate in (2e-3, 1e-3):
        checkpoints.append(adam_checkpoint(model, trained(model), rate, copy_weights=True))
    own = {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
    config = GISTConfig(scorer="less", budget=3, target_group_column="task", seed=5)
    got = selected(config, model, pool, targets, checkpoints=checkpoints)
    assert all(torch.equal(p, own[name]) for name, p in adapter_parameters(model).items())

    cosines = 0
    for number, checkpoint in enumerate(checkpoints):
        for name, p in adapter_parameters(model).items():
            p.data.copy_(checkpoint.weights[name])
        sketch = CountSketch(LESS_SIZE, 5 + number)
        updates = [
            {name: checkpoint.update(name, g.flatten()[None])[0] for name, g in row.items()}
            for row in gradients(model, pool)
        ]
        candidate, target = sketch_matrix(sketch, updates), sketch_matrix(sketch, gradients(model, targets))
        pairs = torch.nn.functional.cosine_similarity(candidate[:, None], target[None], dim=2)
        cosines = cosines + checkpoint.learning_rate / 3e-3 * pairs
    expected = torch.stack([cosines[:, 0::2].mean(1), cosines[:, 1::2].mean(1)], 1).max(1).values
    torch.testing.assert_close(got.scores.double(), expected, rtol=0, atol=2e-5)
    assert got.indices == expected.topk(3).indices.tolist()


def test_sketched_inner_products_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 500, generator=generator)
    products = []
    for seed in range(400):
        sketches = torch.zeros(2, 64)
        CountSketch(64, seed).add(sketches, "w", torch.cat([x, y]))
        products.append(float(sketches[0] @ sketches[1]))
    products, exact = torch.tensor(products), float((x * y).sum())
    # standard deviation of a dense random projection to 64 values
    expected = float(((x.norm() * y.norm()) ** 2 + exact**2) / 64) ** 0.5
    assert abs(products.mean() - exact) < 4 * expected / 20
    assert 0.8 < products.std() / expected < 1.2


def test_less_without_adam_says_what_to_do():
    with pytest.raises(ValueError, match="needs the optimizer state of the warm-up"):
        selected(GISTConfig(scorer="less", budget=3))
    model = lora_model()
    with pytest.raises(ValueError, match="needs Adam's moments, and SGD has none"):
        adam_checkpoint(model, torch.optim.SGD(adapter_parameters(model).values(), lr=0.1), 0.1)


# ---- Random draws and the gradient norm ----


def test_random_is_a_seeded_draw_without_scoring():
    first, again = (selected(GISTConfig(strategy="random", budget=6)) for _ in range(2))
    other = selected(GISTConfig(strategy="random", budget=6, seed=7))
    assert first.indices == again.indices == uniform_order(torch.ones(24, dtype=torch.bool), 42)[:6]
    assert set(first.indices) != set(other.indices)
    assert first.measurements.coordinates.shape == (24, 0) and first.rank == 0
    assert first.scores.topk(6).indices.tolist() == first.indices
    with pytest.raises(ValueError, match="drawn without scoring"):
        first.reselect(strategy="max")


def test_random_rows_are_saved_and_told(tmp_path):
    drawn = selected(GISTConfig(strategy="length_matched_random", budget=6))
    drawn.save(tmp_path)
    assert Selection.load(tmp_path).indices == drawn.indices
    assert summary_line(drawn).startswith("length-matched random draw: kept 6 of 24 rows")
    assert "rank" not in summary_table(drawn)
    assert [path.name for path in save_selection_figures(drawn, tmp_path)] == ["lengths.png"]


def test_length_matched_rows_have_the_lengths_of_the_targets():
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(1, 200, (4000,), generator=generator)
    targets = torch.cat([torch.randint(90, 110, (75,), generator=generator), torch.full((25,), 10)])
    eligible = torch.ones(4000, dtype=torch.bool)
    order = torch.tensor(length_matched_order(pool, targets, eligible, seed=0))
    assert sorted(order.tolist()) == list(range(4000))
    kept = pool[order[:200]]
    assert abs(int((kept <= 10).sum()) - 50) <= 2 and int(((kept > 10) & (kept < 90)).sum()) <= 30
    assert abs(float(kept.float().median() - targets.float().median())) < 12
    other = length_matched_order(pool, targets, eligible, seed=1)
    assert other[:200] != order[:200].tolist()
    eligible[order[:100]] = False
    assert not set(length_matched_order(pool, targets, eligible, seed=0)) & set(order[:100].tolist())


def test_gradient_norm_takes_the_largest_gradients():
    got = selected(GISTConfig(score="grad_norm", budget=4))
    norms = flat(gradients(lora_model(), token_rows(24, seed=1))).norm(dim=1)
    assert got.indices == norms.topk(4).indices.tolist()
    assert summary_line(got).startswith("gradient norm: kept 4 of 24")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scorer": "less", "score": "cosine"}, "`score` must be left at its default with `scorer='less'`"),
        ({"score": "grad_norm", "strategy": "round_robin"}, "`strategy` must be 'max' with `score='grad_norm'`"),
        ({"scoring_cost": 0.5, "strategy": "random"}, "`scoring_cost` must be left out with `strategy='random'`"),
        ({"scoring_cost": 0.5, "score": "grad_norm"}, "`scoring_cost` must be left out with `score='grad_norm'`"),
        ({"scoring_cost": 0.0}, "`scoring_cost` must be a number of passes over the pool above 0"),
        ({"scoring_cost": math.inf}, "`scoring_cost` must be a number of passes over the pool above 0"),
        ({"sketch_dim": 8, "scorer": "less"}, "`sketch_dim` must be left out with `scorer='less'`"),
        ({"score_layers": 0}, "`score_layers` must be at least 1"),
    ],
)
def test_combinations_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GISTConfig(**values)


# ---- Cheaper scorings ----


@pytest.mark.parametrize("inputs", [False, True], ids=["", "inputs require gradients"])
def test_score_layers_scores_by_the_last_blocks_and_stops_there(inputs):
    model, pool, targets = lora_model(), token_rows(24, seed=1), token_rows(5, seed=2)
    if inputs:
        # as with activation checkpointing, the default of SFTTrainer
        model.enable_input_require_grads()
    blocks = model.get_base_model().model.layers
    reached = []
    blocks[1].register_forward_pre_hook(lambda _, args: reached.append(args[0].requires_grad))
    got = selected(GISTConfig(score_layers=1, score="cosine", budget=4), model, pool, targets)
    # the first pass is the trial of the whole adapter on the longest rows
    assert reached[:2] == [True, True] and reached[2:] == [False, False]

    def last(name):
        return ".layers.1." in name

    expected = best_cosine(*(flat(gradients(model, rows, last)) for rows in (pool, targets)))
    torch.testing.assert_close(got.scores.double(), expected, rtol=0, atol=1e-5)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    with pytest.raises(ValueError, match="the adapter is on 2 blocks only"):
        selected(GISTConfig(score_layers=3, budget=4), model)


def test_optimizers_with_moments_of_another_kind_are_refused_before_the_first_step():
    Accelerator()  # AcceleratedOptimizer reads its state
    weights = [torch.nn.Parameter(torch.zeros(3))]
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        check_optimizer(kind(weights))
        check_optimizer(AcceleratedOptimizer(kind(weights)))
    with pytest.raises(ValueError, match="got Adamax"):
        check_optimizer(AcceleratedOptimizer(torch.optim.Adamax(weights)))


def test_a_larger_sketch_is_closer_to_the_exact_scores():
    pool, targets = token_rows(60, seed=1), token_rows(6, seed=2)
    exact = selected(GISTConfig(budget=6, score="cosine"), pool=pool, targets=targets)
    errors = []
    for dim in (64, 1024, 16384):
        sketched = selected(GISTConfig(budget=6, score="cosine", sketch_dim=dim), pool=pool, targets=targets)
        errors.append(float((sketched.scores - exact.scores).abs().mean()))
        # a random projection to `dim` values is off by about its root
        assert errors[-1] < 2 / dim**0.5
        torch.testing.assert_close(sketched.measurements.norms, exact.measurements.norms, rtol=6 / dim**0.5, atol=0)
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_sketched_scores_are_those_of_the_sketched_gradients():
    model, pool, targets = lora_model(), token_rows(20, seed=1), token_rows(5, seed=2)
    got = selected(GISTConfig(budget=4, score="cosine", sketch_dim=100, seed=3), model, pool, targets)
    vectors = [sketch_matrix(CountSketch(100, 3), gradients(model, rows)) for rows in (pool, targets)]
    torch.testing.assert_close(got.scores.double(), best_cosine(*vectors), rtol=0, atol=1e-5)


# ---- The table ----


def test_the_table_and_the_configuration_have_the_same_scorers():
    assert tuple(SCORERS) == get_args(get_type_hints(GISTConfig)["scorer"])
    assert all(name == scorer.name for name, scorer in SCORERS.items())
    # what GISTConfig's rules on `score` and `sketch_dim` rely on
    assert [name for name, scorer in SCORERS.items() if scorer.in_subspace or scorer.large_basis] == ["gist"]


def test_every_score_and_strategy_has_words():
    hints = get_type_hints(GISTConfig)
    assert tuple(SCORES) == get_args(hints["score"]) and tuple(STRATEGIES) == get_args(hints["strategy"])


class FirstTokens:
    """Represents a row by its first token, which needs no model."""

    def __init__(self, model):
        self.model = model
        self.sizes = {"first": 40}

    def __call__(self, batch, gradients, loss):
        gradients("first", torch.nn.functional.one_hot(batch["input_ids"][:, 0] % 40, 40).float())
        labelled = (batch["labels"] != -100).sum(1)
        return torch.zeros(len(labelled)), labelled


def first_tokens(model, config, checkpoints):
    vectors = FirstTokens(model)
    return [CheckpointVectors(vectors, vectors, model)]


def test_a_new_scorer_is_one_entry(monkeypatch, tmp_path):
    """Selecting, saving, the report and the card know a scorer from its entry in the table alone."""
    scorer = Scorer("first_token", "First token", "its first token (a baseline)", first_tokens, forward_only=True)
    monkeypatch.setitem(SCORERS, scorer.name, scorer)
    # the names are written in the configuration, which does not know the table
    monkeypatch.setitem(GISTConfig.__annotations__, "scorer", Literal["gist", "rds_plus", "less", "first_token"])
    targets = token_rows(3, seed=2)
    got = selected(GISTConfig(scorer="first_token", budget=4), targets=targets, output_dir=tmp_path)
    wanted = {row["input_ids"][0] % 40 for row in targets}
    first = torch.tensor([row["input_ids"][0] % 40 in wanted for row in token_rows(24, seed=1)])
    torch.testing.assert_close(got.scores, first.float())
    assert Selection.load(tmp_path).indices == got.indices
    scoring = next(phase for phase in got.costs.phases if phase.phase == "scoring")
    assert scoring.forward_flops > 0 and scoring.backward_flops == 0
    assert summary_line(got).startswith("First token: kept 4 of 24 rows")
    asked_for = dict(asked(got).tables[0].rows)
    assert asked_for["row representation"] == "its first token (a baseline)"
    assert asked_for["score"] == "plain cosine with the target directions"
    facts = dict(selection_facts(got))
    assert "row representation: its first token (a baseline)" in facts["Rule"] and "Subspace" in facts
    assert "Gradient energy in it" not in facts and not is_gist(got)
    assert "--less_checkpoints" not in select_command(got, "hf://user/model")


def test_a_new_scorer_with_adam_state_has_its_limits(monkeypatch):
    scorer = Scorer("first_token", "First token", "its first token", first_tokens, needs_adam=True)
    monkeypatch.setitem(SCORERS, scorer.name, scorer)
    monkeypatch.setitem(GISTConfig.__annotations__, "scorer", Literal["gist", "first_token"])
    config = GISTConfig(scorer="first_token", budget=2)
    with pytest.raises(ValueError, match="`scorer='first_token'` scores at several checkpoints"):
        check_stream_config(config)
    with pytest.raises(ValueError, match="`scorer='first_token'` does not work under DeepSpeed"):
        check_distribution(DistributedType.DEEPSPEED, config)
