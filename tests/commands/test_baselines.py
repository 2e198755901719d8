"""The baselines of `hf-gist compare` that are no setting of `GISTConfig`, against plain loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from pyarrow import parquet

from hf_gist.commands.compare import baselines, run, scores
from hf_gist.commands.compare.arguments import CompareArguments, chosen_methods
from hf_gist.commands.compare.arms import BM25, LABELS, LOSS_DROP, NEAREST, rows_by_scores, rows_of_arm
from hf_gist.commands.main import main
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import CostLedger
from hf_gist.functional.measurements import Measurements
from hf_gist.gradients.collect import collect_losses
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import fresh_lora, padding_collator
from tests.data.test_best_match import by_formula
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows
from tests.helpers.words import save_model, varied


LEAKED, COPY, UNLABELLED = 5, 61, 62
"""Rows of the pool: a test row, a copy of row 1, and a row without an answer."""

WARMUP = WarmupSettings(
    lora_target_modules="q_proj, v_proj", learning_rate=1e-2, per_device_train_batch_size=8, lora_dropout=0.0
)
CONFIG = GISTConfig(budget=0.2, warmup_ratio=0.2, explained_variance=0.99, source_column="source")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pool, two target sets in one file and a test set; row 5 of the pool is a test row, row 61 repeats row 1."""
    folder = tmp_path_factory.mktemp("baselines")
    save_model(folder / "model")
    pool = varied(60, 0)
    targets, tests = varied(12, 1), varied(9, 2)
    pool = [*pool, varied(1, 3)[0], pool[1], {"messages": [{"role": "user", "content": "w1 w2"}], "source": "family0"}]
    pool[LEAKED] = tests[0]
    Dataset.from_list(pool).to_json(folder / "pool.jsonl")
    sets = [row | {"set": "a" if row["source"] in ("family0", "family1") else "b"} for row in targets]
    Dataset.from_list(sets).to_json(folder / "targets.jsonl")
    Dataset.from_list(tests).to_json(folder / "test.jsonl")
    return folder


def arguments_of(files, output, **more):
    given = {
        "model_name_or_path": str(files / "model"),
        "train_file": str(files / "pool.jsonl"),
        "target_file": str(files / "targets.jsonl"),
        "test_file": [f"held={files / 'test.jsonl'}"],
        "output_dir": str(output),
        "skip_bad_rows": True,
        "num_train_epochs": 1.0,
        "seeds": [0],
    }
    return CompareArguments(**(given | more))


def opened(files, output, config=CONFIG, **more):
    """A comparison whose scores can be asked for."""
    return run.open_comparison(arguments_of(files, output, **more), WARMUP, config)


@pytest.fixture(scope="module")
def comparison(files):
    return opened(files, files / "out", test_file=[f"held={files / 'test.jsonl'}"])


def rows_of(comparison, method, config=CONFIG):
    scored = comparison.scores.of(method)
    return rows_of_arm(method, scored.measured, config, 0, None, scored.row_scores)


def selectable(comparison):
    """Rows of the pool that may be selected, found without the library's search for them."""
    return [row for row in range(len(comparison.scores.workspace.pool)) if row not in (LEAKED, COPY, UNLABELLED)]


def picks_by_turns(rankings, rows, number):
    """Each ranking in turn picks the best of the rows that are left."""
    left, picked = list(rows), []
    while len(picked) < number and left:
        for ranking in rankings:
            if len(picked) < number and left:
                picked.append(max(left, key=lambda row: (ranking[row], -row)))
                left.remove(picked[-1])
    return picked


def test_both_are_in_the_default_methods():
    assert {BM25, LOSS_DROP} <= set(chosen_methods(CompareArguments(), CONFIG))


# ---- BM25 ----


def test_bm25_picks_the_best_match_of_each_target_in_turn(comparison):
    pool, targets = ([list(ids) for ids in rows["input_ids"]] for rows in pool_and_targets(comparison))
    rankings = [by_formula(ids, pool) for ids in targets]
    picked = rows_of(comparison, BM25)
    assert len(picked) == 12 == len(set(picked))
    left = set(selectable(comparison))
    for turn, row in enumerate(picked):
        ranking = rankings[turn % len(rankings)]
        # equal matches are rounded differently by the formula
        assert row in left and ranking[row] >= max(ranking[other] for other in left) - 1e-4
        left.remove(row)


def pool_and_targets(comparison):
    space = comparison.scores.workspace
    return space.pool, space.targets


def test_nearest_picks_by_the_mean_embeddings_of_each_target_in_turn(comparison):
    scored = comparison.scores.of(NEAREST)
    space = comparison.scores.workspace
    weights = comparison.scores.base.get_input_embeddings().weight.detach().double()
    means = torch.stack([weights[row].mean(0) for row in space.pool["input_ids"]])
    wanted = torch.stack([weights[row].mean(0) for row in space.targets["input_ids"]])
    expected = torch.nn.functional.cosine_similarity(
        (wanted - means.mean(0))[:, None], (means - means.mean(0))[None], dim=2
    )
    torch.testing.assert_close(scored.row_scores.double(), expected, rtol=0, atol=1e-5)
    assert scored.passes == 0
    picked = rows_of(comparison, NEAREST)
    assert picked == picks_by_turns(scored.row_scores.tolist(), selectable(comparison), len(picked))


def test_bm25_costs_no_pass(comparison):
    scored = comparison.scores.of(BM25)
    assert scored.passes == 0 and scored.row_scores.shape == (12, 63)
    ledger = CostLedger.load(comparison.scores.folder / BM25)
    assert ledger.totals()["flops"] == 0 and ledger.pool_pass_flops > ledger.kept_pass_flops > 0
    assert "the model was not run" in ledger.break_even()


@pytest.mark.parametrize("method", [BM25, LOSS_DROP])
@pytest.mark.parametrize(
    "changes",
    [
        {"budget": 30, "budget_unit": "tokens"},
        {"budget": 10, "source_shares": {"family3": 0.5}},
        {"budget": 10, "source_max": {"family0": 1, "family1": 2}},
        {"budget": 1.0},
        {"budget": 1.0, "drop_target_duplicates": False, "drop_pool_duplicates": False},
    ],
)
def test_budgets_and_quotas_hold(comparison, method, changes):
    config = dataclasses.replace(CONFIG, **changes)
    scored = comparison.scores.of(method)
    picked = rows_of(comparison, method, config)
    assert len(set(picked)) == len(picked)
    sources = [scored.measured.sources[row] for row in picked]
    if "budget_unit" in changes:
        tokens = int(scored.measured.label_tokens[picked].sum())
        assert 30 - 8 < tokens <= 30
    elif "source_shares" in changes:
        assert len(picked) == 10 and sources.count("family3") >= 5
    elif "source_max" in changes:
        assert len(picked) == 10 and sources.count("family0") <= 1 and sources.count("family1") <= 2
    elif len(changes) == 1:
        assert sorted(picked) == selectable(comparison)
    else:
        assert sorted(picked) == sorted([*selectable(comparison), LEAKED, COPY])


def test_rankings_in_turn_without_rows_that_have_no_score():
    row_scores = torch.tensor([[1.0, 5.0, 5.0, 9.0, 0.0], [2.0, 1.0, 9.0, -math.inf, 0.0]])
    labels = torch.tensor([1, 1, 1, 1, 0])
    empty = torch.zeros(0, dtype=torch.float64)
    nothing = {"singular_values": empty, "target_coordinates": torch.zeros(2, 0)}
    measured = Measurements(torch.zeros(5, 0), torch.zeros(5), labels, target_label_tokens=torch.ones(2), **nothing)
    assert rows_by_scores(row_scores, measured, GISTConfig(budget=1.0)) == [1, 2, 0]
    assert rows_by_scores(row_scores, measured, GISTConfig(budget=1)) == [1]


# ---- The fall of the loss ----


def losses_row_by_row(model, rows, collator):
    """Loss of each row alone, 0 without a labelled token."""
    model.eval()
    with torch.no_grad():
        found = [model(**collator([{"input_ids": r["input_ids"], "labels": r["labels"]}])).loss.item() for r in rows]
    return np.nan_to_num(np.array(found))


def trained_by_hand(model, rows, collator, passes):
    """AdamW on all rows in one batch, with clipping and a cosine schedule as in `Trainer`."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    model.train()
    for step in range(passes):
        for group in optimizer.param_groups:
            group["lr"] = WARMUP.learning_rate * 0.5 * (1 + math.cos(math.pi * step / passes))
        optimizer.zero_grad()
        model(**collator([{"input_ids": r["input_ids"], "labels": r["labels"]} for r in rows])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def falls_by_hand(comparison, targets):
    space = comparison.scores.workspace
    model = fresh_lora(comparison.bench.base, WARMUP, CONFIG.seed)
    collator = padding_collator(space.tokenizer)
    before = losses_row_by_row(model, space.pool, collator)
    trained_by_hand(model, targets, collator, baselines.TARGET_EPOCHS)
    after = losses_row_by_row(model, space.pool, collator)
    model.unload()
    return (before - after) / np.where(before > 0, before, 1)


def test_loss_drop_is_that_of_a_plain_loop(files, tmp_path):
    comparison = opened(files, tmp_path, target_column="set", target_value="b")
    targets = [row for row in comparison.scores.workspace.targets if row["set"] == "b"]
    # all of them in one batch
    assert len(targets) == 6
    expected = falls_by_hand(comparison, targets)
    found = comparison.scores.of(LOSS_DROP).row_scores
    assert found.shape == (1, 63) and np.abs(expected).max() > 0.03
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)
    best = sorted(selectable(comparison), key=lambda row: -found[0, row].item())[:12]
    assert rows_of(comparison, LOSS_DROP) == best


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(2.0, 1.0, 0.5), (2.0, 3.0, -0.5), (0.0, 0.0, 0.0), (math.inf, 1.0, -math.inf), (1.0, math.nan, -math.inf)],
)
def test_a_fall_is_relative_and_rows_without_a_finite_loss_have_none(before, after, expected):
    found = baselines.relative_falls(torch.tensor([before]), torch.tensor([after])).item()
    assert found == pytest.approx(expected, abs=1e-6)
    worst = baselines.relative_falls(torch.tensor([0.0]), torch.tensor([3.0])).item()
    assert -math.inf < worst < -1e6


def test_losses_of_all_rows_in_one_pass_are_those_of_each_row():
    model, rows, collator = lora_model().eval(), token_rows(9), PaddingCollator()
    rows.insert(4, {"input_ids": [5, 6, 7], "labels": [-100] * 3})
    model.train()
    facts = collect_losses(DatasetPass(model, collator, 40, progress=False), rows, "rows")
    assert model.training and facts.label_tokens[4] == 0 and (facts.label_tokens > 0).sum() == 9
    np.testing.assert_allclose(facts.losses.numpy(), losses_row_by_row(model, rows, collator), rtol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cost_of_loss_drop_is_two_forward_passes_and_the_training_on_the_targets(comparison):
    space = comparison.scores.workspace
    scored = comparison.scores.of(LOSS_DROP)
    model = fresh_lora(comparison.bench.base, WARMUP, 0)
    work = ModelWork.of(model)
    model.unload()

    def forward(rows, head):
        lengths = np.array([len(row["input_ids"]) for row in rows], dtype=float)
        return 2 * work.body * lengths.sum() + 2 * work.head * head + 4 * 2 * 32 * (lengths**2).sum()

    def training(rows):
        tokens = sum(len(row["input_ids"]) for row in rows)
        return 2 * forward(rows, tokens) + 2 * work.trainable * tokens

    # the first token of a row is not predicted
    labelled = sum(label != -100 for row in space.pool for label in row["labels"][1:])
    spent = 2 * forward(space.pool, labelled) + baselines.TARGET_EPOCHS * training(space.targets)
    assert scored.passes == pytest.approx(spent / training(space.pool))
    phases = {phase.phase: phase for phase in CostLedger.load(comparison.scores.folder / LOSS_DROP).phases}
    assert list(phases) == ["warm-up", "scoring"]
    assert phases["scoring"].rows == 2 * 63 and phases["warm-up"].rows == 4 * 12
    assert scored.seconds == pytest.approx(sum(phase.seconds for phase in phases.values()), abs=0.06)


def test_targets_without_a_labelled_token_are_not_trained_on(comparison):
    measured = comparison.scores.of(LABELS).measured
    tokens = measured.target_label_tokens.clone()
    tokens[[0, 3]] = 0
    given = {name: getattr(comparison.scores, name) for name in ("workspace", "base", "warmup", "config", "folder")}
    some = baselines.BaselineInputs(measured=dataclasses.replace(measured, target_label_tokens=tokens), **given)
    assert some.trainable_targets == [1, 2, *range(4, 12)]
    none = dataclasses.replace(measured, target_label_tokens=torch.zeros_like(tokens))
    with pytest.raises(ValueError, match="none of the 12 target rows has a labelled token"):
        _ = baselines.BaselineInputs(measured=none, **given).trainable_targets


# ---- Saved scores ----


def flags(files, output, *more):
    return [
        "compare",
        *("--model_name_or_path", str(files / "model"), "--train_file", str(files / "pool.jsonl")),
        *("--target_file", str(files / "targets.jsonl"), "--test_file", f"held={files / 'test.jsonl'}"),
        *("--output_dir", str(output), "--budget", "0.2", "--source_column", "source", "--num_train_epochs", "1"),
        *("--lora_target_modules", "q_proj, v_proj", "--learning_rate", "1e-2", "--skip_bad_rows"),
        *("--per_device_train_batch_size", "8", "--methods", BM25, LOSS_DROP),
        *more,
    ]


def test_scores_are_saved_and_reused_by_other_seeds_and_other_target_sets(files, tmp_path, monkeypatch, capsys):
    kept = ("--scores_dir", str(tmp_path / "scores"))
    assert main(flags(files, tmp_path / "one", *kept, "--seeds", "0")) == 0
    made, original = [], scores.score_baseline
    monkeypatch.setattr(scores, "score_baseline", lambda name, given: made.append(name) or original(name, given))
    assert main(flags(files, tmp_path / "one", *kept, "--seeds", "0", "1")) == 0
    assert main(flags(files, tmp_path / "two", *kept, "--seeds", "0")) == 0
    assert made == []
    runs = [parquet.read_table(tmp_path / name / "compare.parquet").to_pylist() for name in ("one", "two")]
    losses = [{r["method"]: r["loss_held"] for r in part if r["seed"] == 0} for part in runs]
    assert losses[0] == losses[1] and {r["seed"] for r in runs[0]} == {0, 1}
    # the targets of one set: BM25 has a ranking of each, while the loss falls by training on them
    of_one = ("--target_column", "set", "--target_value", "a", "--seeds", "0")
    assert main(flags(files, tmp_path / "a", *kept, *of_one)) == 0
    assert main(flags(files, tmp_path / "again", *kept, *of_one)) == 0
    assert made == [LOSS_DROP] and len(list((tmp_path / "scores").glob("loss_drop*"))) == 2
    capsys.readouterr()
    assert main(flags(files, tmp_path / "other", *kept, "--learning_rate", "1e-3")) == 2
    assert "learning_rate was 0.01 and is now 0.001" in capsys.readouterr().err


def test_bm25_of_one_target_set_is_that_of_its_rows_alone(files, comparison, tmp_path):
    one = opened(files, tmp_path, target_column="set", target_value="a")
    every = comparison.scores.of(BM25).row_scores
    wanted = [row for row, name in enumerate(one.scores.workspace.targets["set"]) if name == "a"]
    torch.testing.assert_close(one.scores.of(BM25).row_scores, every[wanted])
    assert rows_of(one, BM25) == picks_by_turns(every[wanted].tolist(), selectable(one), 12)


def test_reused_scores_leave_out_the_test_rows_of_every_comparison(files, comparison, tmp_path):
    chosen = {method: rows_of(comparison, method)[0] for method in (BM25, LOSS_DROP)}
    pool = Dataset.from_json(str(files / "pool.jsonl"), cache_dir=str(tmp_path))
    pool.select(sorted(set(chosen.values()))).to_json(tmp_path / "test.jsonl")
    more = {"test_file": [f"held={tmp_path / 'test.jsonl'}"], "scores_dir": str(comparison.scores.folder)}
    with pytest.warns(UserWarning, match="also in `eval_dataset`"):
        other = opened(files, tmp_path / "out", **more)
        for method, row in chosen.items():
            assert row not in rows_of(other, method) and len(rows_of(other, method)) == 12
