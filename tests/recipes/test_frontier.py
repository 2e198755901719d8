"""Loss against cost: a whole run on a tiny model, its plans against `select(scoring_cost=...)`, and the tables."""

from collections import Counter

import pytest
import torch

from hf_gist import GISTConfig, select
from hf_gist.commands.bench import Bench
from hf_gist.commands.preparing import Preparer
from hf_gist.data.leaks import find_leaks
from hf_gist.training.loading import load_base, load_tokenizer, padding_collator
from tests import ROOT
from tests.helpers.words import save_model, varied, write_rows


@pytest.fixture
def frontier(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "benchmarks"))
    import frontier

    return frontier


@pytest.fixture
def data(tmp_path):
    save_model(tmp_path / "model")
    tests = {}
    for number, name in enumerate(("one", "two")):
        write_rows(tmp_path / f"target_{name}.jsonl", varied(5, 3 + number))
        tests[name] = varied(6, 20 + number)
        write_rows(tmp_path / f"test_{name}.jsonl", tests[name])
    pool = varied(80, 1)
    leaked = [{**row, "source": "leak"} for row in (tests["one"][0], varied(5, 3)[2], pool[7])]
    write_rows(tmp_path / "pool.jsonl", [*pool, *leaked])
    return tmp_path


def arguments(folder, *more):
    targets = [f"{name}={folder / f'target_{name}.jsonl'}:{folder / f'test_{name}.jsonl'}" for name in ("one", "two")]
    flags = [
        "--model", folder / "model", "--pool", folder / "pool.jsonl", "--target", *targets,
        "--output", folder / "out", "--budget", "0.15", "--passes", "1", "--batch_size", "8", "--seeds", "0",
        "--scoring_costs", "0.15", "0.5", *more,
    ]  # fmt: skip
    return [str(flag) for flag in flags]


VARIANTS = ["one", "two", "two, source removed"]


def by_key(results):
    return {(run["arm"], run["target"]): run for run in (*results.done, *results.refused)}


ARMS = ["untrained", "random", "rds_plus", "paper", "paper@0.5", "recommended@0.15", "cosine_random"]


def test_a_run(data, frontier, capsys):
    results = frontier.main(arguments(data, "--without", "two=family1", "--arms", *ARMS))
    runs = by_key(results)
    assert set(runs) == {(arm, target) for arm in ARMS for target in VARIANTS}
    assert results.targets == VARIANTS
    trained = [run for run in results.done if run["arm"] != "untrained"]
    assert {run["rows"] for run in trained if run["target"] != VARIANTS[2]} == {12}
    assert {run["rows"] for run in trained if run["target"] == VARIANTS[2]} == {9}
    assert all("family1" not in run["sources"] for run in trained if run["target"] == VARIANTS[2])
    assert all("leak" not in run["sources"] for run in trained)
    for target in VARIANTS:
        cost = {arm: runs[arm, target]["selection_passes"] for arm in ARMS}
        assert cost["random"] == cost["untrained"] == 0
        assert 0.4 < cost["paper@0.5"] <= 0.5 and 0.3 < cost["rds_plus"] < cost["paper"] < 1.5
        assert cost["paper"] == cost["cosine_random"]
        assert "pays for scoring" in runs["recommended@0.15", target]["refused"]
        assert 0.1 < runs["paper", target]["training_passes"] < 0.2
    # the same random rows of the whole pool serve both targets
    assert runs["random", "one"]["train_seconds"] == runs["random", "two"]["train_seconds"]
    text = (data / "out" / "frontier.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "Missing" not in text
    assert text.count("\n| random rows |") == 4 and "warm-up on 3 % of the pool" in text
    assert "| the paper's rule, scoring_cost 0.5 |" in text and "Leaving one target out, at any cost" in text
    assert (data / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_the_usual_arms(frontier):
    usual = frontier.chosen_arms(None, [0.1, 0.25, 0.5])
    assert list(usual)[:6] == ["untrained", "random", "length_matched", "bm25", "nearest", "rds_plus"]
    for rule in ("paper", "cosine", "recommended"):
        assert [name for name, arm in usual.items() if arm.cost is not None and arm.rule == rule] == [
            f"{rule}@{cost}" for cost in ("0.1", "0.25", "0.5")
        ]
    assert list(usual)[-6:] == [
        "cosine_random", "cosine_matched", "paper_capped", "cosine-bm25@0.25", "cosine-rds_plus@0.25", "cosine-random@0.25",
    ]  # fmt: skip
    assert len({arm.title for arm in frontier.arms([0.1]).values()}) == len(frontier.arms([0.1]))
    assert list(frontier.chosen_arms(["cosine_random@0.25"], [0.25])) == ["cosine_random@0.25"]


def test_finished_runs_are_kept_and_other_settings_refused(data, frontier, monkeypatch, capsys):
    few = ["--arms", "untrained", "random", "cosine@0.5", "--target", arguments(data)[5]]
    figures = []
    monkeypatch.setattr(frontier, "save_figure", lambda *given: figures.append(given))
    results = frontier.main(arguments(data, *few, "--minutes", "0"))
    assert (
        results.done == []
        and "Missing runs: 3, by arm untrained (1), random (1), cosine@0.5 (1)." in capsys.readouterr().out
    )
    # an interruption while the second arm trains
    train = Bench.train

    def interrupted(bench, rows, title, *more, **fields):
        if title.startswith("cosine"):
            raise KeyboardInterrupt
        return train(bench, rows, title, *more, **fields)

    monkeypatch.setattr(Bench, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frontier.main(arguments(data, *few))
    monkeypatch.setattr(Bench, "train", train)
    titles = []
    monkeypatch.setattr(Bench, "train", lambda *given, **more: titles.append(given[2]) or train(*given, **more))
    scores = data / "out" / "scores_gist_0" / "manifest.json"
    written = scores.stat().st_mtime_ns
    first = frontier.main(arguments(data, *few)).done
    assert set(titles) == {"cosine@0.5, seed 0"} and len(first) == 3 and scores.stat().st_mtime_ns == written
    assert frontier.main(arguments(data, *few)).done == first and set(titles) == {"cosine@0.5, seed 0"}
    again = frontier.main(arguments(data, *few, "--seeds", "0", "1"))
    assert titles[-1] == "cosine@0.5, seed 1" and len(again.done) == 5
    for more, name in ((["--budget", "0.2"], "budget was 0.15 and is now 0.2"), (["--pool_rows", "70"], "pool was")):
        with pytest.raises(SystemExit, match=f"written with other settings: .*{name}"):
            frontier.main(arguments(data, *few, *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arms", "random", "cosine@0.3"], "`--arms cosine@0.3`: no such arm; there are untrained, random"),
        (["--without", "three=family1"], "`--without three=family1`: no target has this name; targets are one, two"),
        (["--without", "one=family9"], "`--without one=family9`: no row of the pool has the source 'family9'"),
        (["--without", "one"], "`--without one` must be NAME=SOURCE"),
        (["--without", "one=family1", "one=family2"], "`--without one=family2`: one is given twice"),
        (["--target", "one=target.jsonl"], "`--target one=target.jsonl` must be NAME=TARGET.jsonl:TEST.jsonl"),
        (["--target", "a/b=target.jsonl:test.jsonl"], "with another name for each, of letters, digits"),
        (["--batch_size", "12"], "one: 1 pass over 12 rows in batches of 12 is one optimizer step"),
        (["--target", "one=no.jsonl:test.jsonl"], "target one: no.jsonl is no file"),
    ],
    ids=str,
)
def test_wrong_flags_are_named(data, frontier, more, message):
    with pytest.raises(SystemExit) as caught:
        frontier.main(arguments(data, *more))
    assert message in str(caught.value)
    assert not (data / "out").exists()


@pytest.fixture
def cases(data, frontier):
    """Variant to its case, with seed 3."""
    from frontier_parts.cases import Case
    from frontier_parts.data import read_data
    from frontier_parts.runs import Experiment
    from frontier_parts.scores import Scores

    options = frontier.parse(arguments(data, "--without", "two=family1"))
    tokenizer, _ = load_tokenizer(options.model, None, False)
    base = load_base(options.model, None, "float32", False).eval()
    experiment = Experiment(options, read_data(options, Preparer(tokenizer, 64)), base, tokenizer, {})
    scores = Scores(base, tokenizer, experiment.settings, experiment.data, experiment.folder, 3)
    return {variant.name: Case(variant, scores, options.budget) for variant in experiment.data.variants}


def test_the_pool_has_no_target_row_no_test_row_and_no_row_twice(cases):
    for case in cases.values():
        data = case.scores.data
        leaks = find_leaks(case.variant.pool, data.targets, data.tests, case.scores.tokenizer)
        assert not leaks.mask(len(case.variant.pool)).any() and not leaks.copies.mask.any()
    sizes = {name: len(case.variant.pool) for name, case in cases.items()}
    assert sizes == {"one": 80, "two": 80, "two, source removed": 60}


@pytest.mark.parametrize("rule", ["paper", "cosine", "recommended"])
def test_plans_choose_what_the_library_selects_and_cost_what_its_ledger_says(cases, frontier, rule):
    from frontier_parts.arms import COSINE, PAPER, RECOMMENDED, arms

    settings = {"paper": PAPER, "cosine": COSINE, "recommended": RECOMMENDED}[rule]
    for case in cases.values():
        for cost, name in ((0.8, f"{rule}@0.8"), (None, rule)):
            found = arms([0.8])[name].choose(case)
            config = GISTConfig(budget=case.size, scoring_cost=cost, seed=case.seed, **settings)
            # one selection for this target alone, from this pool alone
            selection = select(
                case.scores.model,
                case.variant.pool,
                case.variant.targets,
                config,
                data_collator=padding_collator(case.scores.tokenizer),
                progress=False,
                warmup=case.warmup(0.05),
            )
            assert found.rows == selection.indices
            assert (selection.measurements.scored is None) == (cost is None)
            # the plan counts a direction of the subspace for each target; the ledger those that are left
            assert found.passes == pytest.approx(selection.costs.selection_passes(), abs=0.01)


def test_rows_have_the_prices_that_the_plan_counts(cases):
    for case in cases.values():
        plan = case.plan(0.5)
        assert plan.rows is not None and 12 <= len(plan.rows) < len(case.every)
        assert float(case.price_by_row[plan.rows].sum()) == pytest.approx(plan.scoring)
        assert float(case.price_by_row.sum()) == pytest.approx(case.plan(None).scoring)
        order = [row for row in case.nearest if row in set(plan.rows)]
        assert case.nearest[: len(order)] == order
        assert case.affordable(case.nearest, 0.5 - plan.warmup - plan.targets) == order
        assert torch.equal(case.variant.label_tokens, case.measured().label_tokens)


def test_shortlists_cost_as_much_as_the_plan_and_only_they_are_chosen_from(cases, frontier):
    from frontier_parts.arms import COSINE, by_settings, from_shortlist

    case = cases["one"]
    plan = case.plan(0.6)
    for name, order in (("bm25", case.variant.best_matches), ("random", None), ("rds_plus", None)):
        found = from_shortlist(case, name, 0.6)
        forward = case.plan(None, "rds_plus")
        extra = forward.targets + forward.scoring if name == "rds_plus" else 0.0
        assert 0.55 < found.passes - extra <= 0.6 and len(found.rows) == case.size
        if order is not None:
            short = case.affordable(order, 0.6 - plan.warmup - plan.targets)
            assert set(found.rows) <= set(short)
            assert found.rows == by_settings(case, case.only(short), COSINE)
    assert extra > 0.2


def test_mixtures_and_the_limit_on_equal_answers(cases, frontier):
    from frontier_parts import arms

    case = cases["two"]
    table = arms.arms([])
    best = table["cosine"].choose(case).rows
    for name, order in (("cosine_random", arms.random_rows), ("cosine_matched", arms.matched_rows)):
        rows = table[name].choose(case).rows
        assert rows[:6] == best[:6] and len(rows) == len(set(rows)) == 12
        assert rows[6:] == [row for row in order(case) if row not in rows[:6]][:6]
    # of 12 rows at most one with each answer: all answers of this pool differ, until some are made the same
    paper = table["paper"].choose(case).rows
    assert table["paper_capped"].choose(case).rows == paper
    case.variant.labels[paper[1]] = case.variant.labels[paper[0]]
    capped = table["paper_capped"].choose(case).rows
    assert paper[1] not in capped and capped[:11] == [paper[0], *paper[2:]]
    assert max(Counter(case.variant.labels[row] for row in capped).values()) == 1
    case.variant.labels[:] = [case.variant.labels[0]] * 80
    with pytest.raises(arms.Refused, match="only 1 with at most 1 of the same answer"):
        table["paper_capped"].choose(case)


# ---- Tables ----


def runs_of(losses, cost=0.0):
    """Runs by arm, target and seed."""
    return [
        {"arm": arm, "target": target, "seed": seed, "loss": loss, "rows": 5, "selection_passes": cost}
        for arm, targets in losses.items()
        for target, seeds in targets.items()
        for seed, loss in (seeds.items() if isinstance(seeds, dict) else {None: seeds}.items())
    ]


LOSSES = {
    "untrained": {"a": 3.0, "b": 1.0, "b out": 1.0},
    "random": {"a": {0: 2.0, 1: 2.2}, "b": {0: 1.0, 1: 1.0}, "b out": {0: 2.0, 1: 2.0}},
    "cosine": {"a": {0: 1.0, 1: 1.2}, "b": {0: 0.8, 1: 0.8}, "b out": {0: 3.0, 1: 3.0}},
    "cosine@0.25": {"a": {0: 1.5}, "b": {0: 0.9, 1: 1.1}, "b out": {0: 2.5, 1: 2.5}},
    "paper": {"a": {0: 1.9, 1: 2.1}, "b": {0: 1.1, 1: 1.1}, "b out": {0: 1.8, 1: 1.8}},
}


def test_differences_and_shares_are_those_of_common_seeds(frontier):
    from frontier_parts.results import Results, shares_of_gain

    results = Results(runs_of(LOSSES))
    assert results.differences("cosine", "a") == pytest.approx([-1.0, -1.0])
    assert results.differences("untrained", "a") == pytest.approx([1.0, 0.8])
    assert results.relative("cosine", "a") == pytest.approx((1.0 / 2.0 + 1.2 / 2.2) / 2 - 1)
    # seed 0 alone on a: 0.5 of 1.0; on b nothing of 0.2; out of the pool the exact selection has no gain
    shares, summed, targets = shares_of_gain(results, "cosine@0.25", "cosine")
    assert shares == pytest.approx([0.5, 0.0]) and targets == 3
    assert summed == pytest.approx(0.5 / 1.2)
    assert shares_of_gain(results, "nearest", "cosine") == ([], None, 0)


def test_a_target_is_left_out_with_its_variants(frontier):
    from frontier_parts.recommendation import candidates, leave_one_out
    from frontier_parts.results import Results

    results = Results(runs_of(LOSSES))
    found = candidates(results, list(LOSSES))
    assert [candidate.arm for candidate in found] == ["random", "cosine", "cosine@0.25", "paper"]
    cosine = found[1]
    assert cosine.worst == "b out" and cosine.changes["b out"] == pytest.approx(0.5)
    left = {line.target: line for line in leave_one_out(found, {"a": "a", "b": "b", "b out": "b"}, None)}
    # without a, the two variants of b: random and paper have a mean of 0, cosine 0.15
    assert left["a"].chosen == "random" and left["a"].change == 0 and left["a"].best == "cosine"
    # without b, only a is left: cosine is chosen, and is worst out of the pool
    assert left["b"].chosen == left["b out"].chosen == "cosine"
    assert left["b"].change == pytest.approx(-0.2) and left["b out"].change == pytest.approx(0.5)
    assert left["b out"].best == "paper" and left["b out"].best_change == pytest.approx(-0.1)
    assert leave_one_out([c for c in found if c.arm == "x"], {}, None) == []
    dear = Results(runs_of({"random": LOSSES["random"]}) + runs_of({"cosine": LOSSES["cosine"]}, cost=0.3))
    lines = leave_one_out(candidates(dear, ["random", "cosine"]), {"a": "a", "b": "b", "b out": "b"}, 0.25)
    assert {line.chosen for line in lines} == {"random"}


def test_the_text_says_what_was_refused_and_what_is_missing(frontier):
    from frontier_parts.arms import arms
    from frontier_parts.results import Results
    from frontier_parts.table import markdown

    table = {name: arms([0.25])[name] for name in ("untrained", "random", "cosine", "cosine@0.25", "paper")}
    refused = {"arm": "paper", "target": "c", "seed": 1, "refused": "too little"}
    families = {"a": "a", "b": "b", "b out": "b"}
    text = markdown(
        Results([*runs_of(LOSSES), refused]),
        table,
        families,
        [("paper", "c", 0), ("paper", "c", 1)],
        "Pool of 5 rows.",
    )
    assert "- the paper's rule (c, seed 1): too little" in text and "Missing runs: 2, by arm paper (2)." in text
    assert "| plain cosine, round robin, scoring_cost 0.25 | 0.000 | 2 of 3 | 25 % | 42 % | 0 % |" in text
    assert "| plain cosine, round robin | 5 | 2 | 0.000 | 1.1000 ± 0.1414 | -1.0000 ± 0.0000 |" in text
    assert "| untrained |  |  | 0.000 | 3.0000 | +0.9000 ± 0.1414 |" in text.replace(
        "| untrained | 5 |", "| untrained |  |"
    )


def test_plans_are_joined_by_rising_cost_with_all_rows_last(frontier):
    from frontier_parts.arms import arms
    from frontier_parts.figure import lines_of

    table = arms([0.5, 0.1])
    joined = lines_of({name: table[name] for name in ("random", "paper", "cosine", "cosine@0.5", "cosine@0.1")})
    assert joined == {"cosine": ["cosine@0.1", "cosine@0.5", "cosine"]}


def test_a_smaller_cost_has_a_shorter_warm_up(frontier):
    from frontier_parts.cases import warmup_ratio

    assert [warmup_ratio(cost) for cost in (None, 0.5, 0.25)] == [0.05] * 3
    assert warmup_ratio(0.1) == pytest.approx(0.02)


def test_shortlists_are_compared_on_the_same_scores(frontier, data, capsys):
    from shortlists import carried, main

    text = main([*arguments(data), "--pool_rows", "80"])
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    names = {line.split(" | ")[0].strip("| ") for line in lines}
    assert {"random rows", "BM25", "mean input embeddings", "RDS+", "landmarks"} <= names
    cells = [cell.split(" / ") for line in lines if " / " in line for cell in line.strip("| ").split(" | ")[1:]]
    assert len(cells) == 2 * 6 * 3 and all(0 <= float(same) <= 1 for same, *_ in cells)
    # ridge regression carries what is linear in the features
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(60, 5, generator=generator), dim=1)
    features = features - features.mean(0)
    features = torch.nn.functional.normalize(features, dim=1)
    coordinates = features @ torch.randn(5, 3, generator=generator)
    predicted, norms = carried(features, coordinates, coordinates.norm(dim=1), torch.arange(40))
    assert float(torch.corrcoef(torch.stack([predicted[40:].flatten(), coordinates[40:].flatten()]))[0, 1]) > 0.9
    assert bool((norms >= predicted.norm(dim=1) - 1e-6).all())
