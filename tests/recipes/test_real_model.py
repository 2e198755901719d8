"""The benchmark on a real model: whole runs on a tiny one, and the accuracy against one answer at a time."""

import argparse
import dataclasses
import json
import math
import random
import time
from collections import Counter

import pytest
import torch

from tests import ROOT
from tests.helpers.processes import FORKED
from tests.helpers.tiny import base_model
from tests.helpers.words import TEMPLATE, save_model, tokenizer, varied, write_rows


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "benchmarks"))
    monkeypatch.setattr("real.workers.PROCESSES", FORKED)


def questions(size, seed):
    """Test rows with two to four choices."""
    rng, rows = random.Random(seed), varied(size, seed)
    for row in rows:
        wrong = [" ".join(f"w{rng.randrange(80)}" for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
        right = row["messages"][-1]["content"]
        row["choices"] = sorted([right, *wrong])
        row["answer"] = row["choices"].index(right)
    return rows


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def data(tmp_path):
    save_model(tmp_path / "model")
    rows, questioned = varied(60, 1), questions(12, 2)
    for number, name in enumerate(("one", "two")):
        write_rows(tmp_path / f"target_{name}.jsonl", varied(5, 3 + number))
        write_rows(tmp_path / f"test_{name}.jsonl", questioned[6 * number : 6 * number + 6])
    leaked = {"messages": questioned[0]["messages"], "source": "leak"}
    write_rows(tmp_path / "pool.jsonl", [*rows, leaked])
    return tmp_path


@pytest.fixture
def proxy(tmp_path):
    """A smaller model with another template; it has positions for all but the longest rows."""
    template = TEMPLATE.replace("user {{", "w90 w91 user {{")
    base_model(seed=7, hidden_size=16, intermediate_size=24, max_position_embeddings=14).save_pretrained(
        tmp_path / "proxy"
    )
    tokenizer(template).save_pretrained(tmp_path / "proxy")
    return tmp_path / "proxy"


def run(folder, *more, output="out"):
    """Run the script in this process; later options override the earlier ones."""
    import real_model

    arguments = [
        "--model", folder / "model", "--data", folder, "--output", folder / output, "--targets", "one", "two",
        "--budgets", "0.2", "--passes", "1", "--batch_size", "8", "--device", "cpu", "--seeds", "0", *more,
    ]  # fmt: skip
    return real_model.main([str(value) for value in arguments])


def refused(folder, *more):
    """The message with which a start is refused."""
    with pytest.raises(SystemExit) as stopped:
        run(folder, *more)
    return str(stopped.value)


def by_arm(report):
    found = {}
    for one in report["results"]:
        found.setdefault(one["arm"], []).append(one)
    return found


SECONDS = ("train_seconds", "test_seconds", "select_seconds")


def without_seconds(report):
    """The results that must be the same in every run."""
    return [{name: value for name, value in one.items() if name not in SECONDS} for one in report["results"]]


class Interrupted(BaseException):
    """As if the process was killed: nothing handles it."""


def interrupting(monkeypatch, owner, name, after):
    """Interrupt a run before the call number `after` of a function; returns the calls."""
    calls = []
    original = getattr(owner, name)

    def counted(*args, **kwargs):
        if len(calls) == after:
            raise Interrupted
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_a_price_that_pays_for_too_little_leaves_its_arm_out(data, capsys):
    report = run(data, "--arms", "random", "plan")
    assert {found["arm"] for found in report["results"]} == {"random"} and len(report["missing"]) == 2
    assert "for 0.25 passes, one: `scoring_cost=0.25` pays for scoring" in capsys.readouterr().out


def test_a_run_of_everything(data, proxy, capsys, monkeypatch):
    from real.arms import EVERY_ARM, PROXY_ARMS, UNTRAINED, WHOLE

    monkeypatch.setitem(EVERY_ARM, "plan", dataclasses.replace(EVERY_ARM["plan"], scoring_cost=0.6))
    arms = [UNTRAINED, *EVERY_ARM]
    gast = ["--gast", "--gast_rows", "16", "--gast_passes", "1"]
    report = run(data, "--arms", *arms, "--proxy_model", proxy, *gast)
    assert report["missing"] == [] and report["about"]["pool"] == 60 and report["about"]["selected"] == {"0.2": 12}
    found = by_arm(report)
    from real.gast import gast_arms, gast_modes

    modes = gast_arms(gast_modes(), ["one"])
    assert set(modes) == {
        "gast_all", "gast_random", "gast_stochastic-one", "gast_topk-one", "gast_positive-one", "gast_whole_samples-one",
        "gast_greedy-one",
    } <= set(found)  # fmt: skip
    assert set(found) == {*arms, *modes} and len(found.pop(UNTRAINED)) == 2
    assert all(Counter(one["seed"] for one in own) == {0: 2} for own in found.values())
    rows = {arm: {one["rows"] for one in own} for arm, own in found.items()}
    assert rows.pop(WHOLE) == {60} and all(rows.pop(arm) == {16} for arm in modes)
    assert set(map(tuple, rows.values())) == {(12,)}
    passes = {arm: found[arm][0]["selection_passes"] for arm in EVERY_ARM}
    assert passes["random"] == passes["bm25"] == passes[WHOLE] == 0
    # a warm-up on 5 % of 60 rows, and a pass without or with its backward half
    assert passes["rds_plus"] == pytest.approx(0.55) and passes["gist"] == pytest.approx(1.05)
    assert all(0 < passes[arm] < 0.5 for arm in PROXY_ARMS) and 0.4 < passes["plan"] <= 0.6
    assert all(one["select_seconds"] > 0 for arm in ("gist", "rds_plus", *PROXY_ARMS) for one in found[arm])
    # no two arms train the same model, except that those of one mode differ in their support only
    # at this learning rate, overlaps do not change what `greedy` chooses
    losses = Counter(one["loss"] for one in report["results"] if one["arm"] != "gast_greedy-one")
    assert max(losses.values()) == 1
    assert json.loads((data / "out" / "results.json").read_text(encoding="utf-8")) == report
    text = (data / "out" / "results.md").read_text(encoding="utf-8")
    assert text.count("\n| untrained |") == 4 and text.count("\n| plain LoRA |") == 2 and "Missing" not in text
    assert text in capsys.readouterr().out
    first = text.splitlines()[0]
    assert first.startswith(
        "model in float32 on CPU, pool of 60 rows, test rows: one 6, two 6. `real_model.py --model"
    )


def test_several_processes_give_the_results_of_one(data, proxy):
    """They also continue what one process began."""
    options = ["--arms", "untrained", "random", "gist", "proxy_gist", "--proxy_model", proxy, "--targets", "one"]
    alone = run(data, *options, output="alone")
    run(data, "--arms", "random", "--targets", "one", output="shared")
    shared = run(data, *options, "--workers", "2", output="shared")
    assert shared["missing"] == [] and without_seconds(shared) == without_seconds(alone)


def test_a_run_that_fails_in_one_process_is_named_and_the_others_finish(data):
    (data / "out" / "warmup_0").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"Scoring\(seed=0, proxy=False\).*arm='gist', targets=\('one',\)"):
        run(data, "--arms", "untrained", "gist", "random", "--workers", "2")
    kept = {path.name for path in (data / "out" / "runs").iterdir()}
    assert kept == {
        "untrained-one.json", "untrained-two.json", "random-0.2-seed0-one.json", "random-0.2-seed0-two.json",
    }  # fmt: skip


def test_a_process_that_is_killed_is_no_reason_to_wait(data):
    """Its work is named, and the others go on; if all are gone, so is what nobody began."""
    import multiprocessing
    import threading

    def kill_all():
        # one that is left would finish everything
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        for child in multiprocessing.active_children():
            child.kill()

    thread = threading.Thread(target=kill_all)
    thread.start()
    with pytest.raises(RuntimeError, match=r"Scoring\(seed=0, proxy=False\)"):
        run(data, "--arms", "gist", "random", "--workers", "2")
    thread.join()


def test_whole_comparisons_come_first(data):
    import real_model
    from real.experiment import trainings

    options = [
        "--model",
        "m",
        "--data",
        "d",
        "--output",
        "o",
        "--targets",
        "one",
        "two",
        "--seeds",
        "3",
        "4",
        "--gast",
    ]
    order = trainings(real_model.parse([*options, "--device", "cuda", "--budgets", "0.1", "0.2"]))
    assert len(set(order)) == len(order)
    assert order[0].arm == "untrained" and order[0].seed is None
    seeds = [one.seed for one in order[1:]]
    assert seeds == sorted(seeds)
    first = [one for one in order[1:] if one.seed == 3]
    budgets = [one.budget for one in first if one.budget]
    assert budgets == sorted(budgets) and set(budgets) == {0.1, 0.2}
    smallest = [one for one in first if one.budget == 0.1]
    # the rows of random rows are those of all targets; then target by target
    assert [one.targets for one in smallest] == [("one", "two"), *[("one",)] * 6, *[("two",)] * 6]
    assert [one.arm for one in first if one.budget is None][0] == "whole_pool"
    on_a_cpu = real_model.parse([*options, "--device", "cpu"])
    assert "whole_pool" not in on_a_cpu.arms and on_a_cpu.gast_support == ["one"]


def test_an_interrupted_run_continues(data, monkeypatch):
    """Wherever it stops: nothing that is kept is tested again, and the results are those of one run."""
    from real.results import Results
    from real.training import Bench

    arms = ["--arms", "untrained", "random", "gist"]
    whole = run(data, *arms, output="whole")
    assert len(whole["results"]) == 6 and whole["missing"] == []
    for finished in (0, 3, 4):
        with monkeypatch.context() as patch:
            interrupting(patch, Results, "add", finished)
            with pytest.raises(Interrupted):
                run(data, *arms, output=str(finished))
        with monkeypatch.context() as patch:
            tested = interrupting(patch, Bench, "test", None)
            report = run(data, *arms, output=str(finished))
        assert len(tested) == 6 - finished and report["missing"] == []
        assert without_seconds(report) == without_seconds(whole)
        assert not list((data / str(finished)).rglob("*.tmp"))
    trained = interrupting(monkeypatch, Bench, "train", 0)
    assert without_seconds(run(data, *arms, output="whole")) == without_seconds(whole) and trained == []


@pytest.mark.parametrize(("arm", "batches"), [("gist", 3), ("rds_plus", 1), ("proxy_gist", 2)])
def test_interrupted_scoring_resumes(data, proxy, monkeypatch, arm, batches):
    from hf_gist.gradients import partial

    options = ["--arms", arm, "--tokens_per_batch", "64", "--proxy_model", proxy, "--targets", "one"]
    whole = run(data, *options, output="whole")
    monkeypatch.setattr(partial, "SECONDS_BETWEEN_SAVES", 0.0)
    shards = partial.Shards
    with monkeypatch.context() as patch:
        interrupting(patch, shards, "add", batches)
        with pytest.raises(Interrupted):
            run(data, *options)
    saved = interrupting(monkeypatch, shards, "add", None)
    report = run(data, *options)
    assert without_seconds(report) == without_seconds(whole)
    total = len(saved)
    assert total > 0 and all(one["select_seconds"] is None for one in report["results"])
    saved.clear()
    run(data, *options, output="again")
    assert len(saved) == total + batches
    title = "GIST" if "gist" in arm else "RDS"
    line = next(
        line for line in (data / "out" / "results.md").read_text().splitlines() if line.startswith(f"| {title}")
    )
    assert line.split(" | ")[-2].strip() == ""


def test_an_interrupted_warm_up_leaves_nothing_that_is_taken_for_one(data, monkeypatch):
    from peft import PeftModel

    options = ["--arms", "gist", "--targets", "one"]
    whole = run(data, *options, output="whole")
    with monkeypatch.context() as patch:
        # after the weights are written
        def interrupted(self, folder, **kwargs):
            save(self, folder, **kwargs)
            raise Interrupted

        save = PeftModel.save_pretrained
        patch.setattr(PeftModel, "save_pretrained", interrupted)
        with pytest.raises(Interrupted):
            run(data, *options)
    assert not (data / "out" / "warmup_0").exists()
    assert without_seconds(run(data, *options)) == without_seconds(whole)


def test_the_pool_is_scored_once_for_all_budgets_and_targets(data, monkeypatch):
    from real import scores

    calls = interrupting(monkeypatch, scores, "select", None)
    report = run(
        data, "--arms", "random", "gist", "recommended", "rds_plus", "--budgets", "0.2", "0.5", "--targets", "one"
    )
    assert len(calls) == 2
    found = by_arm(report)
    assert [one["rows"] for one in found["gist"]] == [12, 30]
    assert len({one["loss"] for one in report["results"]}) == len(report["results"]) == 2 * 4
    text = (data / "out" / "results.md").read_text(encoding="utf-8")
    assert all(f"5 target rows, {share} % of the pool" in text for share in (20, 50))


OTHERS = {
    "pool_rows": 50, "test_rows": 4, "max_length": 30, "budgets": 0.1, "passes": 2, "whole_pool_passes": 2,
    "learning_rate": 1e-3, "batch_size": 4, "lora_target_modules": "q_proj", "tokens_per_batch": 128, "dtype": "bfloat16",
    "attn_implementation": "eager", "gast_rows": 9, "gast_passes": 3,
}  # fmt: skip


def test_other_settings_are_refused_by_name(data, proxy):
    """Every option that changes a result, and the content of every file."""
    start = ["--arms", "untrained", "--proxy_model", proxy, "--gast", "--gast_rows", "8", "--gast_passes", "1"]
    # no time: only the untrained model is tested
    start += ["--minutes", "0"]
    run(data, *start)
    for name, value in OTHERS.items():
        message = refused(data, *start, f"--{name}", value)
        assert "was written with other settings" in message and f" {name} was " in message, name
        assert f"is now {value!r}" in message or f"is now [{value!r}]" in message, name
    for option in ("model", "proxy_model"):
        base_model(seed=5).save_pretrained(data / "other")
        tokenizer().save_pretrained(data / "other")
        assert f" {option} was " in refused(data, *start, f"--{option}", data / "other")
    for name in ("pool.jsonl", "test_two.jsonl", "target_one.jsonl"):
        before = (data / name).read_text(encoding="utf-8")
        (data / name).write_text("\n".join(before.splitlines()[:-1]), encoding="utf-8")
        assert f" {name} was " in refused(data, *start)
        (data / name).write_text(before, encoding="utf-8")
    run(data, *start)


def test_options_that_all_runs_share_are_checked():
    """A new option must be in one of the lists, or be known to change no result."""
    import real_model
    from real.experiment import OF_GAST, SHARED

    free = {"model", "data", "output", "targets", "seeds", "arms", "proxy_model", "gast", "gast_support", "minutes"}
    free |= {"workers", "end"}
    options = vars(real_model.parse(["--model", "m", "--data", "d", "--output", "o"]))
    assert set(options) == {*SHARED, *OF_GAST, *free}


def test_arms_seeds_and_targets_can_be_added(data, proxy, monkeypatch):
    from real.training import Bench

    # the pool has a test row of the target that is added, which would change the pool
    write_rows(data / "pool.jsonl", varied(60, 1))
    everything = ["--seeds", "0", "1", "--arms", "random", "gist"]
    whole = run(data, *everything, output="whole")
    run(data, "--targets", "two", "--arms", "random")
    run(data, "--targets", "two", "--arms", "gist")
    with monkeypatch.context() as patch:
        trained = interrupting(patch, Bench, "train", None)
        report = run(data, *everything)
    # one seed of one target was there; random rows are trained again for the other target
    assert len(trained) == 2 * (1 + 2) - 1 and report["missing"] == []
    assert {path.name for path in (data / "out").glob("scores*")} == {
        "scores_gist_0",
        "scores_gist_0_one",
        "scores_gist_1",
    }
    for one, other in zip(report["results"], whole["results"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4) and one["sources"] == other["sources"]
    from real.gast import gast_arms

    gast = ["--gast", "topk", "all", "--gast_rows", "8", "--gast_passes", "1"]
    more = run(data, "--targets", "one", "--arms", "proxy_gist", "--proxy_model", proxy, *gast)
    # the tables of a start with fewer targets hold all results
    assert {*by_arm(more)} == {*by_arm(report), "proxy_gist", *gast_arms(["topk", "all"], ["one"])}
    assert len(more["results"]) == len(report["results"]) + 1 + 2 and more["missing"] == []
    text = (data / "out" / "results.md").read_text(encoding="utf-8")
    assert "**one**" in text and "**two**" in text and "GAST, topk, support one" in text


def test_a_target_that_changes_the_pool_is_refused(data):
    run(data, "--targets", "two", "--arms", "untrained")
    assert "pool without target and test rows was" in refused(data, "--targets", "one", "two", "--arms", "untrained")


def test_unfinished_scores_of_other_targets_are_named(data, monkeypatch):
    from hf_gist.gradients import partial

    write_rows(data / "pool.jsonl", varied(60, 1))
    monkeypatch.setattr(partial, "SECONDS_BETWEEN_SAVES", 0.0)
    options = ["--arms", "gist", "--tokens_per_batch", "64"]
    with monkeypatch.context() as patch:
        interrupting(patch, partial.Shards, "add", 3)
        with pytest.raises(Interrupted):
            run(data, *options)
    message = refused(data, *options, "--targets", "one")
    assert "scores_gist_0 has unfinished scores for other targets: add two to --targets" in message
    assert run(data, *options)["missing"] == []


def test_a_proxy_without_room_for_a_target_is_refused(data):
    base_model(max_position_embeddings=8).save_pretrained(data / "short")
    tokenizer().save_pretrained(data / "short")
    write_rows(data / "pool.jsonl", [*varied(60, 1), {"messages": chat("w1 w2", "w3"), "source": "short"}])
    write_rows(data / "target_one.jsonl", [{"messages": chat("w4 w5", "w6")}])
    message = refused(data, "--arms", "proxy_gist", "--proxy_model", data / "short")
    assert "has 8 positions, and no row of two has as few tokens" in message


def test_options_that_do_not_fit_are_refused(data, capsys):
    for more, message in (
        (["--arms", "proxy_gist"], "need --proxy_model"),
        (["--gast_support", "three"], "--gast_support three: choose from --targets one two"),
    ):
        with pytest.raises(SystemExit):
            run(data, *more)
        assert message in capsys.readouterr().err
    assert "--gast_rows 1000: the pool has only 60 rows" in refused(data, "--gast")


def test_a_run_without_time_measures_the_untrained_model_and_names_the_rest(data):
    report = run(data, "--minutes", "0", "--test_rows", "3", "--seeds", "0", "1")
    assert [found["arm"] for found in report["results"]] == ["untrained"] * 2
    assert len(report["missing"]) == 2 * 2 * 7 and "random rows, 20 %, seed 0, one" in report["missing"]
    assert "Missing: random rows, 20 %, seed 0, one;" in (data / "out" / "results.md").read_text(encoding="utf-8")


def test_a_limit_is_kept_by_what_finished_runs_took(data):
    """A second start knows from the first how long training and testing take."""
    run(data, "--arms", "random")
    for path in (data / "out" / "runs").glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(found | {"train_seconds": 1e6}), encoding="utf-8")
    report = run(data, "--arms", "random", "bm25", "--minutes", "60")
    assert {found["arm"] for found in report["results"]} == {"random"} and len(report["missing"]) == 2


def test_an_arm_is_an_entry_in_a_table(data, monkeypatch):
    """A plan that scores only some rows exactly is tried with the exact scores of all: the others are masked."""
    from real import arms

    from hf_gist import Selection

    seen = []

    def among_the_last(measurements, pool, targets, config, seed):
        scored = torch.arange(len(pool)) >= 30
        rows = Selection.choose(dataclasses.replace(measurements, scored=scored), config).indices
        seen.append((len(pool), targets["source"], seed, rows))
        return rows

    monkeypatch.setitem(arms.ARMS, "last", arms.Arm("among the last", among_the_last, arms.GIST))
    monkeypatch.setitem(arms.EVERY_ARM, "last", arms.ARMS["last"])
    report = run(data, "--arms", "gist", "last")
    assert [one[:3] for one in seen] == [(60, ["one"] * 5, 0), (60, ["two"] * 5, 0)]
    assert all(len(rows) == 12 and min(rows) >= 30 for *_, rows in seen)
    assert [found["title"] for found in by_arm(report)["last"]] == ["among the last"] * 2


def test_the_rows_of_every_arm(data):
    """Against the library's own functions on measurements of everything."""
    from real.arms import ARMS
    from real.data import Data, as_tokens, read_some, without_scores

    from hf_gist import GISTConfig
    from hf_gist.data.best_match import best_match_order
    from hf_gist.functional.selection.ranking import length_matched_order

    words, raw = tokenizer(), read_some(data / "pool.jsonl").rows.to_list()
    raw.append(dict(raw[0], source="elsewhere"))
    pool, kept = as_tokens(raw, words, "pool", 50)
    targets, _ = as_tokens([row | {"source": "one"} for row in varied(5, 3)], words, "targets", 50)
    measured = without_scores(Data(pool, targets, raw, raw, {}, words))
    eligible = torch.arange(62) < 61  # the last repeats the first
    assert kept == list(range(62)) and torch.equal(measured.eligible(True, True), eligible)
    assert measured.label_tokens.tolist() == [sum(i != -100 for i in row) for row in pool["labels"]]
    config = GISTConfig(budget=9, seed=4)
    random_rows = ARMS["random"].rows(measured, pool, targets, config, 4)
    assert random_rows == torch.randperm(62, generator=torch.Generator().manual_seed(1004))[:9].tolist()
    matched = ARMS["length_matched"].rows(measured, pool, targets, config, 4)
    lengths = measured.label_tokens, measured.target_label_tokens
    assert matched == length_matched_order(*lengths, eligible, 4)[:9]
    assert ARMS["bm25"].rows(measured, pool, targets, config, 4) == best_match_order(pool, targets, eligible, 9)


def test_the_rows_of_the_proxy_are_rows_of_the_pool(data, proxy, monkeypatch):
    """They are found with its own tokens; rows that are too long for it are not selected."""
    from real import experiment

    from hf_gist import GISTConfig, Selection
    from hf_gist.training.loading import load_tokenizer

    found = []
    original = experiment.Experiment.choose

    def choose(self, arm, count, training):
        chosen = original(self, arm, count, training)
        found.append((self, chosen[0]))
        return chosen

    monkeypatch.setattr(experiment.Experiment, "choose", choose)
    report = run(data, "--arms", "proxy_gist", "proxy_recommended", "--proxy_model", proxy)
    assert report["missing"] == []
    this = found[0][0]
    words, _ = load_tokenizer(str(proxy), None, False)
    conversations = [row["messages"] for row in this.data.raw_pool]
    tokens = words.apply_chat_template(conversations, tokenize=True, return_dict=True)["input_ids"]
    short = [row for row, ids in enumerate(tokens) if len(ids) <= 14]
    assert this.proxy.rows == short and 0 < len(short) < 60
    assert this.proxy.data.pool["input_ids"] == [tokens[row] for row in short]
    assert all(set(rows) <= set(short) and len(rows) == 12 for _, rows in found)
    # the same rows as from its scores alone, by their numbers in the pool
    own = Selection.load(this.folder / "proxy_scores_gist_0").measurements.for_targets("source", "one")
    assert found[0][1] == [short[row] for row in Selection.choose(own, GISTConfig(budget=12, seed=0)).indices]
    size = this.proxy.base.num_parameters() / this.bench.base.num_parameters()
    assert by_arm(report)["proxy_gist"][0]["selection_passes"] == pytest.approx(
        size * (1 + math.ceil(0.05 * len(short)) / len(short))
    )


def test_every_mode_of_gast_is_an_arm(monkeypatch):
    """Also one that the library gets later."""
    import typing

    from real import gast

    assert gast.gast_arms(gast.gast_modes(), ["x", "y"]) == [
        "gast_all", "gast_random",
        *(f"gast_{name}-x" for name in ("stochastic", "topk", "positive", "whole_samples", "greedy")),
        *(f"gast_{name}-y" for name in ("stochastic", "topk", "positive", "whole_samples", "greedy")),
    ]  # fmt: skip
    later = {"mode": typing.Literal["new", "random", "all"]}
    monkeypatch.setattr(gast, "get_type_hints", lambda config: later)
    assert gast.gast_arms(gast.gast_modes(), ["x"]) == [
        "gast_all", "gast_random", "gast_new-x", "gast_whole_samples-x", "gast_greedy-x",
    ]  # fmt: skip
    assert gast.gast_title("gast_new-x") == "GAST, new, support x"


def test_plain_lora_is_that_of_the_stock_trainer(data):
    """The rows and passes of the other arms with the stock Trainer give the same loss."""
    gast = ["--gast", "--gast_rows", "12", "--gast_passes", "1"]
    found = by_arm(run(data, "--arms", "random", *gast))
    losses = {arm: [one["loss"] for one in found[arm]] for arm in ("random", "gast_all", "gast_random")}
    assert losses["random"] == losses["gast_all"] != losses["gast_random"]


def test_answers_are_those_of_the_models_own_loss_one_choice_at_a_time(data):
    from real.training import load_model

    report = run(data, "--arms", "untrained", "--targets", "one", "--tokens_per_batch", "60")
    words, rows = tokenizer(), [json.loads(line) for line in (data / "test_one.jsonl").read_text().splitlines()]
    model = load_model(data / "model", argparse.Namespace(dtype="float32", attn_implementation=None))
    losses, by_sum, by_mean = [], [], []
    for row in rows:
        means, sums = [], []
        for choice in row["choices"]:
            prompt = words.apply_chat_template(row["messages"][:1], add_generation_prompt=True)["input_ids"]
            answered = [row["messages"][0], {"role": "assistant", "content": choice}]
            ids = words.apply_chat_template(answered)["input_ids"]
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            with torch.no_grad():
                loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
            means.append(loss)
            sums.append(loss * (len(ids) - len(prompt)))
        losses.append(means[row["answer"]])
        by_mean.append(means.index(min(means)) == row["answer"])
        by_sum.append(sums.index(min(sums)) == row["answer"])
    found = {name: values(report["results"][0], name) for name in ("loss", "accuracy_by_sum", "accuracy_by_mean")}
    assert found["loss"] == pytest.approx(losses, rel=1e-4)
    assert found["accuracy_by_sum"] == by_sum and found["accuracy_by_mean"] == by_mean
    assert 0 < sum(by_mean) < len(rows) and by_sum != by_mean


def values(result, name):
    """What was measured on every test row."""
    return [float(value) for value in result[f"{name}_rows"].split()]


def test_only_the_answer_is_labelled_and_rows_without_one_are_named():
    from real.data import as_tokens

    rows = varied(2, 1)
    encoded, _ = as_tokens(rows, tokenizer(), "f", 50)
    labelled = [token for token in encoded[0]["labels"] if token != -100]
    assert tokenizer().decode(labelled) == rows[0]["messages"][1]["content"] + " </s>"
    without_answer = [rows[0], rows[1] | {"messages": rows[1]["messages"][:1]}]
    with pytest.raises(ValueError, match="f, row 2: "):
        as_tokens(without_answer, tokenizer(), "f", 50)


def result(seed, values_of_rows, arm="gist", **more):
    """A run with these losses of the test rows."""
    values = {f"{name}_rows": values_of_rows for name in ("loss", "accuracy_by_sum", "accuracy_by_mean")}
    numbers = [float(value) for value in values_of_rows.split()]
    means = {name.removesuffix("_rows"): sum(numbers) / len(numbers) for name in values}
    return {"seed": seed, "arm": arm, "title": arm, "budget": 0.1, "target": "one"} | values | means | more


def test_differences_are_paired_by_row_and_seed():
    from real.table import paired_difference

    baseline = [result(0, "0 0 1 1"), result(1, "0 1 0 1")]
    assert paired_difference([result(0, "1 0 1 1")], baseline, "loss") == (0.25, 0.25)
    assert paired_difference([result(0, "0 0 1 1"), result(1, "0 1 0 1")], baseline, "loss") == (0.0, 0.0)
    assert paired_difference([result(2, "0 0 1 1")], baseline, "loss") is None
    assert paired_difference([result(None, "0 0 1 1")], baseline, "loss") == (
        0.0,
        pytest.approx(0.5 * (2 / 3) ** 0.5 / 2),
    )


def test_the_table_of_made_up_results():
    from real.table import markdown

    facts = {"rows": 6, "passes": 2, "test_rows": 4, "target_rows": 48, "train_seconds": 3.0, "selection_passes": 0.0}
    runs = [
        result(0, "1 2 3 4", "random", select_seconds=0.0, **facts),
        result(1, "1 2 3 6", "random", select_seconds=0.0, **facts),
        result(0, "0.5 2 3 4", select_seconds=None, **facts),
        result(1, "0.5 2 3 6", select_seconds=7.0, **facts | {"train_seconds": 5.0, "selection_passes": 1.05}),
    ]
    settings = {"model": "a/model", "dtype": "float32", "passes": 2, "whole_pool_passes": 1, "batch_size": 8}
    settings |= {"learning_rate": 0.1, "budgets": [0.1]}
    about = {"device_name": "CPU", "pool": 60, "command": "real_model.py"}
    text = markdown({"settings": settings, "about": about, "missing": [], "results": runs})
    mean = "2.7500 ± 0.3536 (0.8539)"
    assert f"| random | 6 | 2 | {mean} | {mean} | {mean} |  |  |  | 0.00 | 0.0 | 3.0 |" in text
    own, difference = "2.6250 ± 0.3536 (0.9437)", "-0.1250 (0.1250)"
    expected = [*[own] * 3, *[difference] * 3, "0.53", "7.0", "4.0"]
    assert f"| gist | 6 | 2 | {' | '.join(expected)} |" in text
    assert "**one**, 4 test rows, 48 target rows, 10 % of the pool" in text and "Missing" not in text
