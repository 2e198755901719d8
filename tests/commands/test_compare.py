"""`hf-gist compare` as a user runs it, and its arithmetic."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from pyarrow import parquet

from hf_gist import Selection
from hf_gist.commands.compare import arms, run, scores
from hf_gist.commands.compare.estimates import Column
from hf_gist.commands.compare.table import against_random, break_even, markdown
from hf_gist.commands.main import main
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.errors import NoEffectWarning
from hf_gist.gradients.collect import mean_loss
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows
from tests.helpers.words import save_model, varied


SCORERS = {"gist", "nearest", "gist_planned", "rds_plus", "less", "labels", "bm25", "loss_drop"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    save_model(folder / "model")
    Dataset.from_list(varied(80, 0)).to_json(folder / "pool.jsonl")
    family = [row for row in varied(40, 1) if row["source"] == "family1"]
    Dataset.from_list(family[:4]).to_json(folder / "targets.jsonl")
    Dataset.from_list(family[4:]).to_json(folder / "test.jsonl")
    return folder


def flags(files, output, *more):
    return [
        "compare",
        *("--model_name_or_path", str(files / "model")),
        *("--train_file", str(files / "pool.jsonl"), "--target_file", str(files / "targets.jsonl")),
        *("--test_file", f"held={files / 'test.jsonl'}", "--output_dir", str(output)),
        *("--source_column", "source", "--oracle_source", "family1", "--budget", "0.1"),
        *("--lora_target_modules", "q_proj, v_proj", "--learning_rate", "1e-2"),
        *("--per_device_train_batch_size", "4", "--less_checkpoints", "2", "--num_train_epochs", "2"),
        *("--warmup_ratio", "0.2", "--explained_variance", "0.99"),
        *more,
    ]


def test_choosing_again_is_said_to_have_no_effect(files, tmp_path, capsys):
    """Every arm is trained on rows that are selected once; scoring them does not say so again."""
    settings = ("--methods", "no_such_method", "--reselect_every", "1")
    with pytest.warns(NoEffectWarning, match="`reselect_every=1` has no effect in `hf-gist compare`"):
        assert main(flags(files, tmp_path, *settings)) == 2
    assert "no such method" in capsys.readouterr().err


@pytest.fixture(scope="module")
def compared(files):
    output = files / "out"
    more = ("--seeds", "0", "1", "--scoring_cost", "0.6", "--methods", *arms.ARMS)
    assert main(flags(files, output, *more)) == 0
    return output


def test_every_method_is_trained_with_the_same_rows_and_steps(compared):
    runs = parquet.read_table(compared / "compare.parquet").to_pylist()
    assert {(r["method"], r["seed"]) for r in runs} == set(run.trainings(list(arms.ARMS), [0, 1]))
    assert len(runs) == 2 * len(arms.ARMS) - 1
    for row in runs:
        expected = {"untrained": (0, 0), "whole_pool": (80, 20)}.get(row["method"], (8, 4))
        assert (row["rows"], row["steps"]) == expected
        assert row["loss_held"] > 0 and (row["train_tokens"] > 0) == (row["method"] != "untrained")
    losses = {name: [r["loss_held"] for r in runs if r["method"] == name] for name in arms.ARMS}
    assert max(losses["in_domain_random"]) < losses["untrained"][0]
    assert len({round(v[0], 6) for v in losses.values()}) >= 8
    passes = {r["method"]: r["selection_passes"] for r in runs}
    assert passes["random"] == passes["whole_pool"] == passes["bm25"] == passes["nearest"] == 0
    for name in ("gist", "rds_plus", "less", "loss_drop"):
        ledger = CostLedger.load(compared / "scores" / name)
        assert ledger.phases[0].phase == "warm-up" and ledger.phases[0].flops > 0
        assert passes[name] == ledger.selection_passes()
        trained = {"loss_drop": 4 * 4}.get(name, 16)
        assert ledger.phases[0].rows == trained
    assert 0.5 < passes["gist_planned"] <= 0.6
    # LESS scores with two checkpoints
    assert 0 < passes["rds_plus"] < passes["gist"] < passes["less"]


def test_the_table_has_every_method_and_the_break_even(compared):
    text = (compared / "compare.md").read_text()
    assert all(arm.title in text for arm in arms.ARMS.values())
    assert "of 2 seeds" in text and "Training on the whole pool for 2 epochs or more costs more than that." in text
    assert (compared / "compare.png").stat().st_size > 10_000


def test_the_arms_choose_what_select_would(files, compared):
    gist = Selection.load(compared / "scores" / "gist")
    config = gist.config
    for name, change in [("gist", {}), ("gist_round_robin", {"strategy": "round_robin"})]:
        assert arms.rows_of_arm(name, gist.measurements, config, 0, None) == gist.reselect(**change).indices
    own = arms.rows_of_arm("in_domain_random", gist.measurements, config, 0, ["family1"])
    assert len(own) == 8 and {gist.measurements.sources[i] for i in own} == {"family1"}
    draws = [tuple(arms.rows_of_arm("random", gist.measurements, config, seed, None)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    mean = arms.rows_of_arm("gist_mean_target", gist.measurements, config, 0, None)
    directions = gist.measurements.target_coordinates[:, : gist.rank].double().mean(0)
    scores = torch.nn.functional.cosine_similarity(
        gist.measurements.coordinates[:, : gist.rank].double(), directions[None]
    )
    assert mean == scores.topk(8).indices.tolist()
    assert {path.name for path in (compared / "scores").iterdir()} == SCORERS


@pytest.fixture(scope="module")
def answered(files, compared):
    """A comparison with a test set of choices and one of generated answers."""
    rows = varied(40, 5)
    for number, row in enumerate(rows[:12]):
        texts = [rows[number + shift]["messages"][1]["content"] for shift in (0, 4, 8)]
        row["choices"] = texts[1:] + texts[:1]
        row["answer"] = 2
    Dataset.from_list(rows[:12]).to_json(files / "choices.jsonl")
    folder = files / "first_word"
    folder.mkdir()
    (folder / "first_word.py").write_text(FIRST_WORD)
    output = files / "answered"
    tests = ("--test_file", f"abc={files / 'choices.jsonl'}", f"held={files / 'test.jsonl'}")
    metrics = ("--metric", f"abc={folder}", f"held={folder}", "--max_new_tokens", "3")
    more = (*metrics, "--methods", "random", "gist", "--seeds", "0", "1")
    assert main(flags(files, output, "--scores_dir", str(files / "answered_scores"), *tests, *more)) == 0
    return output


FIRST_WORD = """
import datasets
import evaluate

class FirstWord(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="", citation="", features=datasets.Features({"predictions": text, "references": text})
        )

    def _compute(self, predictions, references):
        pairs = zip(predictions, references)
        return {"name": "share of the right family", "same": sum(a[:2] == b[:2] for a, b in pairs) / len(references)}
"""


def test_answers_are_in_every_file(answered, capsys):
    names = ["loss_abc", "accuracy_sum_abc", "accuracy_per_token_abc", "same_abc", "loss_held", "same_held"]
    runs = parquet.read_table(answered / "compare.parquet").to_pylist()
    assert [(r["method"], r["seed"]) for r in runs][0] == ("untrained", 0) and len(runs) == 5
    for row in runs:
        kept = json.loads(run.run_file(answered, row["method"], row["seed"]).read_text())
        lists = {f"{measure}_{test}": v for test, found in kept["outcomes"].items() for measure, v in found.items()}
        assert list(lists) == names and {len(v) for n, v in lists.items() if "abc" in n} == {12}
        for name in names:
            values = torch.tensor(lists[name], dtype=torch.float64)
            assert row[name] == kept[name] == pytest.approx(values.mean().item(), abs=1e-6)
            error = (values.std() / len(values) ** 0.5).item()
            assert row[f"standard_error_{name}"] == pytest.approx(error, abs=1e-6)
            assert name.startswith("loss") or set(lists[name]) <= {0, 1}
    text = (answered / "compare.md").read_text()
    for title in ("abc accuracy, sum", "abc accuracy, per token", "abc same", "held same"):
        assert f"| {title} |" in text and f"\n- {title}: " in text
    assert "untrained model" in text and (answered / "compare.png").stat().st_size > 10_000


def test_the_json_has_the_verdicts_and_no_outcomes(files, answered, capsys):
    again = json.loads((answered / "compare.json").read_text())
    tests = again["test_file"]
    metrics = ("--metric", f"abc={files / 'first_word'}", f"held={files / 'first_word'}", "--max_new_tokens", "3")
    more = (*metrics, "--methods", "random", "gist")
    given = (*more, "--seeds", "0", "1", "--scores_dir", str(files / "answered_scores"), "--json")
    capsys.readouterr()
    assert main(flags(files, answered, "--test_file", *tests, *given)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["verdicts"]) == 6 and all(
        f"- {v}\n" in (answered / "compare.md").read_text() for v in printed["verdicts"]
    )
    assert "outcomes" not in printed["runs"][0] and printed["runs"][0]["accuracy_sum_abc"] >= 0


def test_one_scoring_serves_several_target_sets(files, compared, tmp_path):
    rows = varied(40, 1)
    both = [
        row | {"set": name}
        for name, family in [("a", "family1"), ("b", "family3")]
        for row in rows[:24]
        if row["source"] == family
    ]
    Dataset.from_list(both).to_json(tmp_path / "both.jsonl")
    one = [row for row in both if row["set"] == "b"]
    Dataset.from_list(one).to_json(tmp_path / "one.jsonl")
    more = ("--methods", "gist", "rds_plus", "length_matched_random", "--seeds", "0", "--target_file")
    assert main(flags(files, tmp_path / "alone", *more, str(tmp_path / "one.jsonl"))) == 0
    shared = (*more, str(tmp_path / "both.jsonl"), "--target_column", "set", "--target_value")
    kept = ("--scores_dir", str(tmp_path / "scores"))
    assert main(flags(files, tmp_path / "b", *shared, "b", *kept)) == 0
    alone = {name: Selection.load(tmp_path / "alone" / "scores" / name) for name in ("gist", "rds_plus")}
    for name, selection in alone.items():
        together = Selection.load(tmp_path / "scores" / name).measurements.for_targets("set", "b")
        rotated = Selection.choose(together, selection.config)
        assert rotated.rank == selection.rank and rotated.indices == selection.indices
        torch.testing.assert_close(rotated.scores, selection.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(rotated.energy, selection.energy, rtol=0, atol=1e-5)
    runs = [parquet.read_table(tmp_path / name / "compare.parquet").to_pylist() for name in ("alone", "b")]
    losses = [{r["method"]: r["loss_held"] for r in part if "random" not in r["method"]} for part in runs]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="Values: a, b"):
        Selection.load(tmp_path / "scores" / "gist").measurements.for_targets("set", "c")


def test_an_interrupted_comparison_resumes_after_its_finished_runs(files, compared, monkeypatch, capsys):
    whole = parquet.read_table(compared / "compare.parquet").to_pylist()
    for name in ("gist-seed1.json", "random-seed0.json"):
        (compared / "runs" / name).unlink()
    # nothing is measured again
    monkeypatch.setattr(scores, "select", None)
    monkeypatch.setattr(scores, "score_baseline", None)
    methods = [name for name in arms.ARMS if name != "gist_planned"]
    assert main(flags(files, compared, "--seeds", "0", "1", "--methods", *methods)) == 0
    again = parquet.read_table(compared / "compare.parquet").to_pylist()
    assert [(r["method"], r["loss_held"]) for r in again] == [(r["method"], r["loss_held"]) for r in whole]
    printed = capsys.readouterr().out
    assert printed.count(", seed ") == 2 and "random, seed 0" in printed and "gist, seed 1" in printed


def test_shared_scores_leave_out_the_test_rows_of_every_comparison(files, compared, tmp_path, capsys, monkeypatch):
    pool = Dataset.from_json(str(files / "pool.jsonl"), cache_dir=str(tmp_path))
    chosen = Selection.load(compared / "scores" / "gist").indices[0]
    pool.select([chosen]).to_json(tmp_path / "test.jsonl")
    shared = ("--scores_dir", str(compared / "scores"), "--seeds", "0", "--methods", "gist")
    trained, original = [], run.rows_of_arm
    monkeypatch.setattr(run, "rows_of_arm", lambda *given: trained.append(original(*given)) or trained[-1])
    with pytest.warns(UserWarning, match="also in `eval_dataset`"):
        assert main(flags(files, tmp_path / "other", *shared, "--test_file", str(tmp_path / "test.jsonl"))) == 0
    assert not Selection.load(compared / "scores" / "gist").measurements.leaked[chosen]
    assert len(trained) == 1 and len(trained[0]) == 8 and chosen not in trained[0]
    Dataset.from_list(varied(3, 9)).to_json(tmp_path / "test.jsonl")
    capsys.readouterr()
    assert main(flags(files, tmp_path / "other", *shared, "--test_file", str(tmp_path / "test.jsonl"))) == 2
    assert "sha256 of the test files" in capsys.readouterr().err


def test_costs_of_a_scorer_hold_the_warm_up_it_shares(tmp_path, monkeypatch):
    model, cost = SimpleNamespace(unload=lambda: None), PhaseCost("warm-up", 1000.0, forward_flops=30.0)
    warmed = SimpleNamespace(model=model, checkpoints=[], cost=cost)
    scored = CostLedger((PhaseCost("scoring", 1.0, forward_flops=50.0),), pool_pass_flops=100.0, kept_pass_flops=1.0)
    monkeypatch.setattr(scores, "warmed_model", lambda *_: warmed)

    def selected(*_, output_dir, warmup, **__):
        scored.with_phase(warmup, first=True).save(output_dir)

    monkeypatch.setattr(scores, "select", selected)
    space = SimpleNamespace(pool=[], targets=[], collator=None)
    measured = scores.Scores(space, None, WarmupSettings(), GISTConfig(), tmp_path, {}, None)
    for scorer in ("gist", "rds_plus"):
        folder = tmp_path / scorer
        folder.mkdir()
        assert 1000 < measured._measure(scorer, folder, space) < 1010
        assert scores.passes_of(folder) == pytest.approx(0.8)
        assert [phase.phase for phase in CostLedger.load(folder).phases] == ["warm-up", "scoring"]


def test_the_planned_method_selects_what_select_does_for_its_target_rows(files, tmp_path):
    raw = Dataset.from_list(varied(80, 0))
    both = varied(40, 2)[:8]
    Dataset.from_list([row | {"task": row["source"]} for row in both]).to_json(tmp_path / "targets.jsonl")
    kept = [row for row in both if row["source"] == "family1"]
    Dataset.from_list(kept).to_json(tmp_path / "kept.jsonl")
    output = tmp_path / "out"
    wanted = ("--scoring_cost", "0.8", "--target_column", "task", "--target_value", "family1")
    more = ("--methods", "gist_planned", "--seeds", "0", "--target_file", str(tmp_path / "targets.jsonl"))
    assert main(flags(files, output, *more, *wanted)) == 0
    (folder,) = (output / "scores").glob("gist_planned-*")
    scored = Selection.load(folder)
    assert len(scored.measurements.target_rows) == len(kept) and scored.measurements.scored.sum() < len(raw)
    # another price is another comparison
    other = ("--scoring_cost", "0.7", *wanted[2:])
    assert main(flags(files, output, *more, *other)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "gist_planned"), "`--scoring_cost` and the method `gist_planned` belong together"),
        (("--methods", "gist", "--scoring_cost", "0.5"), "belong together"),
        (("--methods", "gist_planned", "--scoring_cost", "0.2"), "`scoring_cost=0.2` pays for scoring 0 rows"),
    ],
)
def test_a_price_and_its_method_are_checked_before_any_training(files, tmp_path, capsys, more, message):
    assert main(flags(files, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob("out/runs/*"))
    # a price that was refused is not that of the folder
    assert not (tmp_path / "out" / "compare.json").exists()


def test_shared_scores_within_a_price_are_refused_for_another_shortlist(files, tmp_path, capsys):
    shared = ("--scores_dir", str(tmp_path / "scores"), "--methods", "gist_planned", "--seeds", "0")
    priced = (*shared, "--scoring_cost", "0.7")
    assert main(flags(files, tmp_path / "first", *priced)) == 0
    for more, name in [(("--source_shares", "family2=0.5"), "source_shares"), (("--budget", "0.05"), "budget")]:
        assert main(flags(files, tmp_path / name, *priced, *more)) == 2
        assert f"{name} was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "rows", "length", "rising"),
    [
        (0.03, 8, {"num_train_epochs": 1}, 0),
        (0.03, 8, {"num_train_epochs": 3, "max_steps": -1}, 1),
        (0.03, 800, {"num_train_epochs": 1}, 3),
        (10, 240, {"max_steps": 75}, 10),
        (10, 16, {"num_train_epochs": 2}, 3),
    ],
)
def test_the_learning_rate_of_a_run_rises_as_asked_but_not_in_all_steps(tmp_path, given, rows, length, rising):
    settings = WarmupSettings(per_device_train_batch_size=8)
    bench = run.Bench(None, None, {}, settings, tmp_path, run.measure, {"warmup_steps": given, "use_cpu": True})
    assert bench._training_arguments(rows, 0, length).warmup_steps == rising


def test_scores_without_their_costs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="costs.json does not exist.*Delete the folder to score again"):
        scores.passes_of(tmp_path)


def test_other_settings_need_another_folder(files, compared, tmp_path, capsys):
    assert main(flags(files, compared, "--learning_rate", "1e-3")) == 2
    assert "learning_rate was 0.01 and is now 0.001" in capsys.readouterr().err
    more = ("--scores_dir", str(compared / "scores"), "--warmup_ratio", "0.5", "--methods", "gist")
    assert main(flags(files, tmp_path, *more)) == 2
    assert "warmup_ratio was 0.2 and is now 0.5" in capsys.readouterr().err
    # another budget may use the same scores
    more = ("--scores_dir", str(compared / "scores"), "--budget", "100", "--budget_unit", "tokens", "--seeds", "0")
    assert main(flags(files, tmp_path / "tokens", *more, "--methods", "gist", "random")) == 0
    runs = parquet.read_table(tmp_path / "tokens" / "compare.parquet").to_pylist()
    assert [row["method"] for row in runs] == ["untrained", "random", "gist"]
    assert all(90 <= row["label_tokens"] <= 100 for row in runs[1:])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--methods", "best"), "`--methods best`: no such method"),
        (("--test_file", "held=nowhere.jsonl"), "no such file"),
        (("--test_file", "a/test.jsonl", "b/test.jsonl"), "two test sets have the same name"),
        (("--budget", "0.001"), "selects nothing"),
        (("--metric", "other=x"), "`--metric other=x`: no test set is called 'other'. The test sets are held."),
        (
            ("--metric", "held=accurate"),
            "`--metric held=accurate` is neither a metric of the recipes (choice_accuracy, gsm",
        ),
        (("--max_new_tokens", "0"), "`--max_new_tokens 0` must be at least 1"),
        (("--metric", "held=gsm8k_exact_match", "--max_new_tokens", "60"), "Lower `max_new_tokens`"),
        (
            ("--oracle_source", "family1", "typo"),
            "`--oracle_source typo`: no row of the pool has this value in 'source'. V",
        ),
        (("--source_column", "typo"), "`source_column='typo'` is not a column"),
        (("--source_shares", "typo=0.5"), "`source_shares`: the pool has no row of typo"),
        (("--target_group_column", "typo"), "`target_group_column='typo'` is not a column"),
        (("--target_column", "typo", "--target_value", "a"), "`target_column='typo'` is not a column"),
        (
            ("--target_column", "source", "--target_value", "typo"),
            "`--target_value typo` is not in the column 'source'",
        ),
    ],
)
def test_mistakes_are_named(files, tmp_path, capsys, more, message):
    assert main(flags(files, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    # or the corrected command would be one with other settings
    assert not (tmp_path / "compare.json").exists()


def test_settings_that_each_method_has_of_its_own_are_said_to_have_no_effect(files, compared):
    more = ("--seeds", "0", "--methods", "random", "--strategy", "mean", "--sample_from_top", "3")
    with pytest.warns(NoEffectWarning, match="`--strategy mean`, `--sample_from_top 3.0`: no effect in `hf-gist comp"):
        assert main(flags(files, compared, *more)) == 0


def test_a_plan_for_some_targets_leaves_out_the_rows_of_all_targets(files, tmp_path, monkeypatch):
    """Whether its scores are new or reused: the other methods leave out the rows of every target too."""
    both = varied(40, 2)[:8]
    pool = varied(80, 0)
    other = next(row for row in both if row["source"] != "family1")
    Dataset.from_list([*pool, *[other]]).to_json(tmp_path / "pool.jsonl")
    Dataset.from_list([row | {"task": row["source"]} for row in both]).to_json(tmp_path / "targets.jsonl")
    wanted = ("--scoring_cost", "0.8", "--target_column", "task", "--target_value", "family1", "--seeds", "0")
    more = ("--methods", "gist_planned", "--target_file", str(tmp_path / "targets.jsonl"), *wanted)
    trained, original = [], run.rows_of_arm
    monkeypatch.setattr(run, "rows_of_arm", lambda *given: trained.append(given[1].leaked) or original(*given))
    with pytest.warns(UserWarning, match="also in `target_dataset`"):
        assert main(flags(files, tmp_path / "out", *more, "--train_file", str(tmp_path / "pool.jsonl"))) == 0
    assert len(trained) == 1 and trained[0][80]


def test_the_oracle_needs_its_source(files, tmp_path, capsys):
    given = flags(files, tmp_path, "--methods", "in_domain_random")
    at = given.index("--oracle_source")
    assert main(given[:at] + given[at + 2 :]) == 2
    assert "needs `--source_column` and `--oracle_source`" in capsys.readouterr().err


def test_mean_loss_is_the_mean_of_the_rows_own_losses():
    model, rows, collator = lora_model().eval(), token_rows(9), PaddingCollator()
    with torch.no_grad():
        losses = [model(**collator([row])).loss.item() for row in rows]
    unlabelled = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    rows.insert(4, unlabelled)
    with pytest.raises(ValueError, match="None of the 1 rows has a labelled token"):
        mean_loss(model, [unlabelled], collator)
    assert mean_loss(model, rows, collator, tokens_per_batch=40) == pytest.approx(sum(losses) / 9, rel=1e-5)


def made_runs():
    rows = []
    for method, losses, passes in [
        ("random", (2.0, 2.25), 0.0),
        ("gist", (1.9, 2.3), 1.05),
        ("untrained", (4.0,), 0.0),
    ]:
        for seed, loss in enumerate(losses):
            outcomes = {"a": {"loss": [loss - 0.5 - seed / 10, loss + 0.5 + seed / 10]}}
            rows.append(
                {"method": method, "seed": seed, "rows": 5, "label_tokens": 50, "steps": 3, "loss_a": loss}
                | {"selection_seconds": 10.0, "selection_passes": passes, "train_seconds": 2.0, "train_tokens": 500}
                | {"standard_error_loss_a": 0.5 + seed / 10, "outcomes": outcomes}
            )
    return rows


def test_the_table_is_arithmetic_on_the_runs():
    runs = made_runs()
    column = Column("a", "loss")
    # both rows of a seed differ by the same, so that there is nothing between rows
    assert against_random(runs, "gist", column) == "-0.0250 (rows ± 0.0000; seeds ± 0.1061; better in 1 of 2 seeds)"
    assert against_random(runs, "random", column) == ""
    # without a seed: against the random rows of every seed
    assert "+1.8750 (rows ± 0.0500; seeds ± 0.1768; better in 0 of 2" in against_random(runs, "untrained", column)
    assert against_random(runs[2:3], "gist", column) == ""
    lines = markdown(runs, pool_tokens=1000).splitlines()
    in_order = ["| GIST (paper's rule)", "| random rows", "| untrained model"]
    assert [line.split(" | ")[0] for line in lines[2:5]] == in_order
    # of one run: root of the mean of 0.5 and 0.6 squared
    assert "2.1000 (rows ± 0.5523; seeds ± 0.2828)" in lines[2] and lines[2].endswith("| 1.55 |")
    assert "2.1250 (rows ± 0.5523; seeds ± 0.1768)" in lines[3] and "| 4.0000 (rows ± 0.5000) |" in lines[4]
    assert break_even(runs, 1000).count("\n") == 1 and "for 1.55 epochs on" in break_even(runs, 1000)
    # a training that diverged is the worst
    runs[2]["loss_a"] = float("nan")
    lines = markdown(runs, pool_tokens=1000).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == [*in_order[1:], in_order[0]]
