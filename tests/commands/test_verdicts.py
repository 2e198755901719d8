"""Verdicts on made-up runs, whose differences are known."""

import random
from statistics import fmean

import pytest

from hf_gist.commands.compare.estimates import Column, difference, of_method
from hf_gist.commands.compare.verdicts import verdicts
from hf_gist.commands.testing.measured import Measured


def runs_of(measure, rows=400, seeds=2, noise=0.05, between=0.0, **means):
    """Runs whose rows are around a mean, with noise of the row, of the run and of the row in the run."""
    rng = random.Random(0)
    drawn = [rng.gauss(0, 1) for _ in range(rows)]
    common = [one - fmean(drawn) for one in drawn]
    runs = []
    for method, mean in means.items():
        for seed in range(1 if method == "untrained" else seeds):
            shift = rng.gauss(0, between) if between else 0
            values = [mean + shift + one + rng.gauss(0, noise) for one in common]
            found = Measured.mean_of(values)
            run = {
                "method": method,
                "seed": seed,
                f"{measure}_arc": found.value,
                "outcomes": {"arc": {measure: values}},
            }
            runs.append(run | {f"standard_error_{measure}_arc": found.standard_error})
    return runs


def test_a_clear_win():
    (text,) = verdicts(runs_of("loss", untrained=2.5, random=2.0, gist=1.9))
    assert text.startswith("arc loss: lowest for GIST (paper's rule), 1.9") and "below random rows." in text
    assert "(two standard errors) better: GIST (paper's rule)." in text
    assert "The untrained model: 2.5" in text and "above the best." in text and "noise" not in text


def test_a_clear_win_of_a_measure_that_should_be_high():
    (text,) = verdicts(runs_of("accuracy_sum", untrained=0.3, random=0.5, gist=0.6, rds_plus=0.4))
    assert text.startswith("arc accuracy, sum: highest for GIST (paper's rule), 0.6") and "above random rows." in text
    assert 'better: GIST (paper\'s rule); worse: "RDS+, best match"' in text
    assert "The untrained model: 0.3" in text and "below the best." in text


def test_nothing_beyond_noise():
    (text,) = verdicts(runs_of("accuracy_sum", noise=0.5, untrained=0.5, random=0.5, gist=0.505, rds_plus=0.5))
    assert "No method differs from random rows by more than two standard errors." in text
    assert "Within two standard errors of the best: " in text
    assert "which is within noise" in text


def test_seeds_that_differ_are_noise_even_if_rows_agree():
    runs = runs_of("loss", rows=2000, noise=0.001, between=0.2, random=2.0, gist=1.95)
    column = Column("arc", "loss")
    found = difference(of_method(runs, "gist"), of_method(runs, "random"), column)
    assert found.row_error < 0.001 and found.noise == pytest.approx(found.spread / 2**0.5, rel=1e-3)
    (text,) = verdicts(runs)
    assert "No method differs" in text and "with one seed" not in text.lower()


def test_noise_is_rows_and_seeds_together():
    runs = runs_of("loss", noise=0.5, between=0.03, random=2.0, gist=1.95)
    found = difference(of_method(runs, "gist"), of_method(runs, "random"), Column("arc", "loss"))
    assert found.noise**2 == pytest.approx(found.row_error**2 + found.spread**2 / 2)
    assert found.noise > max(found.row_error, found.spread / 2**0.5)
    # unpaired, the rows alone would hide a difference: they vary by 1
    assert found.row_error < 0.05 and runs[0]["standard_error_loss_arc"] > 0.045


@pytest.mark.parametrize(("measure", "untrained"), [("loss", 1.0), ("accuracy_sum", 3.0)])
def test_an_untrained_model_that_is_better_than_all(measure, untrained):
    (text,) = verdicts(runs_of(measure, untrained=untrained, random=2.0, gist=2.1))
    assert f"The untrained model is better than every trained one: {untrained:.1f}"[:60] in text
    assert text.endswith("the best.")
    (text,) = verdicts(runs_of(measure, noise=0.5, untrained=2.0, random=2.0, gist=2.0))
    assert "within noise" in text


def test_a_single_seed():
    (text,) = verdicts(runs_of("loss", seeds=1, random=2.0, gist=1.9))
    assert "better: GIST (paper's rule)." in text
    assert text.endswith("With one seed, the errors do not include what differs between seeds.")


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("seeds", [1, 3])
def test_few_test_rows_tell_nothing_apart(rows, seeds):
    (text,) = verdicts(runs_of("loss", rows=rows, seeds=seeds, untrained=3.0, random=2.0, gist=1.0))
    assert f"{rows} test row{'s are' if rows > 1 else ' is'} too few to tell methods apart." in text
    assert "better:" not in text and "Within two" not in text


def test_a_metric_without_outcomes_has_the_seeds_alone():
    runs = runs_of("bleu", seeds=3, noise=0.01, between=0.01, random=2.0, gist=3.0)
    for run in runs:
        run |= {"outcomes": {"arc": {"bleu": None}}, "standard_error_bleu_arc": None}
    (text,) = verdicts(runs)
    assert "better: GIST (paper's rule)." in text
    (text,) = verdicts([run for run in runs if run["seed"] == 0])
    assert "nothing says what is within noise" in text and "±" not in text


def test_a_method_of_one_seed_among_others_is_not_within_noise():
    runs = runs_of("bleu", seeds=3, noise=0.01, between=0.01, random=2.0, rds_plus=2.5, gist=3.0, less=1.0)
    for run in runs:
        run |= {"outcomes": {"arc": {"bleu": None}}, "standard_error_bleu_arc": None}
    for alone, named in [("rds_plus", '"RDS+, best match"'), ("gist", "GIST (paper's rule)")]:
        (text,) = verdicts([run for run in runs if run["method"] != alone or run["seed"] == 0])
        assert "within noise" not in text and "worse: LESS" in text and f"not known: {named}." in text


def test_ties_are_named_as_such():
    runs = runs_of("accuracy_sum", noise=0, random=0.5, gist=0.5, rds_plus=0.5)
    (text,) = verdicts(runs)
    assert text.startswith("arc accuracy, sum: the same for all trained models, ") and "No method differs" in text
    runs = runs_of("accuracy_sum", noise=0, random=0.5, gist=0.75, rds_plus=0.75)
    (text,) = verdicts(runs)
    assert (
        'highest for GIST (paper\'s rule), "RDS+, best match"' in text and "0.250 ± 0.000 above random rows." in text
    )
    runs = runs_of("accuracy_sum", noise=0, untrained=0.5, random=0.5, gist=0.25)
    (text,) = verdicts(runs)
    assert "The untrained model: 0.500 ± " in text and text.endswith(", the same as the best.")


def test_without_random_rows_nothing_says_what_it_is_worth():
    (text,) = verdicts(runs_of("loss", untrained=2.5, gist=2.0))
    assert "without random rows of the same seed" in text and "Against random" not in text
    assert verdicts(runs_of("loss", untrained=2.5)) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 400])
def test_a_training_that_diverged_is_not_the_best(value, count):
    runs = runs_of("loss", untrained=2.5, random=2.0, gist=1.9)
    for run in (run for run in runs if run["method"] == "gist"):
        rows = [*[value] * count, *run["outcomes"]["arc"]["loss"][count:]]
        found = Measured.mean_of(rows)
        run |= {
            "loss_arc": found.value,
            "standard_error_loss_arc": found.standard_error,
            "outcomes": {"arc": {"loss": rows}},
        }
    (text,) = verdicts(runs)
    assert text.startswith("arc loss: lowest for random rows, ") and "better" not in text and "noise" not in text
    assert "Against random rows (two standard errors) not finite: GIST (paper's rule)." in text
