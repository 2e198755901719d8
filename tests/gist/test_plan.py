"""`scoring_cost`: the rows that are scored, what that costs, and what is refused before any row is scored."""

import dataclasses

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset

from hf_gist import GISTConfig, Selection, select
from hf_gist.costs.ledger import PhaseCost
from hf_gist.data.leaks import find_leaks
from hf_gist.errors import DuplicateRowsWarning, LeakWarning
from hf_gist.gist.inputs import prepare
from hf_gist.gist.scoring_cost.nearest import nearest_order
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gradients.passes import DatasetPass
from hf_gist.report import summary_table
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, patterned_rows, token_rows


POOL = patterned_rows(60)
TARGETS = patterned_rows(4, seed=3)
COLLATOR = PaddingCollator()


def chosen(pool=POOL, targets=TARGETS, **settings):
    warmup = settings.pop("warmup", None)
    config = GISTConfig(**{"budget": 6} | settings)
    pool, targets = as_dataset(pool), as_dataset(targets)
    return select(lora_model(), pool, targets, config, data_collator=COLLATOR, progress=False, warmup=warmup)


def plan_of(pool=POOL, warmup=None, passes=None, **settings):
    config = GISTConfig(**{"budget": 6} | settings)
    model = lora_model()
    inputs = prepare(model, as_dataset(pool), as_dataset(TARGETS), config, COLLATOR)
    inputs = dataclasses.replace(inputs, leaks=find_leaks(inputs.pool, inputs.targets))
    return plan_scoring(DatasetPass(model, COLLATOR, 4096, progress=False), inputs, config, warmup, passes)


@pytest.mark.parametrize(
    ("cost", "settings"),
    [(0.5, {}), (0.5, {"score": "cosine", "strategy": "round_robin"}), (0.25, {"scorer": "rds_plus"})],
    ids=str,
)
def test_the_nearest_rows_are_scored_exactly_and_no_others(tmp_path, cost, settings):
    exact = chosen(**settings)
    found = chosen(scoring_cost=cost, **settings)
    rows = found.measurements.scored.nonzero().flatten().tolist()
    eligible = exact.measurements.eligible(True, True)
    assert rows == sorted(nearest_order(lora_model(), as_dataset(POOL), as_dataset(TARGETS), eligible)[: len(rows)])
    assert 6 <= len(rows) < 60
    torch.testing.assert_close(
        found.measurements.coordinates[rows], exact.measurements.coordinates[rows], rtol=0, atol=1e-5
    )
    assert torch.isneginf(found.scores[~found.measurements.scored]).all() and set(found.indices) <= set(rows)
    # of the scored rows, the best are selected
    masked = dataclasses.replace(exact.measurements, scored=found.measurements.scored)
    assert found.indices == Selection.choose(masked, exact.config).indices
    found.save(tmp_path)
    again = Selection.load(tmp_path)
    assert again.indices == found.indices
    assert torch.equal(again.measurements.scored, found.measurements.scored)
    assert again.manifest["candidates_scored"] == len(rows)
    assert again.manifest["candidates_not_looked_at"] == 60 - len(rows)
    assert "the others were not looked at" in summary_table(again)


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("cost", [0.35, 0.6, 0.9])
def test_the_ledger_shows_what_was_planned_and_no_more_than_was_allowed(cost, warmup):
    one_pass = chosen().costs.pool_pass_flops
    before = PhaseCost("warm-up", 1.0, forward_flops=warmup * one_pass) if warmup else None
    found = chosen(scoring_cost=cost, warmup=before)
    spent = found.costs.selection_passes()
    plan = found.manifest["scoring_plan"]
    assert plan["warmup"] == pytest.approx(warmup) and spent <= cost
    # the plan counts a direction of the subspace for each target; the ledger those that are left
    assert spent == pytest.approx(plan["total"], abs=0.01) and found.costs.to_dict()["selection_passes"] == spent
    # no further row would have been paid for, not even a long one
    assert cost - plan["total"] < 0.05


def test_a_cost_that_pays_for_everything_is_the_exact_selection():
    exact = chosen()
    found = chosen(scoring_cost=3.0)
    assert found.measurements.scored is None and found.indices == exact.indices
    assert torch.equal(found.scores, exact.scores)


def test_prices_of_rows_add_up_to_the_price_of_the_pool():
    every = plan_of(scoring_cost=100.0)
    layers = plan_of(scoring_cost=100.0, score_layers=1)
    hidden = plan_of(scoring_cost=100.0, scorer="rds_plus")
    assert every.rows is None and hidden.scoring < layers.scoring < every.scoring
    assert plan_of(scoring_cost=100.0, passes=4).scoring == pytest.approx(4 * every.scoring)
    ledger = chosen().costs
    scoring = next(phase for phase in ledger.phases if phase.phase == "scoring")
    assert every.scoring == pytest.approx(scoring.flops / ledger.pool_pass_flops, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "warmup", "message"),
    [
        ({"scoring_cost": 0.05}, None, r"pays for scoring 0 rows.*needs 6.*Set it to 0\.\d+ or more"),
        ({"scoring_cost": 0.3, "budget": 40}, None, r"`scoring_cost=0.3` pays for scoring \d+ rows.*needs 40"),
        ({"scoring_cost": 0.3, "sample_from_top": 5.0}, None, r"`sample_from_top` needs 30"),
        ({"scoring_cost": 0.3}, 0.29, r"after 0.290 training passes over the pool for the warm-up"),
        ({"scoring_cost": 0.3, "budget": 0.9, "budget_unit": "tokens"}, None, "pays for scoring"),
    ],
    ids=str,
)
def test_a_cost_that_pays_for_too_little_is_refused_with_what_would_do(settings, warmup, message):
    one_pass = chosen().costs.pool_pass_flops
    before = None if warmup is None else PhaseCost("warm-up", 1.0, forward_flops=warmup * one_pass)
    with pytest.raises(ValueError, match=message) as caught:
        chosen(warmup=before, **settings)
    if settings.get("budget_unit") is None:
        enough = float(str(caught.value).split("Set it to ")[1].split(" ")[0])
        found = chosen(warmup=before, **settings | {"scoring_cost": enough})
        assert len(found.indices) == settings.get("budget", 6)


def test_rows_that_cannot_be_selected_are_not_paid_for():
    unlabelled = [row | {"labels": [-100] * len(row["labels"])} for row in token_rows(10, seed=8)]
    pool = [*POOL, *unlabelled, *TARGETS]
    plan = plan_of(pool, scoring_cost=0.99)
    assert plan.rows is not None and max(plan.rows) < 60


def test_another_selection_from_the_scores_is_refused_where_rows_are_missing():
    found = chosen(scoring_cost=0.5)
    scored = int(found.measurements.scored.sum())
    assert len(found.reselect(budget=scored).indices) == scored
    for changes, message in [
        ({"budget": scored + 1}, f"needs {scored + 1} rows to choose from, .* have {scored}, and {60 - scored} rows"),
        ({"sample_from_top": 9.0}, "with `sample_from_top=9` needs 54 rows to choose from"),
        ({"budget": 0.9, "budget_unit": "tokens"}, r"needs [\d,]+ tokens to choose from"),
        ({"strategy": "random"}, "`strategy='random'` chooses from the whole pool"),
        ({"strategy": "length_matched_random"}, "chooses from the whole pool"),
        ({"score": "grad_norm"}, "`score='grad_norm'` chooses from the whole pool"),
        (
            {"drop_target_duplicates": False},
            "`drop_target_duplicates=False` lets rows be selected that were not looked at",
        ),
        ({"drop_pool_duplicates": False}, "`drop_pool_duplicates=False` lets rows"),
        ({"scoring_cost": 0.9}, "scoring_cost cannot be changed"),
    ]:
        with pytest.raises(ValueError, match=message):
            found.reselect(**changes)
    assert len(found.reselect(strategy="mean", budget=3).indices) == 3


@pytest.mark.parametrize(
    "quotas",
    [
        {"source_shares": {"family0": 0.5}},
        {"source_shares": {"family0": 0.5, "family2": 0.5}},
        {"source_max": {"family0": 1, "family1": 2}},
        {"source_max": {"family0": 0, "family1": 0, "family2": 3}},
        {"source_shares": {"family3": 0.3}, "source_max": {"family0": 0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"sample_from_top": 1.5}], ids=str)
def test_sources_get_what_is_theirs_within_the_cost(quotas, more):
    settings = {"source_column": "source"} | quotas | more
    exact = chosen(**settings)
    found = chosen(scoring_cost=0.5, **settings)
    assert found.costs.selection_passes() <= 0.5 and found.manifest["scoring_plan"]["total"] <= 0.5
    assert len(found.indices) == len(exact.indices)
    for use, other in zip(found.source_uses, exact.source_uses, strict=True):
        assert use.got >= min(other.got, use.wanted or 0) and (use.most is None or use.got <= use.most)


def test_a_rare_source_that_costs_too_much_is_refused_with_what_would_do():
    long = [row | {"source": "rare"} for row in token_rows(10, seed=8, low=40, high=60)]
    pool = [*[{**row, "source": "common"} for row in POOL], *long]
    settings = {"budget": 16, "source_column": "source", "source_max": {"common": 8}}
    with pytest.raises(ValueError, match="`scoring_cost=0.4` pays for scoring") as caught:
        chosen(pool, scoring_cost=0.4, **settings)
    enough = float(str(caught.value).split("Set it to ")[1].split(" ")[0])
    found = chosen(pool, scoring_cost=enough, **settings)
    assert len(found.indices) == len(chosen(pool, **settings).indices)


def test_the_advice_holds_for_a_pool_of_copies_and_unlabelled_rows():
    pool = [*POOL[:14] * 3, *[row | {"labels": [-100] * len(row["labels"])} for row in token_rows(10, seed=8)]]
    with pytest.warns(DuplicateRowsWarning):
        exact = chosen(pool, budget=12, sample_from_top=3.0)
        with pytest.raises(ValueError, match="needs 14") as caught:
            chosen(pool, budget=12, sample_from_top=3.0, scoring_cost=0.15)
        enough = float(str(caught.value).split("Set it to ")[1].split(" ")[0])
        found = chosen(pool, budget=12, sample_from_top=3.0, scoring_cost=enough)
    assert sorted(found.indices) == sorted(exact.indices)


def test_a_budget_in_tokens_is_filled_as_from_all_rows():
    near = [{**row, "labels": [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]} for row in POOL[:30]]
    settings = {"budget": 150, "budget_unit": "tokens"}
    exact = chosen([*near, *POOL[30:]], **settings)
    with pytest.raises(ValueError, match="pays for scoring") as caught:
        chosen([*near, *POOL[30:]], scoring_cost=0.12, **settings)
    enough = float(str(caught.value).split("Set it to ")[1].split(" ")[0])
    found = chosen([*near, *POOL[30:]], scoring_cost=enough, **settings)
    tokens = [int(each.measurements.label_tokens[each.indices].sum()) for each in (exact, found)]
    assert tokens[1] >= 150 - 15 and tokens[0] >= 150 - 15


def test_a_pool_without_a_row_to_select_is_refused_before_scoring():
    with (
        pytest.warns(LeakWarning),
        pytest.raises(ValueError, match="No row of the pool is left to train on: all 4 are"),
    ):
        chosen(TARGETS, budget=2, scoring_cost=0.5)


def test_rows_that_the_collator_tokenizes_are_refused():
    class Texts(TorchDataset):
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return {"text": str(index)}

    def collate(rows):
        return COLLATOR([POOL[int(row["text"])] for row in rows])

    config = GISTConfig(budget=6, scoring_cost=0.5)
    with pytest.raises(ValueError, match="`scoring_cost=0.5` needs the lengths of the rows"):
        select(lora_model(), Texts(POOL), Texts(TARGETS), config, data_collator=collate, progress=False)
