"""Preference pairs: a row is a pair, and is scored by the loss of its trainer."""

import pytest
import torch


pytest.importorskip("trl", reason="preference trainers are TRL's")

from hf_gist import GISTConfig, GISTDataSelectorCallback  # noqa: E402
from hf_gist.data.leaks import find_leaks  # noqa: E402
from hf_gist.data.rows import row_lengths  # noqa: E402
from hf_gist.errors import DuplicateRowsWarning, LeakWarning  # noqa: E402
from hf_gist.gradients.models import adapter_parameters  # noqa: E402
from hf_gist.gradients.modes import scoring_mode  # noqa: E402
from hf_gist.training.losses.choice import TrainerBatchLoss  # noqa: E402
from tests.helpers.pairs import preference_rows, preference_trainer  # noqa: E402
from tests.helpers.tiny import as_dataset, token_rows  # noqa: E402
from tests.training.losses.test_choice import scored_gradients  # noqa: E402


KINDS = {
    "sigmoid": ("dpo", {}),
    "ref adapter": ("dpo with an adapter", {}),
    "ipo": ("dpo", {"loss_type": ["ipo"]}),
    "weighted": ("dpo", {"use_weighting": True, "ld_alpha": 0.5}),
    "two losses": ("dpo", {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.7, 0.3]}),
    "checkpointed": ("dpo", {"gradient_checkpointing": True}),
    "reward": ("reward", {}),
    "centred reward": ("reward", {"center_rewards_coefficient": 0.1}),
}


def build(folder, kind="dpo", targets=None, config=None, pool=None, **arguments):
    targets = preference_rows(5, first=500) if targets is None else targets
    callback = GISTDataSelectorCallback(config or GISTConfig(budget=6, warmup_steps=3), targets)
    pool = preference_rows(40) if pool is None else pool
    return preference_trainer(kind, folder, pool, [callback], **arguments), callback


def gradient_alone(trainer, row):
    parameters = adapter_parameters(trainer.model)
    with scoring_mode(trainer.model):
        loss = TrainerBatchLoss(trainer, trainer.model)(trainer.data_collator([row]), 1)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_of_a_pair_is_that_of_a_batch_of_one(tmp_path, monkeypatch, name):
    kind, arguments = KINDS[name]
    trainer, callback = build(tmp_path, kind, **arguments)
    trainer.train()
    loss = callback.run.inputs.loss
    monkeypatch.setattr("tests.training.losses.test_choice.PaddingCollator", lambda: trainer.data_collator)
    rows = [trainer.train_dataset[number] for number in range(6)]
    found = scored_gradients(trainer, loss, rows)
    for number, row in enumerate(rows):
        for parameter, expected in gradient_alone(trainer, row).items():
            torch.testing.assert_close(found[parameter][number], expected.flatten(), rtol=2e-4, atol=1e-6)
    assert callback.run.row_check.done
    assert callback.selection.manifest["loss"].startswith(f"{type(trainer).__name__} on preference pairs")
    assert len(callback.selection.indices) == 6


def test_raw_targets_are_prepared_like_the_pool(tmp_path):
    trainer, callback = build(tmp_path)
    trainer.train()
    inputs = callback.run.inputs
    assert inputs.targets.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    collated = trainer.data_collator([inputs.targets[0]])
    completion = collated["completion_mask"][:, 1:].sum()
    assert int(inputs.loss.counts(collated)[0]) == int(completion)


def test_identical_pairs_in_pool_and_targets_are_found(tmp_path):
    pool = preference_rows(40)
    trainer, callback = build(tmp_path, targets=pool.select([3, 8]), pool=pool.select([*range(40), 5]))
    with pytest.warns(LeakWarning, match="2 rows of the pool"), pytest.warns(DuplicateRowsWarning, match="1 of 41"):
        trainer.train()
    assert not {3, 8, 40} & set(callback.selection.indices)


def test_pairs_that_differ_in_the_rejected_answer_are_different_rows(tmp_path):
    rows = preference_rows(40)
    trainer, _ = build(tmp_path, pool=rows)
    prepared = trainer.train_dataset
    swapped = prepared.map(lambda row: {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]})
    assert find_leaks(prepared, swapped).rows == {"target_dataset": []}


def test_the_length_of_a_pair_is_what_it_takes_in_a_batch(tmp_path):
    trainer, _ = build(tmp_path)
    rows = trainer.train_dataset
    for row, length in zip(rows, row_lengths(rows).tolist(), strict=True):
        assert trainer.data_collator([row])["input_ids"].numel() == length
    assert row_lengths([dict(row) for row in rows]).tolist() == row_lengths(rows).tolist()


@pytest.mark.parametrize(
    ("arguments", "config", "reason"),
    [
        ({"loss_type": ["sigmoid", "sft"]}, {}, "mixes the rows of a batch"),
        ({"loss_type": ["aot"]}, {}, "`loss_type='aot'` sorts the rows of a batch"),
        ({}, {"scorer": "rds_plus"}, "`scorer='rds_plus'` compares the hidden states of one sequence"),
    ],
)
def test_what_cannot_be_scored_by_pair_is_refused_before_the_first_step(tmp_path, arguments, config, reason):
    trainer, _ = build(tmp_path, config=GISTConfig(budget=6, warmup_steps=3, **config), **arguments)
    with pytest.raises(ValueError, match=reason):
        trainer.train()
    assert trainer.state.global_step == 0


def test_log_probabilities_computed_before_the_training_are_refused(tmp_path):
    trainer, _ = build(tmp_path)
    # set afterwards: older versions of TRL fail to compute them for a data set without a cache
    trainer.args.precompute_ref_log_probs = True
    with pytest.raises(ValueError, match="`precompute_ref_log_probs=True`.*Set it to False"):
        trainer.train()


@pytest.mark.parametrize("kind", ["dpo", "reward"])
@pytest.mark.parametrize(
    "targets",
    [as_dataset(token_rows(4)), preference_rows(4).select_columns(["prompt", "chosen"])],
    ids=["tokenised sequences", "no rejected answer"],
)
def test_targets_that_are_no_pairs_are_refused_with_their_columns(tmp_path, kind, targets):
    trainer, _ = build(tmp_path, kind, targets=targets)
    with pytest.raises(ValueError, match=r"trains on preference pairs, so `target_dataset` needs .*; it has "):
        trainer.train()


class _Named:
    """Stands for a trainer of another package: only the names of its classes are read."""


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("GRPOTrainer", "generates the texts that it trains on during the run"),
        ("RLOOTrainer", "generates the texts"),
        ("KTOTrainer", "estimates a KL term over each batch"),
        ("IWOPDTrainer", "generates the texts"),
        ("CPOTrainer", "collates preference pairs in a way that is not supported"),
        ("SentenceTransformerTrainer", "compares the rows of a batch with each other"),
    ],
)
def test_trainers_whose_rows_have_no_gradient_are_refused_with_the_reason(base, reason):
    from hf_gist.training.losses.trainers import check_trainer_kind

    derived = type("MyTrainer", (type(base, (_Named,), {}),), {})
    with pytest.raises(ValueError, match=f"MyTrainer {reason}"):
        check_trainer_kind(derived())
