"""The hook engine: what it keeps for the backward pass, and that parameters and modules stay unchanged."""

import dataclasses

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from hf_gist.gradients import hooks
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.losses import sample_losses
from hf_gist.gradients.models import unwrapped
from hf_gist.gradients.modes import checkpointing, scoring_mode
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.gradients.vectors import per_sample_backward
from tests.helpers.inputs import InputsKept
from tests.helpers.tiny import LINEARS, PaddingCollator, lora_model, sixteen_bit, token_rows


def gradients_and_inputs(model, tracked, batch, forwards=1):
    """Every parameter's per-sample gradients, and the inputs that were kept."""
    found, ran = {}, []
    mlp = unwrapped(model).model.layers[0].mlp
    handle = mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    with scoring_mode(model), checkpointing(model), InputsKept() as kept:
        per_sample_backward(
            TokenLoss(model), batch, tracked, lambda name, values: found.update({name: values.clone()})
        )
    handle.remove()
    assert len(ran) == forwards
    return found, kept


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_inputs_of_a_sixteen_bit_model_are_kept_as_they_are_and_change_nothing(variant, checkpointed):
    model = sixteen_bit(lora_model(lora_dropout=0.1, **variant))
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, tracked = PaddingCollator()(token_rows(6)), find_tracked(model)
    plain = [dataclasses.replace(module, layer=None) for module in tracked]
    expected, copies = gradients_and_inputs(model, plain, batch, 1 + checkpointed)
    found, inputs = gradients_and_inputs(model, tracked, batch, 1 + checkpointed)
    assert copies.dtypes() == {torch.float32}
    assert inputs.dtypes() == {torch.float32 if "use_dora" in variant else torch.bfloat16}
    if "use_dora" not in variant:
        # half the bytes each, and queries, keys and values share theirs
        assert 0 < 5 * inputs.bytes() <= 2 * copies.bytes()
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert values.abs().max() > 0 and torch.equal(found[name], values)
    assert all(m.cast_input_dtype_enabled for m in model.modules() if isinstance(m, LoraLayer))


def test_two_active_adapters_share_an_input_that_their_layer_casts():
    model = lora_model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=LINEARS))
    model.base_model.set_adapter(["default", "second"])
    tracked = find_tracked(sixteen_bit(model))
    assert {m.layer for m in tracked} == {None}
    found, _ = gradients_and_inputs(model, tracked, PaddingCollator()(token_rows(4)))
    assert len(found) == len(tracked) and any(".second." in name for name in found)


def sums_and_inputs(tracked, model, batch):
    """Sums over the batch as the support pass takes them, and the inputs that were kept."""
    scales = torch.linspace(0.5, 2, len(batch["labels"]))
    with scoring_mode(model), checkpointing(model), InputsKept() as kept, hooks.summing(tracked, scales) as sums:
        model(**batch).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    return sums, kept


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_the_support_pass_keeps_sixteen_bit_inputs_and_changes_nothing(variant, checkpointed):
    model = sixteen_bit(lora_model(lora_dropout=0.1, **variant)).train()
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, tracked = PaddingCollator()(token_rows(6)), find_tracked(model)
    expected, copies = sums_and_inputs([dataclasses.replace(t, layer=None) for t in tracked], model, batch)
    found, inputs = sums_and_inputs(tracked, model, batch)
    assert copies.dtypes() == {torch.float32}
    if "use_dora" not in variant:
        assert inputs.dtypes() == {torch.bfloat16} and 0 < 5 * inputs.bytes() <= 2 * copies.bytes()
    assert set(found) == set(expected) == {name for t in tracked for name in t.parameters.values()}
    for name, values in expected.items():
        assert values.abs().max() > 0 and torch.equal(found[name], values)
    assert all(m.cast_input_dtype_enabled for m in model.modules() if isinstance(m, LoraLayer))


def test_sums_are_those_of_the_per_sample_gradients():
    model, batch = lora_model(lora_bias=True), PaddingCollator()(token_rows(5))
    tracked, gradients, scales = find_tracked(model), {}, torch.rand(5)
    with scoring_mode(model):
        with hooks.summing(tracked, scales) as sums:
            sample_losses(model, batch)[0].sum().backward()
        per_sample_backward(
            TokenLoss(model), batch, tracked, lambda name, values: gradients.update({name: values.clone()})
        )
    assert set(sums) == set(gradients)
    for name, values in sums.items():
        torch.testing.assert_close(values.flatten(), scales @ gradients[name], rtol=1e-4, atol=1e-6)


def test_hooks_on_gradients_are_not_called_by_the_support_pass():
    model, called = lora_model(lora_bias=True), []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(called.append)
    sums_and_inputs(find_tracked(model), model, PaddingCollator()(token_rows(3)))
    assert not called


def test_a_module_that_does_not_see_the_samples_is_named():
    model, batch = lora_model(), PaddingCollator()(token_rows(4))
    with pytest.raises(ValueError, match="proj.* gets 4 rows for a batch of 3 samples"), scoring_mode(model):
        with hooks.summing(find_tracked(model), torch.ones(3)):
            model(**batch).loss.backward()


def test_a_trained_head_whose_module_is_not_called_is_named():
    """TRL's fused head multiplies with the weights of `lm_head` itself."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    name = "base_model.model.lm_head.modules_to_save.default.weight"
    text = hooks.unreached({name: weight})
    assert "weights of base_model.model.lm_head without calling" in text and "`outside_blocks='unmasked'`" in text
