"""`select()` against a from-scratch reference, and its artifacts."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

from hf_gist import GISTConfig, Selection, per_sample_gradients_reference, select
from hf_gist.errors import LeakWarning, UnscorableRowsWarning
from hf_gist.gradients.models import check_device, check_dtype
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, patterned_rows, token_rows


COLLATOR = PaddingCollator()


def flat_gradients(model, rows):
    reference = per_sample_gradients_reference(model, rows, COLLATOR)
    return torch.stack([torch.cat([g.flatten() for g in row.values()]) for row in reference]).double()


def reference_scores(model, pool, targets, groups, explained):
    """Batch of one, SVD of the full matrix, cosine in the truncated subspace, maximum over groups."""
    g, candidates = flat_gradients(model, targets), flat_gradients(model, pool)
    _, singular, right = torch.linalg.svd(g, full_matrices=False)
    shares = (singular**2).cumsum(0) / (singular**2).sum()
    rank = next(k for k in range(1, len(shares) + 1) if shares[k - 1] >= explained)
    basis = right[:rank].T
    names = sorted(set(groups))
    means = torch.stack([(g @ basis)[[x == name for x in groups]].mean(0) for name in names])
    cosine = torch.nn.functional.cosine_similarity((candidates @ basis)[:, None], means[None], dim=2)
    energy = (candidates @ basis).square().sum(1) / candidates.square().sum(1)
    return cosine.max(1).values, rank, energy, candidates.norm(dim=1)


@pytest.mark.parametrize("group_column", [None, "task"])
def test_equals_a_reference_from_scratch(group_column):
    model, pool, targets = lora_model(), token_rows(60, seed=1), token_rows(9, seed=2)
    for i, row in enumerate(targets):
        row["task"] = "abc"[i % 3]
    groups = [row["task"] if group_column else i for i, row in enumerate(targets)]
    scores, rank, energy, norms = reference_scores(model, pool, targets, groups, 0.9)
    config = GISTConfig(
        budget=0.05, explained_variance=0.9, target_group_column=group_column, scoring_tokens_per_batch=64
    )
    got = select(model, as_dataset(pool), as_dataset(targets), config, data_collator=COLLATOR, progress=False)
    assert got.rank == rank and len(got.group_names) == (3 if group_column else 9)
    torch.testing.assert_close(got.scores.double(), scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.energy.double(), energy, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.measurements.norms.double(), norms, rtol=1e-5, atol=0)
    assert got.indices == scores.topk(3).indices.tolist()


def test_plain_cosine_is_that_of_the_full_gradients():
    model, pool, targets = lora_model(), token_rows(20, seed=1), token_rows(4, seed=2)
    config = GISTConfig(score="cosine", budget=2, rank=1)
    got = select(model, as_dataset(pool), as_dataset(targets), config, data_collator=COLLATOR, progress=False)
    g, candidates = flat_gradients(model, targets), flat_gradients(model, pool)
    expected = torch.nn.functional.cosine_similarity(candidates[:, None], g[None], dim=2).max(1).values
    torch.testing.assert_close(got.scores.double(), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def selection():
    pool, targets = as_dataset(patterned_rows(80)), as_dataset(patterned_rows(8, seed=3))
    config = GISTConfig(budget=0.1, source_column="source")
    return select(lora_model(), pool, targets, config, data_collator=COLLATOR, progress=False)


def test_reselect_equals_selecting_again(selection):
    model, pool, targets = lora_model(), as_dataset(patterned_rows(80)), as_dataset(patterned_rows(8, seed=3))
    changes = [
        {"budget": 0.3},
        {"rank": 2},
        {"strategy": "round_robin", "budget": 7},
        {"strategy": "mean"},
        {"strategy": "round_robin", "sample_from_top": 3.0},
        {"score": "cosine"},
        {"target_group_column": "source", "budget_unit": "tokens"},
    ]
    for change in changes:
        again = selection.reselect(**change)
        config = GISTConfig(**({"budget": 0.1, "source_column": "source"} | change))
        fresh = select(model, pool, targets, config, data_collator=COLLATOR, progress=False)
        assert again.indices == fresh.indices and again.rank == fresh.rank
        assert torch.equal(again.scores, fresh.scores)


def test_reselect_refuses_what_needs_scoring(selection):
    with pytest.raises(ValueError, match="seed cannot be changed without scoring again"):
        selection.reselect(seed=1)
    with pytest.raises(ValueError, match="'task'. is not a column of the target set. Columns: source"):
        selection.reselect(target_group_column="task")


def test_saved_and_loaded_is_the_same(selection, tmp_path):
    selection.save(tmp_path / "gist")
    files = {path.name for path in (tmp_path / "gist").iterdir()}
    assert files == {
        "scores.parquet",
        "targets.parquet",
        "costs.json",
        "coordinates.safetensors",
        "subspace.safetensors",
        "gist_config.json",
        "manifest.json",
    }
    loaded = Selection.load(tmp_path / "gist")
    assert loaded.indices == selection.indices and loaded.config == selection.config
    assert torch.equal(loaded.scores, selection.scores) and torch.equal(loaded.energy, selection.energy)
    assert loaded.reselect(strategy="round_robin").indices == selection.reselect(strategy="round_robin").indices
    manifest = json.loads((tmp_path / "gist" / "manifest.json").read_text())
    assert manifest["candidates"] == 80 and manifest["selected"] == 8
    assert manifest["train_dataset"]["rows"] == 80 and manifest["train_dataset"]["fingerprint"]
    assert [p.phase for p in loaded.costs.phases] == ["targets", "subspace", "scoring", "choosing"]
    assert loaded.costs.phases[2].bytes_written > 1000 and loaded.costs.break_even() == selection.costs.break_even()


def test_scores_table_holds_every_row(selection, tmp_path):
    from pyarrow import parquet

    selection.save(tmp_path)
    table = parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert table["row"] == list(range(80)) and table["source"][:2] == ["family0", "family1"]
    assert [row for row, kept in enumerate(table["selected"]) if kept] == sorted(selection.indices)
    assert sorted(range(80), key=lambda row: (table["position"][row] is None, table["position"][row]))[:8] == (
        selection.indices
    )


@pytest.mark.parametrize("name", ["scores.parquet", "coordinates.safetensors", "gist_config.json", "manifest.json"])
def test_missing_and_damaged_files_are_named(selection, tmp_path, name):
    selection.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=name):
        Selection.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        Selection.load(tmp_path)


def test_a_table_that_is_not_ours_is_named(selection, tmp_path):
    selection.save(tmp_path)
    as_dataset([{"row": 0}]).to_parquet(tmp_path / "targets.parquet")
    with pytest.raises(ValueError, match="targets.parquet cannot be read"):
        Selection.load(tmp_path)


def test_scores_of_another_run_are_refused(selection, tmp_path):
    selection.save(tmp_path)
    selection.reselect(budget=0.2).save(tmp_path / "other")
    (tmp_path / "scores.parquet").write_bytes((tmp_path / "other" / "scores.parquet").read_bytes())
    with pytest.raises(ValueError, match="does not belong to"):
        Selection.load(tmp_path)


def test_a_failed_write_leaves_the_old_file(selection, tmp_path, monkeypatch):
    selection.save(tmp_path)
    before = (tmp_path / "coordinates.safetensors").read_bytes()

    def breaks(tensors, path):
        open(path, "wb").write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("hf_gist.gist.artifacts.save_file", breaks)
    with pytest.raises(OSError, match="disk full"):
        selection.reselect(budget=0.2).save(tmp_path)
    assert (tmp_path / "coordinates.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*tmp"))


def test_unscorable_rows_are_left_out_counted_and_never_nan():
    model, pool = lora_model(), token_rows(20, seed=1)
    pool[4] = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    pool[9] = {"input_ids": [98, 98, 98, 98], "labels": [-100, 98, 98, 98]}
    with torch.no_grad():
        model.get_input_embeddings().weight[98] = float("nan")
    pool = [
        row if i in (4, 9) else {k: [3 if t == 98 else t for t in v] for k, v in row.items()}
        for i, row in enumerate(pool)
    ]
    targets = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, {"input_ids": [9, 8, 7], "labels": [9, 8, 7]}]
    with torch.no_grad():  # the head is tied to nothing: only row 9 meets the NaN
        assert torch.isfinite(model.get_output_embeddings().weight).all()
    with pytest.warns(UnscorableRowsWarning, match="1 of 20 candidate rows have no labelled token and 1 have"):
        got = select(model, pool, targets, GISTConfig(budget=1.0), data_collator=COLLATOR, progress=False)
    assert sorted(got.indices) == [i for i in range(20) if i not in (4, 9)]
    assert got.scores[[4, 9]].tolist() == [float("-inf")] * 2 and not got.scores.isnan().any()


def test_a_target_without_labels_is_left_out_of_the_subspace():
    model, pool, targets = lora_model(), token_rows(20, seed=1), token_rows(4, seed=2)
    padded = [*targets[:2], {"input_ids": [5, 6, 7], "labels": [-100] * 3}, *targets[2:]]
    got = select(model, pool, padded, GISTConfig(budget=5), data_collator=COLLATOR, progress=False)
    plain = select(model, pool, targets, GISTConfig(budget=5), data_collator=COLLATOR, progress=False)
    assert got.indices == plain.indices
    torch.testing.assert_close(got.scores, plain.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "`targets` is empty"),
        ({"pool": []}, "`candidates` is empty"),
        (
            {"targets": [{"input_ids": [5, 6], "labels": [-100, -100]}]},
            "No labelled token in 1 rows of `target_dataset`",
        ),
        (
            {"pool": [{"input_ids": [5, 6], "labels": [-100, -100]}] * 4},
            "No labelled token in 4 rows of `train_dataset`",
        ),
        ({"config": {"budget": 0.001}}, "selects nothing"),
        ({"config": {"target_group_column": "task"}}, "`target_group_column='task'` is not a column"),
        ({"config": {"source_column": "origin"}}, "`source_column='origin'` is not a column"),
    ],
)
def test_bad_input_is_refused_before_any_gradient(change, message, monkeypatch):
    monkeypatch.setattr(
        "hf_gist.gradients.vectors.per_sample_backward", lambda *a: pytest.fail("a gradient was taken")
    )
    pool, targets = change.get("pool", token_rows(10)), change.get("targets", token_rows(3, seed=5))
    with pytest.raises(ValueError, match=message):
        select(
            lora_model(),
            pool,
            targets,
            GISTConfig(**({"budget": 0.5} | change.get("config", {}))),
            data_collator=COLLATOR,
        )


@pytest.mark.parametrize("strategy", ["max", "round_robin", "random"])
def test_a_pool_of_target_rows_alone_is_refused_before_scoring(strategy, monkeypatch):
    monkeypatch.setattr("hf_gist.gist.scoring.measure", lambda *a: pytest.fail("rows were scored"))
    rows = token_rows(6)
    config = GISTConfig(budget=2, strategy=strategy)
    with (
        pytest.warns(LeakWarning),
        pytest.raises(ValueError, match="No row of the pool is left to train on: all 10 are also target"),
    ):
        select(lora_model(), rows[:4] + rows, rows, config, data_collator=COLLATOR)


@pytest.mark.parametrize("strategy", ["max", "round_robin", "random"])
def test_measurements_without_a_row_to_select_are_refused(strategy):
    found = select(lora_model(), token_rows(6), token_rows(3, seed=5), GISTConfig(budget=2), data_collator=COLLATOR)
    none = dataclasses.replace(found.measurements, label_tokens=torch.zeros(6, dtype=torch.int64))
    with pytest.raises(
        ValueError, match="No row of the pool can be selected: of 6 rows 6 have no labelled token, 0 have"
    ):
        Selection.choose(none, GISTConfig(budget=2, strategy=strategy))


def test_float32_is_refused_for_weights_of_another_dtype():
    with pytest.raises(ValueError, match="`scoring_dtype='float32'`, but the model's weights are bfloat16, float32"):
        base = lora_model()
        base.get_base_model().model.embed_tokens.to(torch.bfloat16)
        select(
            base, token_rows(9), token_rows(3), GISTConfig(budget=2, scoring_dtype="float32"), data_collator=COLLATOR
        )


def test_target_columns_of_every_kind_survive(tmp_path):
    targets = as_dataset([row | {"task": i % 2, "row": "x"} for i, row in enumerate(token_rows(4, seed=5))])
    config = GISTConfig(budget=4, target_group_column="task")
    got = select(
        lora_model(),
        token_rows(20),
        targets.with_format("torch"),
        config,
        data_collator=TensorsToLists(),
        progress=False,
    )
    got.save(tmp_path)
    assert Selection.load(tmp_path).group_names == ["0", "1"]
    assert Selection.load(tmp_path).reselect(target_group_column="row").group_names == ["x"]


class TensorsToLists(PaddingCollator):
    def __call__(self, rows):
        return super().__call__(
            [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in rows]
        )


def test_a_list_of_rows_may_carry_other_columns_and_a_dict_of_splits_is_refused():
    rows = [row | {"task": "a", "note": None} for row in token_rows(6)]
    got = select(
        lora_model(),
        rows,
        rows[:2],
        GISTConfig(budget=2, target_group_column="task"),
        data_collator=COLLATOR,
        progress=False,
    )
    assert got.group_names == ["a"]
    with pytest.raises(ValueError, match="`targets` is a dict of splits .train."):
        select(lora_model(), rows, {"train": rows}, data_collator=COLLATOR)


def test_packed_and_unlabelled_batches_are_refused():
    def padding_free(rows):
        ids = torch.cat([torch.tensor(row["input_ids"]) for row in rows])[None]
        return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(ids.shape[1])[None]}

    def unlabelled(rows):
        return {key: value for key, value in COLLATOR(rows).items() if key != "labels"}

    for collator, message in ((padding_free, "packed or padding-free"), (unlabelled, "no `labels` tensor")):
        with pytest.raises(ValueError, match=message):
            select(lora_model(), token_rows(30), token_rows(3, seed=5), GISTConfig(), data_collator=collator)


def test_the_same_input_gives_the_same_selection():
    runs = [
        select(
            lora_model(),
            token_rows(40),
            token_rows(4, seed=5),
            GISTConfig(budget=9),
            data_collator=COLLATOR,
            progress=False,
        )
        for _ in range(2)
    ]
    assert runs[0].indices == runs[1].indices and torch.equal(runs[0].scores, runs[1].scores)


def test_the_trial_of_the_longest_rows_computes_as_scoring_does():
    model = lora_model()
    seen = []
    embeddings = model.get_base_model().model.embed_tokens
    embeddings.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    config = GISTConfig(budget=2, scoring_dtype="bfloat16")
    select(model, token_rows(9), token_rows(3, seed=5), config, data_collator=COLLATOR)
    assert seen and all(seen)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (["cuda:0", "cuda:1"], r"spread over cuda:0, cuda:1 \(`device_map`\): load it on one device"),
        (["mps:0"], "Apple's GPU .* set `use_cpu=True`"),
    ],
)
def test_devices_that_rows_cannot_be_scored_on_are_refused(devices, message):
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=device) for device in devices])
    with pytest.raises(ValueError, match=message):
        check_device(model)


def test_float32_is_refused_for_quantised_layers_of_another_dtype():
    model = lora_model()
    model.get_base_model().model.layers[0].mlp.compute_dtype = torch.bfloat16
    with pytest.raises(
        ValueError, match="quantised layers compute in bfloat16. .*`bnb_4bit_compute_dtype=torch.float32`"
    ):
        check_dtype(model, "float32")
    check_dtype(model, "auto")
