import dataclasses

import pytest

from hf_gist import GISTConfig
from hf_gist.config.base import fraction_or_count


def test_round_trips():
    config = GISTConfig(budget=500, rank=8, target_group_column="task", after_selection="restart")
    assert GISTConfig.from_json(config.to_json()) == config
    assert GISTConfig.from_yaml(config.to_yaml()) == config
    assert GISTConfig.from_yaml("") == GISTConfig()


def test_exponents_in_yaml_are_numbers():
    config = GISTConfig.from_yaml("budget: 5e-2\nexplained_variance: 9.5e-1\ntarget_group_column: 1e\n")
    assert config == GISTConfig(budget=0.05, explained_variance=0.95, target_group_column="1e")


def test_the_type_of_a_budget_survives():
    assert isinstance(GISTConfig.from_json(GISTConfig(budget=1).to_json()).budget, int)
    assert isinstance(GISTConfig.from_yaml(GISTConfig(budget=1.0).to_yaml()).budget, float)
    assert fraction_or_count("1") == 1 and isinstance(fraction_or_count("1"), int)
    assert isinstance(fraction_or_count("1.0"), float)


def test_all_range_problems_are_reported_together():
    with pytest.raises(ValueError) as error:
        GISTConfig(budget=0, warmup_ratio=1.0, rank=0, explained_variance=0.0)
    for name in ("budget", "warmup_ratio", "rank", "explained_variance"):
        assert f"`{name}`" in str(error.value)


@pytest.mark.parametrize("budget", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_budgets_out_of_range(budget):
    with pytest.raises(ValueError, match="`budget`"):
        GISTConfig(budget=budget)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budgets": 0.1}, "unknown key.*budgets.*Known keys: budget"),
        ({"budget": "5%"}, "`budget` must be int or float, got '5%'"),
        ({"budget": True}, "`budget` must be int or float"),
        (
            {"strategy": "best"},
            "`strategy` must be one of 'max', 'mean', 'round_robin', 'random', 'length_matched_random', got 'best'",
        ),
        ({"rank": 2.5}, "`rank` must be int or null"),
        (["budget"], "expected a mapping"),
    ],
)
def test_wrong_files_say_what_is_wrong(values, message):
    with pytest.raises(ValueError, match=message):
        GISTConfig.from_dict(values)


def test_the_recommended_setting():
    """Rows are drawn from the best ones at small shares of the pool only, and where all rows are scored."""
    plain = GISTConfig(score="cosine", strategy="round_robin")
    drawn = dataclasses.replace(plain, sample_from_top=3.0)
    assert GISTConfig.recommended() == drawn
    assert GISTConfig.recommended(0.02) == dataclasses.replace(drawn, budget=0.02)
    # the share that a number of rows is, is not known yet
    for budget in (0.2, 1.0, 500):
        assert GISTConfig.recommended(budget) == dataclasses.replace(plain, budget=budget)
    assert GISTConfig.recommended(0.05, scoring_cost=0.25) == dataclasses.replace(plain, scoring_cost=0.25)
    other = GISTConfig.recommended(budget=0.05, sample_from_top=2, seed=1)
    assert other == dataclasses.replace(drawn, sample_from_top=2, seed=1)
    for scorer in ("rds_plus", "less"):
        # these always use the plain cosine
        assert GISTConfig.recommended(scorer=scorer) == dataclasses.replace(
            GISTConfig(), scorer=scorer, strategy="round_robin", sample_from_top=3.0
        )
    with pytest.raises(ValueError, match="`budget`"):
        GISTConfig.recommended(0.0)
    with pytest.raises(TypeError, match="buget"):
        GISTConfig.recommended(buget=0.1)
