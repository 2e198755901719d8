"""Unfinished scores, batches that do not fit, processes that fail."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback, select
from hf_gist.data.rows import content_digest
from hf_gist.errors import DuplicateRowsWarning, UnfinishedScoresWarning
from hf_gist.gist import checks
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.partial import PartialScores, Shards
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.vectors import GradientVectors
from tests.helpers.processes import launch
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


POOL, TARGETS = token_rows(40, seed=1), token_rows(5, seed=2)
CONFIG = GISTConfig(budget=4, scoring_tokens_per_batch=40, save_every=2)


class Interrupted(Exception):
    pass


class StopsAfter(PaddingCollator):
    """Raises when it is called for the given time."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __call__(self, rows):
        self.calls -= 1
        if self.calls < 0:
            raise Interrupted
        return super().__call__(rows)


def choose(folder, collator=None, model=None, pool=POOL, targets=TARGETS, config=CONFIG):
    return select(
        model or lora_model(),
        as_dataset(pool),
        as_dataset(targets),
        config,
        data_collator=collator or PaddingCollator(),
        output_dir=folder,
        progress=False,
    )


@pytest.fixture
def interrupted(tmp_path):
    """A folder in which scoring stopped after some batches were saved."""
    with pytest.raises(Interrupted):
        choose(tmp_path, StopsAfter(16))
    assert list((tmp_path / "partial").glob("stage0-*.safetensors"))
    return tmp_path


def test_finished_batches_are_not_scored_again(interrupted, monkeypatch):
    scored, original = [], GradientVectors.__call__

    def noting(self, batch, gradients, loss):
        scored.extend(tuple(row[row != 0].tolist()) for row in batch["input_ids"])
        return original(self, batch, gradients, loss)

    monkeypatch.setattr(GradientVectors, "__call__", noting)
    shards = list((interrupted / "partial").glob("stage0-*.safetensors"))
    finished = {row for path in shards for row in load_file(path)["rows"].tolist()}
    assert 0 < len(finished) < 40
    again = choose(interrupted)
    rest = [tuple(POOL[row]["input_ids"]) for row in range(40) if row not in finished]
    assert sorted(scored) == sorted(rest + [tuple(row["input_ids"]) for row in TARGETS])
    alone = select(
        lora_model(), as_dataset(POOL), as_dataset(TARGETS), CONFIG, data_collator=PaddingCollator(), progress=False
    )
    assert torch.equal(again.measurements.coordinates, alone.measurements.coordinates)
    assert torch.equal(again.measurements.norms, alone.measurements.norms) and again.indices == alone.indices
    assert not (interrupted / "partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": token_rows(40, seed=9)}, "train_dataset was"),
        ({"targets": token_rows(5, seed=9)}, "target_dataset was"),
        ({"model": lora_model(seed=3)}, "adapter was .* base weights was"),
        (
            {"config": GISTConfig(budget=4, scoring_tokens_per_batch=64)},
            "scoring_tokens_per_batch was 40 and is now 64",
        ),
        ({"config": GISTConfig(budget=4, scoring_tokens_per_batch=40, score_layers=1)}, "score_layers was None"),
    ],
    ids=["pool", "targets", "model", "batches", "layers"],
)
def test_scores_of_something_else_are_refused_with_the_difference(interrupted, change, message):
    with pytest.raises(ValueError, match=message):
        choose(interrupted, **change)


@pytest.mark.parametrize("more", [{"drop_pool_duplicates": False}, {"scoring_cost": 0.9}], ids=str)
def test_scores_of_other_rows_are_refused(tmp_path, more):
    short = {"budget": 4, "scoring_tokens_per_batch": 40, "save_every": 2, "scoring_cost": 0.8}

    class Dies(PaddingCollator):
        def __call__(self, rows):
            if list((tmp_path / "partial").glob("stage0-*")):
                raise Interrupted
            return super().__call__(rows)

    pool = [*POOL, *POOL[:4]]
    with pytest.warns(DuplicateRowsWarning), pytest.raises(Interrupted):
        choose(tmp_path, Dies(), pool=pool, config=GISTConfig(**short))
    with pytest.warns(DuplicateRowsWarning), pytest.raises(ValueError, match="scored rows was"):
        choose(tmp_path, pool=pool, config=GISTConfig(**short | more))


def test_a_training_starts_over_where_unfinished_scores_are_of_another_one(tmp_path):
    def run(collator, **settings):
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=2,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            **settings,
        )
        callback = GISTDataSelectorCallback(
            GISTConfig(budget=8, save_every=1, warmup_steps=1, scoring_tokens_per_batch=40), as_dataset(TARGETS)
        )
        pool = as_dataset(POOL)
        Trainer(lora_model(), arguments, train_dataset=pool, data_collator=collator, callbacks=[callback]).train()
        return callback.selection

    class Dies(PaddingCollator):
        """In the middle of scoring: after the checks, the warm-up and the targets."""

        def __call__(self, rows):
            if len(list((tmp_path / "gist" / "partial").glob("stage0-*"))) >= 1:
                raise Interrupted
            return super().__call__(rows)

    with pytest.raises(Interrupted):
        run(Dies(), learning_rate=1e-2)
    with pytest.warns(UnfinishedScoresWarning, match="Unfinished scores are not used: .* adapter was"):
        again = run(PaddingCollator(), learning_rate=3e-2)
    assert torch.isfinite(again.scores).all() and not (tmp_path / "gist" / "partial").exists()


def test_another_budget_may_use_them(interrupted):
    assert len(choose(interrupted, config=GISTConfig(budget=9, scoring_tokens_per_batch=40)).indices) == 9


@pytest.mark.parametrize("damage", ["truncated", "other file", "other shape"])
def test_a_damaged_shard_is_scored_again_and_said_so(interrupted, damage):
    shard = sorted((interrupted / "partial").glob("stage0-*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes({"truncated": content[:-20], "other file": b"x" * 100}.get(damage, content))
    if damage == "other shape":
        shard.write_bytes((interrupted / "partial" / "targets.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="cannot be read .* its rows are scored again"):
        again = choose(interrupted)
    assert torch.isfinite(again.scores).all() and int((again.measurements.norms == 0).sum()) == 0


def test_shards_are_saved_by_number_or_by_time(tmp_path, monkeypatch):
    facts = {"norms": torch.arange(10.0)}
    by_number = Shards(tmp_path, "a", every=2)
    for batch in range(5):
        by_number.add(batch, [2 * batch, 2 * batch + 1], facts)
    assert len(list(tmp_path.glob("a-*"))) == 2
    by_time = Shards(tmp_path, "b")
    by_time.add(0, [0], facts)
    assert not list(tmp_path.glob("b-*"))
    monkeypatch.setattr("hf_gist.gradients.partial.SECONDS_BETWEEN_SAVES", 0.0)
    by_time.add(1, [1], facts)
    assert len(list(tmp_path.glob("b-*"))) == 1
    restored = {"norms": torch.zeros(10)}
    fresh = Shards(tmp_path, "a", every=2)
    fresh.restore(restored)
    assert fresh.done == {0, 1, 2, 3} and restored["norms"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 0]


def test_the_same_rows_have_the_same_digest_however_they_were_made(tmp_path):
    first, again = as_dataset(POOL), as_dataset(POOL + TARGETS).select(range(40))
    as_dataset(TARGETS + POOL).save_to_disk(tmp_path / "d")
    from datasets import load_from_disk

    loaded = load_from_disk(tmp_path / "d").select(range(5, 45))
    assert content_digest(first) == content_digest(again) == content_digest(loaded)
    assert content_digest(first) != content_digest(as_dataset(POOL[1:] + POOL[:1]))
    changed = [dict(POOL[0], labels=[*POOL[0]["labels"][:-1], 5]), *POOL[1:]]
    assert content_digest(first) != content_digest(as_dataset(changed)) != content_digest(as_dataset(POOL[:39]))
    assert content_digest(POOL) != content_digest(changed)


@pytest.mark.parametrize(
    "kind", [torch.tensor, np.array, lambda values: [torch.tensor(values)], lambda values: {"a": values}]
)
def test_digests_are_of_all_values_of_long_rows(kind):
    def rows(values):
        return [{"input_ids": kind(values)}]

    long = list(range(3000))
    middle = [*long[:1500], 7, *long[1501:]]
    assert content_digest(rows(long)) == content_digest(rows(list(long))) != content_digest(rows(middle))
    assert content_digest(rows(long)) != content_digest([*rows(long), *rows(long)])


def test_digests_are_of_type_and_shape_too():
    values = [torch.zeros(4, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.int16)]
    values += [torch.zeros(2, 2, dtype=torch.int16), torch.zeros((), dtype=torch.int64), np.zeros(4, np.int16)]
    assert len({content_digest([{"a": value}]) for value in values}) == len(values)


# ---- Memory ----


class FitsRows:
    """Gradients that run out of memory for batches of more than some rows."""

    def __init__(self, model, rows):
        self.inner, self.rows, self.refused = GradientVectors(model), rows, 0
        self.sizes = self.inner.sizes

    def __call__(self, batch, gradients, loss):
        if len(batch["labels"]) > self.rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(batch, gradients, loss)


def test_a_batch_that_does_not_fit_is_split_and_tried_again():
    model = lora_model()
    basis = {name: torch.randn(3, size) for name, size in GradientVectors(model).sizes.items()}
    dataset_pass, tight = DatasetPass(model, PaddingCollator(), 100, progress=False), FitsRows(model, 2)
    whole = collect_coordinates(dataset_pass, POOL, basis, "rows")
    split = collect_coordinates(dataset_pass, POOL, basis, "rows", tight)
    assert tight.refused > 3
    torch.testing.assert_close(split.coordinates, whole.coordinates, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split.norms, whole.norms, rtol=1e-5, atol=0)
    assert torch.equal(split.label_tokens, whole.label_tokens)


def test_a_row_that_does_not_fit_alone_is_named():
    model = lora_model()
    dataset_pass = DatasetPass(model, PaddingCollator(), 100, progress=False)
    basis = {name: torch.zeros(1, size) for name, size in GradientVectors(model).sizes.items()}
    with pytest.raises(RuntimeError, match=r"Row \d+ of the rows alone does not fit into memory"):
        collect_coordinates(dataset_pass, POOL, basis, "rows", FitsRows(model, 0))


class FitsCheckpointed(FitsRows):
    """Gradients that run out of memory unless the blocks keep no activations."""

    def __call__(self, batch, gradients, loss):
        blocks = [m for m in self.inner.model.modules() if getattr(m, "gradient_checkpointing", False)]
        if not blocks or not all(block.training for block in blocks):
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(batch, gradients, loss)


def test_a_row_that_does_not_fit_is_scored_with_the_checkpointing_of_the_training():
    model = lora_model()
    basis = {name: torch.randn(3, size) for name, size in GradientVectors(model).sizes.items()}
    dataset_pass = DatasetPass(model, PaddingCollator(), 100, progress=False)
    with pytest.raises(RuntimeError, match="or turn on gradient checkpointing"):
        collect_coordinates(dataset_pass, POOL, basis, "rows", FitsCheckpointed(model, 1))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    whole, tight = collect_coordinates(dataset_pass, POOL, basis, "rows"), FitsCheckpointed(model, 1)
    alone = collect_coordinates(dataset_pass, POOL, basis, "rows", tight)
    assert tight.refused >= len(POOL)
    torch.testing.assert_close(alone.coordinates, whole.coordinates, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.norms, whole.norms, rtol=1e-5, atol=0)


def test_the_trial_before_the_work_is_no_larger_than_a_batch(tmp_path, monkeypatch):
    rows, original = [], checks.per_sample_backward

    def noting(model, batch, *more):
        rows.append(len(batch["labels"]))
        return original(model, batch, *more)

    monkeypatch.setattr(checks, "per_sample_backward", noting)
    choose(tmp_path / "small", config=GISTConfig(budget=4, scoring_tokens_per_batch=20))
    choose(tmp_path / "large", config=GISTConfig(budget=4, scoring_tokens_per_batch=64))
    assert rows == [1, 1, 2, 2]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model = lora_model()
    dataset_pass = DatasetPass(model, StopsAfter(0), 100, progress=False)
    with pytest.raises(Interrupted):
        collect_coordinates(dataset_pass, POOL, {"x": torch.zeros(1, 1)}, "rows")


# ---- Processes ----


def test_one_two_and_three_processes_give_the_same_and_share_unfinished_work(tmp_path):
    choose(tmp_path / "alone")
    expected = json.loads((tmp_path / "alone" / "manifest.json").read_text())
    coordinates = load_file(tmp_path / "alone" / "coordinates.safetensors")
    for processes in (2, 3):
        folder = tmp_path / f"by{processes}"
        with pytest.raises(Interrupted):
            choose(folder, StopsAfter(16))
        assert launch("tests.distributed.run_scoring", processes, folder) == {}
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["processes"] == processes and manifest["selected"] == expected["selected"]
        found = load_file(folder / "coordinates.safetensors")
        torch.testing.assert_close(found["coordinates"], coordinates["coordinates"], rtol=1e-5, atol=1e-5)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
        assert all(rank == ranks[0] for rank in ranks)
        assert ranks[0]["indices"] == choose(tmp_path / "again").indices
        assert not (folder / "partial").exists()


def test_an_error_of_one_process_ends_all(tmp_path):
    assert launch("tests.distributed.run_scoring", 2, tmp_path, "fail")
    assert "the label printer is on fire" in (tmp_path / "rank1.error").read_text()
    assert "process 1 failed: ValueError: the label printer is on fire" in (tmp_path / "rank0.error").read_text()


def test_partial_scores_of_nothing_are_removed_quietly(tmp_path):
    PartialScores(tmp_path / "none").remove()
    assert not (tmp_path / "none").exists()
