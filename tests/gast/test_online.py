"""Masks of whole samples, positive alignments and other supports, against a loop over samples with a slow oracle."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from hf_gist import save_support_gradient
from hf_gist.config.gast import GASTConfig
from hf_gist.errors import NoEffectWarning
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import (
    Recorder,
    arguments,
    build_model,
    collate,
    gradients_of,
    label_counts,
    mean_of,
    reference_gradients,
    reference_support,
    relative_error,
    rows,
    same_masks,
    sample_gradient,
    support_rows_in,
    train,
)


torch.set_num_threads(1)
SUPPORT = rows("llama", 6, seed=99)
MODES = {
    "positive": {"mode": "positive"},
    "threshold": {"mode": "positive", "threshold": 0.1},
    "negative threshold": {"mode": "positive", "threshold": -0.05, "rescale": False},
    "batch": {"support": "batch", "keep": 3},
    "batch, positive": {"support": "batch", "mode": "positive", "threshold": 0.3},
    "batch, modules": {"support": "batch", "keep": 3, "group_by": "module"},
    "model": {"group_by": "model", "keep": 3},
    "model, topk": {"group_by": "model", "keep": 3, "mode": "topk"},
    "model, positive": {"group_by": "model", "mode": "positive"},
    "model, batch": {"group_by": "model", "keep": 0.25, "support": "batch", "rescale": False},
    "redundancy": {"group_by": "model", "keep": 4, "mode": "topk", "redundancy": True},
    "redundancy, batch": {"group_by": "model", "keep": 4, "mode": "topk", "redundancy": True, "support": "batch"},
}
LR = 30.0
"""Large enough that the overlaps change what is chosen."""


def blank(data, every=5):
    """Every few rows without a label."""
    for row in data[::every]:
        row["labels"] = [-100] * len(row["labels"])
    return data


def check(folder, options, name="llama", *, data=None, support=None, where="pass", lora=None, **changes):
    """Train for one step, and compare its gradients and masks with the reference."""
    config = GASTConfig(seed=7, **options)
    data = data or rows(name, 48)
    support = (support or rows(name, 6, seed=99)) if config.support == "dataset" else None
    with support_rows_in(where):
        trainer, recorder = train(
            build_model(name, **(lora or {})),
            folder,
            data,
            config=config,
            support=support,
            learning_rate=LR,
            **changes,
        )
    items = None if name in ("bert", "t5") else sum(label_counts(batch, name).sum() for batch in recorder.batches)
    scale = len(recorder.batches) if name in ("bert", "t5") else 1.0
    expected, masks, _ = reference_gradients(
        build_model(name, **(lora or {})),
        name,
        recorder.batches,
        support,
        config,
        items=items,
        lr=LR,
        loss_scale=scale,
    )
    for found, wanted in zip(recorder.masks, masks, strict=True):
        assert all(torch.equal(found[group], wanted[group]) for group in wanted)
    assert relative_error(recorder.gradients[0], expected) < 1e-5
    return trainer, recorder


@pytest.mark.parametrize("options", MODES.values(), ids=list(MODES))
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradients_equal_the_reference(options, name, tmp_path):
    check(tmp_path, options, name)


@pytest.mark.parametrize("options", MODES.values(), ids=list(MODES))
def test_with_accumulation_checkpointing_and_rows_without_labels(options, tmp_path):
    data = blank(rows("llama", 48))
    check(tmp_path, options, data=data, gradient_accumulation_steps=2, gradient_checkpointing=True)


@pytest.mark.parametrize("key", ["positive", "model", "redundancy"])
def test_support_rows_in_the_batch(key, tmp_path):
    trainer, _ = check(tmp_path, MODES[key], where="batch", gradient_accumulation_steps=2)
    assert trainer.gast.separate_because == ""


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_losses_that_are_a_mean_of_their_own_batch(name, tmp_path):
    trainer, _ = check(tmp_path, MODES["redundancy"], name, gradient_accumulation_steps=2)
    assert trainer.gast.divides_by_items is False


@pytest.mark.parametrize(
    ("name", "lora", "outside"),
    [
        ("llama", {"use_dora": True}, "unmasked"),
        ("llama", {"modules_to_save": ["lm_head"]}, "masked"),
        ("llama", {"modules_to_save": ["embed_tokens"]}, "unmasked"),
        ("bert", {"modules_to_save": ["classifier"]}, "masked"),
        ("qwen2", {"use_rslora": True, "lora_bias": True}, "unmasked"),
    ],
)
@pytest.mark.parametrize("key", ["model", "redundancy", "batch, positive"])
def test_other_adapters_and_parameters_outside_the_blocks(name, lora, outside, key, tmp_path):
    trainer, _ = check(tmp_path, {**MODES[key], "outside_blocks": outside}, name, lora=lora)
    saved = [n for n, p in trainer.model.named_parameters() if p.requires_grad and "modules_to_save" in n]
    assert set(saved) == set(trainer.gast.unmasked if outside == "unmasked" else saved)


def test_one_mask_for_the_whole_model_and_redundancy_chooses_others(tmp_path):
    first, one = check(tmp_path / "a", MODES["model, topk"] | {"keep": 4})
    _, two = check(tmp_path / "b", MODES["redundancy"])
    assert [group.name for group in first.gast.groups] == ["whole model"]
    assert set(one.masks[0]) == {0} and int(one.masks[0][0].sum()) == int(two.masks[0][0].sum()) == 4
    assert not torch.equal(one.masks[0][0], two.masks[0][0])


@pytest.mark.parametrize("key", ["positive", "batch", "model", "redundancy"])
@pytest.mark.parametrize("where", ["batch", "pass"])
def test_resume_continues_exactly(key, where, tmp_path):
    data, config = rows("llama", 64), GASTConfig(**MODES[key])
    shared = {
        "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2, "learning_rate": 0.1,
    }  # fmt: skip
    with support_rows_in(where):
        whole, recorded = train(build_model(dropout=0.2), tmp_path, data, config=config, **shared)
        resumed = GASTTrainer(
            model=build_model(dropout=0.2), args=arguments(tmp_path, **shared), train_dataset=data,
            data_collator=collate, gast_config=config,
        )  # fmt: skip
        again = Recorder().attach(resumed)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(again.masks) == 6
    assert same_masks(recorded.masks[6:], again.masks)
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in resumed.model.named_parameters())


# ---- Positive alignments ----


def test_a_layer_without_a_positive_sample_is_not_updated_and_counted(tmp_path):
    config = GASTConfig(mode="positive", threshold=0.999)
    with pytest.warns(NoEffectWarning, match="kept no sample in .*`threshold=0.999`. Lower it"):
        trainer, recorder = train(
            build_model(), tmp_path, rows("llama", 64), config=config, support=SUPPORT, max_steps=2,
            logging_strategy="steps", logging_steps=1,
        )  # fmt: skip
    assert all(not gradient.any() for gradient in recorder.gradients[0].values())
    (first, *_) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["gast_without_sample"] == 1 and first["gast_kept_fraction"] == 0
    assert "gast_draw_entropy" not in first and "gast_layer_agreement" in first


def test_a_threshold_that_everything_is_above_warns(tmp_path):
    with pytest.warns(NoEffectWarning, match="every cosine with the support gradient is above `threshold=-0.99`"):
        train(build_model(), tmp_path, rows(), config=GASTConfig(mode="positive", threshold=-0.99), support=SUPPORT)


def test_the_threshold_does_not_depend_on_the_scale_of_the_loss(tmp_path):
    def scaled(factor):
        def loss(outputs, labels, num_items_in_batch=None):
            logits = outputs["logits"][:, :-1].flatten(0, 1)
            return factor * torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")

        return loss

    found = []
    for factor in (1.0, 1e-3):
        _, recorder = train(
            build_model(), tmp_path / str(factor), rows("llama", 48), config=GASTConfig(**MODES["threshold"]),
            support=SUPPORT, trainer_kwargs={"compute_loss_func": scaled(factor)},
        )  # fmt: skip
        found.append(torch.stack(list(recorder.masks[0].values())))
    assert torch.equal(*found) and found[0].any() and not found[0].all()


def test_momentum_keeps_everything_until_there_is_a_moment(tmp_path):
    config = GASTConfig(mode="positive", support="momentum")
    _, recorder = train(build_model(), tmp_path, rows("llama", 64), config=config, max_steps=3)
    masks = [torch.stack(list(by_group.values())) for by_group in recorder.masks]
    assert masks[0].all() and masks[1].any() and not masks[2].all()


def test_a_zero_support_gradient_warns_that_nothing_is_kept(tmp_path):
    nothing = blank(rows("llama", 8), every=1)
    with pytest.warns(NoEffectWarning, match="support gradient is zero, so no sample is kept"):
        train(build_model(), tmp_path, rows(), config=GASTConfig(mode="positive"), support=nothing)


# ---- A saved support gradient ----


def saved_gradient(folder, data=SUPPORT, trainer_class=Trainer, **lora):
    """The file of a support gradient, and its tensors."""
    file = str(folder / "support.safetensors")
    trainer = trainer_class(
        model=build_model(**lora), args=arguments(folder, per_device_train_batch_size=4), train_dataset=rows("llama", 8),
        data_collator=collate,
    )  # fmt: skip
    before = torch.get_rng_state()
    save_support_gradient(trainer, data, file)
    assert torch.equal(before, torch.get_rng_state()) and not gradients_of(trainer.model)
    return file, load_file(file)


@pytest.mark.parametrize("trainer_class", [Trainer, GASTTrainer])
@pytest.mark.parametrize("lora", [{}, {"dropout": 0.3}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_saved_gradient_is_the_mean_over_all_samples(trainer_class, lora, tmp_path):
    data = blank(rows("llama", 7, seed=99), every=3)
    _, found = saved_gradient(tmp_path, data, trainer_class, **lora)
    model = build_model(**lora).eval()
    labelled = [row for row in data if any(label != -100 for label in row["labels"])]
    expected = mean_of([sample_gradient(model, collate([row]), 0) for row in labelled])
    assert len(labelled) == 4 and relative_error(found, expected) < 1e-5


def test_a_saved_gradient_leaves_out_what_has_no_per_sample_gradients(tmp_path):
    _, found = saved_gradient(tmp_path, modules_to_save=["embed_tokens"])
    assert found and not any("embed_tokens" in name for name in found)


@pytest.mark.parametrize("key", ["positive", "model", "redundancy"])
def test_gradients_with_a_saved_support_equal_the_reference(key, tmp_path):
    file, _ = saved_gradient(tmp_path)
    config = GASTConfig.from_yaml(GASTConfig(seed=7, support=file, **MODES[key]).to_yaml())
    trainer, recorder = train(
        build_model(), tmp_path / "run", rows("llama", 48), config=config, learning_rate=LR, max_steps=1
    )
    items = label_counts(recorder.batches[0], "llama").sum()
    expected, masks, _ = reference_gradients(
        build_model(), "llama", recorder.batches, SUPPORT, config, items=items, lr=LR
    )
    assert all(torch.equal(recorder.masks[0][group], masks[0][group]) for group in masks[0])
    assert relative_error(recorder.gradients[0], expected) < 1e-5
    assert relative_error(dict(trainer.gast.support), reference_support(build_model().eval(), SUPPORT, config)) < 1e-5


def test_a_run_with_a_saved_support_is_resumed(tmp_path):
    file, _ = saved_gradient(tmp_path)
    shared = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    config = GASTConfig(keep=3, support=file)
    whole, recorded = train(build_model(), tmp_path / "run", rows("llama", 64), config=config, **shared)
    resumed = GASTTrainer(
        model=build_model(), args=arguments(tmp_path / "run", **shared), train_dataset=rows("llama", 64),
        data_collator=collate, gast_config=config,
    )  # fmt: skip
    again = Recorder().attach(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert same_masks(recorded.masks[2:], again.masks)
    assert json.loads((tmp_path / "run" / "gast_run.json").read_text())["config"]["support"] == Path(file).name
    assert GASTConfig.from_pretrained(tmp_path / "run").support == file


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, n: without(t, n), "has no tensor for the trained parameter {name}. Compute"),
        (
            lambda t, n: t | {n: t[n].T.contiguous()},
            r"has {name} with the shape \[.*\], and in the model it is \[.*\]",
        ),
        (
            lambda t, n: t | {"other.weight": t[n].clone()},
            "has a tensor other.weight, which is not a trained parameter",
        ),
        (lambda t, n: t | {n: t[n] * float("nan")}, "not all values of {name} are finite"),
        (lambda t, n: t | {n: t[n].long()}, "not all values of {name} are finite"),
        (None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("position", [0, 5])
def test_a_file_that_does_not_fit_is_refused_before_training(damage, message, position, tmp_path):
    file, tensors = saved_gradient(tmp_path)
    name = [n for n, p in build_model().named_parameters() if p.requires_grad][position]
    if damage is None:
        Path(file).write_bytes(b"not safetensors")
    else:
        save_file(damage(tensors, name), file)
    with pytest.raises(ValueError, match=message.replace("{name}", name)):
        GASTTrainer(
            model=build_model(), args=arguments(tmp_path), train_dataset=rows(), data_collator=collate,
            gast_config=GASTConfig(support=file),
        )  # fmt: skip


def test_what_cannot_be_saved_is_refused(tmp_path):
    trainer = Trainer(build_model(), arguments(tmp_path), train_dataset=rows(), data_collator=collate)
    for file in ("support.pt", str(tmp_path / "none" / "x.safetensors"), ".safetensors"):
        with pytest.raises(ValueError, match="must be a path in an existing folder that ends in .safetensors"):
            save_support_gradient(trainer, SUPPORT, file)
    with pytest.raises(ValueError, match="No row of `dataset` has a labelled token"):
        save_support_gradient(trainer, blank(rows("llama", 4), every=1), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="`dataset` is a streaming dataset .*without a length"):
        save_support_gradient(trainer, iter(SUPPORT), tmp_path / "x.safetensors")


# ---- Refusals ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1}, "`threshold` must be left out unless `mode='positive'`"),
        ({"threshold": 0.1, "mode": "topk"}, "`threshold` must be left out unless `mode='positive'`"),
        ({"threshold": 1.0, "mode": "positive"}, "`threshold` must be a cosine above -1 and below 1"),
        ({"threshold": float("nan"), "mode": "positive"}, "`threshold` must be a cosine"),
        ({"mode": "positive", "keep": 8}, "`keep` must be left out with `mode='positive'`"),
        ({"mode": "positive", "temperature": 2.0}, "`temperature` must be left out unless `mode='stochastic'`"),
        ({"mode": "topk", "temperature": 0.5}, "`temperature` must be left out unless `mode='stochastic'`"),
        ({"redundancy": True}, "`redundancy` must be left out unless `group_by='model'`"),
        ({"redundancy": True, "group_by": "module", "mode": "topk"}, "`redundancy` must be left out unless"),
        ({"redundancy": True, "group_by": "model"}, "`redundancy` must be left out unless `mode='topk'`"),
        ({"support": "momentun"}, "`support` must be one of 'dataset', 'momentum', 'batch', or a path that ends in"),
        ({"support": ".safetensors"}, "`support` must be one of"),
        ({"support": "batch", "support_every": 4}, "`support_every` must be left out with `support='batch'`"),
        ({"support": "momentum", "support_every": 4}, "`support_every` must be left out with `support='momentum'`"),
        ({"support": "momentum", "support_batch_size": 8}, "`support_batch_size` must be left out with"),
        ({"support": "x.safetensors", "support_batch_size": 8}, "`support_batch_size` must be left out with"),
    ],
)
def test_settings_without_an_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GASTConfig(**options)


def refused(folder, message, options, *, support=None, trainer_class=GASTTrainer, trainer_kwargs=None, **changes):
    with pytest.raises(ValueError, match=message):
        trainer_class(
            model=build_model(), args=arguments(folder, **changes), train_dataset=rows(), data_collator=collate,
            gast_config=GASTConfig(**options), support_dataset=support, **(trainer_kwargs or {}),
        )  # fmt: skip


def test_setups_that_a_mode_does_not_support_are_refused_before_training(tmp_path):
    for support in ("batch", "momentum", "x.safetensors"):
        refused(tmp_path, "`support_dataset` is not used with `support=", {"support": support}, support=SUPPORT)
    refused(tmp_path, "is not a file. Write one with", {"support": "nowhere.safetensors"})
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    refused(tmp_path, "`group_by='model'` does not work with reentrant", {"group_by": "model"}, **reentrant)
    greedy = MODES["redundancy"]
    refused(tmp_path, "that of GASTTrainer with label_smoothing", greedy, label_smoothing_factor=0.1)
    own = {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs["logits"].mean()}
    refused(tmp_path, "needs the scale of the loss, and that of compute_loss_func", greedy, trainer_kwargs=own)

    class Weighted(GASTTrainer):
        def sample_weights(self, inputs):
            return torch.ones(len(inputs["labels"]))

    refused(tmp_path, "that of Weighted.sample_weights is not known", greedy, trainer_class=Weighted)


def test_redundancy_needs_one_learning_rate(tmp_path):
    model = build_model()
    halves = [
        [p for n, p in model.named_parameters() if p.requires_grad and (key in n)] for key in ("lora_A", "lora_B")
    ]
    optimizer = torch.optim.SGD([{"params": part, "lr": lr} for part, lr in zip(halves, (0.1, 0.2), strict=True)])
    kwargs = {"optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))}
    with pytest.raises(ValueError, match="one learning rate, and the optimizer has 0.1, 0.2"):
        train(model, tmp_path, rows(), config=GASTConfig(**MODES["redundancy"]), trainer_kwargs=kwargs)


def test_the_memory_of_whole_samples_is_forecast(tmp_path, monkeypatch):
    values = sum(p.numel() for p in build_model().parameters() if p.requires_grad)
    needed = 8 * values * 4
    free = {"free": 2 * needed}
    monkeypatch.setattr("hf_gist.training.gast.checks.free_memory", lambda device: (free["free"], free["free"]))
    trainer, _ = train(build_model(), tmp_path, rows(), config=GASTConfig(group_by="model", keep=3))
    free["free"] = needed
    message = f"of a batch, .* for 8 rows of {values:,} values, and only .* are free on the cpu. Lower"
    refused(tmp_path, message, {"group_by": "model", "keep": 3})
    # other groups keep one block at a time
    train(build_model(), tmp_path, rows(), config=GASTConfig(keep=3))
