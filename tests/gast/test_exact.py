"""GAST's gradients against one forward and backward for every sample, with the same draws."""

import pytest
import torch
from transformers import Trainer

from hf_gist.config.gast import GASTConfig
from tests.helpers.gast import (
    MODELS,
    build_model,
    label_counts,
    reference_gradients,
    relative_error,
    rows,
    support_rows_in,
    train,
)


torch.set_num_threads(1)

TOLERANCE = 1e-5


def items_of(name, batches):
    """What the Trainer divides token sums by; T5 and BERT take the mean of each batch themselves."""
    if name == "bert":
        return None
    if name == "t5":
        return None
    return sum(label_counts(batch, name).sum() for batch in batches)


def check(
    name, tmp_path, config=None, lora=None, own_loss=None, loss_scale=1.0, support=None, where="batch", **changes
):
    config = config or GASTConfig(keep=3, seed=7)
    data = rows(name, 48)
    model = build_model(name, **(lora or {}))
    reference_model = build_model(name, **(lora or {}))
    with support_rows_in(where):
        trainer, recorder = train(model, tmp_path, data, config=config, support=support, **changes)
    batches = recorder.batches
    expected, masks, alignments = reference_gradients(
        reference_model, name, batches, support or data, config, items=items_of(name, batches), own_loss=own_loss,
        loss_scale=loss_scale,
    )  # fmt: skip
    for found, wanted in zip(recorder.masks, masks, strict=True):
        for group in wanted:
            assert torch.equal(found[group], wanted[group])
            assert int(found[group].sum()) == 3
    for found, wanted in zip(recorder.alignments, alignments, strict=True):
        for group in wanted:
            # alignments of the samples' own mean losses, up to one factor for the whole batch
            factor = (found[group] @ wanted[group]) / (wanted[group] @ wanted[group])
            assert factor > 0
            assert (found[group] - factor * wanted[group]).norm() < TOLERANCE * found[group].norm()
    assert relative_error(recorder.gradients[0], expected) < TOLERANCE
    return trainer, recorder


@pytest.mark.parametrize(
    ("name", "where"),
    [*((name, "pass") for name in MODELS), ("llama", "batch"), ("qwen2", "batch"), ("gpt2", "batch")],
)
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_reference(name, where, accumulation, checkpointing, tmp_path):
    # The Trainer leaves the division by the accumulation steps to models that take any keyword, and these two do not.
    scale = accumulation if name in ("t5", "bert") else 1.0
    check(
        name, tmp_path, gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing,
        loss_scale=scale, where=where,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["batch", "pass"])
def test_all_matrices_of_a_dora_layer(where, tmp_path):
    check("llama", tmp_path, lora={"use_dora": True}, gradient_accumulation_steps=2, where=where)


def test_dora_with_activation_checkpointing_restores_the_magnitudes(tmp_path):
    trainer, _ = check("llama", tmp_path, lora={"use_dora": True}, gradient_checkpointing=True)
    for module in trainer.model.modules():
        assert "weight" not in vars(module)
    assert all(p.requires_grad for n, p in trainer.model.named_parameters() if "magnitude" in n)


@pytest.mark.parametrize("where", ["batch", "pass"])
def test_rslora_with_a_trained_bias(where, tmp_path):
    check("qwen2", tmp_path, lora={"use_rslora": True, "lora_bias": True}, where=where)


def test_one_mask_per_module(tmp_path):
    trainer, _ = check("llama", tmp_path, config=GASTConfig(keep=3, group_by="module", seed=1))
    assert len(trainer.gast.groups) == 9


def test_one_mask_per_module_with_checkpointing(tmp_path):
    # the gates are opened inside the checkpointed region, so the recomputation opens them again
    check("llama", tmp_path, config=GASTConfig(keep=3, group_by="module", seed=1), gradient_checkpointing=True)


def test_head_outside_the_blocks_is_unmasked_by_default(tmp_path):
    trainer, _ = check("bert", tmp_path, lora={"modules_to_save": ["classifier"]})
    assert any("classifier" in name for name in trainer.gast.unmasked)


def test_modules_outside_the_blocks_as_one_group(tmp_path):
    config = GASTConfig(keep=3, outside_blocks="masked")
    trainer, _ = check("bert", tmp_path, config=config, lora={"modules_to_save": ["classifier"]})
    assert trainer.gast.unmasked == [] and trainer.gast.groups[-1].name == "outside blocks"


def test_topk_random_and_no_rescale(tmp_path):
    check("llama", tmp_path / "a", config=GASTConfig(keep=3, mode="topk"))
    check("llama", tmp_path / "b", config=GASTConfig(keep=3, mode="stochastic", rescale=False, temperature=0.3))


def test_separate_support_set(tmp_path):
    trainer, _ = check("llama", tmp_path, support=rows("llama", 6, seed=99))
    assert len(trainer._gast_support_set.dataset) == 6


def smoothed(model, single, epsilon=0.1):
    logits = model(**single).logits[:, :-1]
    labels = single["labels"][:, 1:]
    log_p = -torch.log_softmax(logits[labels != -100], -1)
    nll = log_p.gather(1, labels[labels != -100][:, None]).mean()
    return (1 - epsilon) * nll + epsilon * log_p.mean()


def test_label_smoothing(tmp_path):
    # without accumulation: transformers before 5.15 scales this loss by the number of batches in its stock Trainer too
    check("llama", tmp_path, label_smoothing_factor=0.1, own_loss=smoothed)


def token_sum(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return 2 * torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


def test_loss_function_that_is_a_mean_over_tokens(tmp_path):
    trainer, _ = check(
        "llama",
        tmp_path,
        trainer_kwargs={"compute_loss_func": token_sum},
        loss_scale=2.0,
        gradient_accumulation_steps=2,
    )
    assert trainer._gast_weighting == "mean over labelled tokens"


def sample_mean(outputs, labels, num_items_in_batch=None):
    token = torch.nn.functional.cross_entropy(
        outputs["logits"][:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return (token.sum(1) / (labels[:, 1:] != -100).sum(1)).mean()


def test_loss_function_that_is_a_mean_over_samples(tmp_path):
    name, config, data = "llama", GASTConfig(keep=3), rows("llama", 48)
    trainer, recorder = train(
        build_model(name), tmp_path, data, config=config, trainer_kwargs={"compute_loss_func": sample_mean}
    )
    assert trainer._gast_weighting == "mean over rows"
    model = build_model(name)
    # with equal weights the reference is the one whose counts are all alike
    expected, masks, alignments = reference_gradients(
        model, "bert", recorder.batches, data, config, own_loss=lambda m, single: m(**single).loss
    )
    assert all(torch.equal(recorder.masks[0][g], masks[0][g]) for g in masks[0])
    assert relative_error(recorder.gradients[0], expected) < TOLERANCE


@pytest.mark.parametrize("seed", range(2))
def test_kept_everything_is_the_stock_gradient(seed, tmp_path):
    data = rows("llama", 16, seed=seed)
    _, masked = train(
        build_model("llama"), tmp_path / "a", data, config=GASTConfig(mode="positive", threshold=-0.9999)
    )
    _, stock = train(build_model("llama"), tmp_path / "b", data, trainer_class=Trainer)
    assert relative_error(masked.gradients[0], stock.gradients[0]) < TOLERANCE
