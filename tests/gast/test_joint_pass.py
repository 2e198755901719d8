"""Support rows appended to the training batch, against a separate pass over them."""

from functools import wraps
from unittest.mock import patch

import pytest
import torch
from datasets import Dataset
from transformers import Trainer

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.joint_pass import appended_rows
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import (
    Recorder,
    arguments,
    build_model,
    collate,
    gradients_of,
    relative_error,
    rows,
    support_rows_in,
    train,
)
from tests.helpers.tiny import PaddingCollator, sixteen_bit


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with support_rows_in("batch"):
        yield


def test_on_a_cpu_the_rows_get_a_pass(tmp_path):
    with patch("hf_gist.training.gast.support.OWN_PASS_ON", ("cpu",)):
        trainer, _ = train(build_model(), tmp_path, rows())
    assert "faster on a cpu" in trainer.gast.separate_because


def both(tmp_path, model, data=None, *, config=None, collator=collate, support=None, **changes):
    """The recorded steps of a run whose support rows are appended to the batch, and of one with a separate pass; also the trainers."""
    found = []
    for where in ("batch", "pass"):
        trainer = GASTTrainer(
            model=model(), args=arguments(tmp_path / where, logging_strategy="steps", logging_steps=1, **changes),
            train_dataset=data or rows("llama", 48), data_collator=collator, support_dataset=support,
            gast_config=config or GASTConfig(keep=3, seed=7),
        )  # fmt: skip
        recorder = Recorder().attach(trainer)
        with support_rows_in(where):
            trainer.train()
        found.append((trainer, recorder))
    assert found[0][0].gast.separate_because == "" and found[1][0].gast.separate_because is None
    return found


def check_same(found, tolerance=1e-5):
    (joint, joined), (separate, passed) = found
    for left, right in zip(joined.masks, passed.masks, strict=True):
        assert all(torch.equal(left[group], right[group]) for group in right)
    for left, right in zip(joined.gradients, passed.gradients, strict=True):
        assert relative_error(left, right) < tolerance
    assert relative_error(joint.gast.support, separate.gast.support) < tolerance
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (joint, separate)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert joint.gast.supports == separate.gast.supports


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2, "max_steps": 2}], ids=str
)
def test_it_is_the_separate_pass(name, changes, tmp_path):
    check_same(both(tmp_path, lambda: build_model(name), rows(name, 48), **changes))


def test_in_double_precision(tmp_path):
    (joint, joined), (separate, passed) = both(tmp_path, lambda: build_model().double())
    check_same([(joint, joined), (separate, passed)])
    assert relative_error(joined.gradients[0], passed.gradients[0]) < 1e-12


@pytest.mark.parametrize("support", [rows("llama", 4, seed=9), [rows("llama", 1)[0]] * 4], ids=["mixed", "equal"])
@pytest.mark.parametrize("shift", [-3, 0, 12])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_other_lengths(support, shift, side, tmp_path):
    def lengthened(row):
        if shift < 0:
            return {name: values[-shift:] for name, values in row.items() if name != "source"}
        tail = list(range(3, 3 + shift))
        return {name: values + tail for name, values in row.items() if name != "source"}

    changed = [lengthened(row) for row in support]
    check_same(both(tmp_path, build_model, support=changed, collator=PaddingCollator(side)))


def test_rows_without_labels(tmp_path):
    data = rows("llama", 16)
    for row in data[:4]:
        row["labels"] = [-100] * len(row["labels"])
    check_same(both(tmp_path, build_model, data, max_steps=2, config=GASTConfig(keep=3, support_batch_size=6)))


def test_groups_of_modules_and_a_reused_support_gradient(tmp_path):
    config = GASTConfig(keep=3, group_by="module", support_every=4)
    check_same(both(tmp_path, build_model, config=config, max_steps=6, gradient_accumulation_steps=2), 1e-4)


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"use_rslora": True, "target_modules": ["o_proj"]}], ids=str)
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("support", [None, rows("llama", 4, seed=3)[:1]], ids=["pool", "one"])
def test_the_samples_drop_out_as_without_support_rows_and_those_do_not(lora, changes, support, tmp_path):
    found = both(tmp_path, lambda: build_model(dropout=0.3, **lora), support=support, max_steps=2, **changes)
    check_same(found, 1e-4)


def test_a_sixteen_bit_model(tmp_path):
    found = both(tmp_path, lambda: sixteen_bit(build_model()))
    (joint, _), (separate, _) = found
    # rows of a batch of another size are rounded differently
    assert relative_error(joint.gast.support, separate.gast.support) < 3e-2


def test_autocast(tmp_path):
    (joint, _), (separate, _) = both(tmp_path, build_model, bf16=True)
    assert relative_error(joint.gast.support, separate.gast.support) < 3e-2


def out_of_memory_for_more_than(model, samples):
    """The model fails as if a batch of more rows did not fit into memory."""

    def check(module, args):
        if len(args[0]) > samples:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_base_model().model.layers[1].register_forward_pre_hook(check)
    return model


def test_rows_that_do_not_fit_get_a_pass_and_nothing_changes(tmp_path):
    found = []
    for build in (lambda: out_of_memory_for_more_than(build_model(), 8), build_model):
        trainer = GASTTrainer(
            model=build(), args=arguments(tmp_path, max_steps=2, gradient_accumulation_steps=2), data_collator=collate,
            train_dataset=rows("llama", 48), gast_config=GASTConfig(keep=3, seed=7),
        )  # fmt: skip
        recorder = Recorder().attach(trainer)
        trainer.train()
        found.append((trainer, recorder))
    assert "does not fit into memory" in found[0][0].gast.separate_because
    assert found[1][0].gast.separate_because == ""
    for left, right in zip(found[0][1].gradients, found[1][1].gradients, strict=True):
        assert relative_error(left, right) < 1e-5


def test_a_batch_that_does_not_fit_by_itself_is_an_error(tmp_path):
    with pytest.raises(torch.OutOfMemoryError):
        train(out_of_memory_for_more_than(build_model(), 7), tmp_path, rows())


def test_fp16_with_a_gradient_scaler(tmp_path):
    # the Trainer refuses fp16 on a CPU, where a gradient scaler and autocast work like on a GPU
    trainer = GASTTrainer(
        model=build_model(), args=arguments(tmp_path), train_dataset=rows("llama", 16), data_collator=collate,
        gast_config=GASTConfig(keep=3),
    )  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.backward = lambda loss: scaler.scale(loss).backward()
    trainer.compute_loss_context_manager = lambda: torch.autocast("cpu", torch.float16)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = collate(rows("llama", 8))
    trainer.training_step(trainer.model, batch, (batch["labels"][:, 1:] != -100).sum())
    assert trainer.gast.separate_because == ""
    assert all(value.isfinite().all() for value in trainer.gast.support.values())
    assert {int(mask.sum()) for mask in trainer.gast.last.masks.values()} == {3}


def test_the_loss_is_that_of_the_stock_trainer(tmp_path):
    shared = {"logging_strategy": "steps", "logging_steps": 1}
    data = rows("llama", 16)
    joint, _ = train(build_model(), tmp_path / "a", data, config=GASTConfig(keep=3), **shared)
    stock, recorder = train(build_model(), tmp_path / "b", data, trainer_class=Trainer, **shared)
    assert joint.gast.separate_because == ""
    losses = [t.state.log_history[0]["loss"] for t in (joint, stock)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_support_gradient_is_the_mean_of_gradients_from_batches_of_one(tmp_path):
    support = rows("llama", 4, seed=2)
    trainer, _ = train(build_model(), tmp_path, rows(), support=support)
    model = build_model().eval()
    total = None
    for row in support:
        model.zero_grad()
        model(**collate([row])).loss.backward()
        own = gradients_of(model)
        total = own if total is None else {name: total[name] + own[name] for name in total}
    assert relative_error(trainer.gast.support, {name: value / 4 for name, value in total.items()}) < 1e-5


def test_weights_of_the_labelled_tokens():
    support = collate([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}, {"input_ids": [5], "labels": [5]}])
    appended = appended_rows(support, torch.zeros(3, 6, dtype=torch.long))
    assert appended.shape == (5, 6) and appended.positions.tolist() == [1, 2] and appended.targets.tolist() == [7, 8]
    # the second row has no labelled token that is predicted
    assert appended.weights.tolist() == [0.5, 0.5]


# ---- Where the rows are not appended ----


class OwnLoss(GASTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def sample_weights(self, inputs):
        return super().sample_weights(inputs)


def scaled_logits(model):
    inner = model.get_base_model()
    forward = inner.forward

    @wraps(forward)
    def changed(*args, **kwargs):
        output = forward(*args, **kwargs)
        output["logits"] = output.logits * 0.5
        return output

    inner.forward = changed
    return model


@pytest.mark.parametrize(
    ("reason", "model", "changes"),
    [
        ("not a causal language model", lambda: build_model("bert"), {"name": "bert"}),
        ("outside of the blocks", lambda: build_model(modules_to_save=["lm_head"]), {}),
        ("drops out|attention_dropout", lambda: with_dropout(0.1), {}),
        ("dynamic rotary", lambda: with_rope("dynamic"), {}),
        ("label_smoothing_factor", build_model, {"label_smoothing_factor": 0.1}),
        ("a loss of the trainer's own", build_model, {"trainer_class": OwnLoss}),
        ("NEFTune", build_model, {"neftune_noise_alpha": 5.0}),
        ("logits are not", lambda: scaled_logits(build_model()), {}),
    ],
)
def test_a_separate_pass_where_the_rows_cannot_ride(reason, model, changes, tmp_path):
    name = changes.pop("name", "llama")
    trainer, _ = train(model(), tmp_path, rows(name, 16), config=GASTConfig(keep=3), **changes)
    assert trainer.gast.supports == 1
    assert any(part in trainer.gast.separate_because for part in reason.split("|"))


def with_dropout(p):
    model = build_model()
    model.get_base_model().config.attention_dropout = p
    return model


def with_rope(kind):
    model = build_model()
    model.get_base_model().config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0}
    return model


def test_batches_with_other_inputs_get_a_separate_pass(tmp_path):
    class Positioned(PaddingCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
            return batch | {"position_ids": positions} if len(rows) == 8 else batch

    trainer = GASTTrainer(
        model=build_model(), args=arguments(tmp_path), train_dataset=Dataset.from_list(rows()),
        data_collator=Positioned(), gast_config=GASTConfig(keep=3),
    )  # fmt: skip
    trainer.train()
    assert trainer.gast.supports == 1 and trainer.gast.separate_because is None


def test_a_support_batch_without_a_mask(tmp_path):
    class Unmasked(PaddingCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return batch if len(rows) == 8 else {n: v for n, v in batch.items() if n != "attention_mask"}

    support = [{name: values[:4] for name, values in row.items() if name != "source"} for row in rows(count=4)]
    check_same(both(tmp_path, build_model, support=support, collator=Unmasked()))


def test_an_error_about_rows_counts_the_support_rows(tmp_path):
    model = build_model()
    layer = model.get_base_model().model.layers[1].mlp
    forward = layer.forward
    # as experts do: the adapter gets the tokens of all rows
    layer.forward = lambda x: forward(x.flatten(0, 1)).view(x.shape)
    with pytest.raises(ValueError, match="for a batch of 8 samples and 4 support samples"):
        train(model, tmp_path, rows(), config=GASTConfig(keep=3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
