"""Activation checkpointing while scoring: exact gradients without dropout, whatever the checkpointing function inspects."""

import inspect
from functools import partial
from types import MethodType

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from hf_gist import per_sample_gradients_reference
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.modes import checkpointing, scoring_mode
from hf_gist.gradients.row_losses.base import TokenLoss
from hf_gist.gradients.vectors import per_sample_backward
from tests.helpers.checkpoints import CASES, checkpoint_blocks
from tests.helpers.tiny import VOCABULARY, PaddingCollator, lora_model, token_rows


def dropping_model():
    """A decoder whose blocks drop out by their own flag."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, dropout=0.3,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.2)
    return get_peft_model(transformers.OPTForCausalLM(config), lora).train()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("build", [dropping_model, lambda: lora_model("qwen2", lora_dropout=0.3).train()])
def test_scoring_with_any_checkpointing_function_equals_the_oracle_without(build, case):
    rows, collator = token_rows(5), PaddingCollator()
    expected = per_sample_gradients_reference(build(), rows, collator)
    model, found, ran = checkpoint_blocks(build(), case), {}, []
    blocks = model.get_base_model().get_decoder().layers
    functions = [block._gradient_checkpointing_func for block in blocks]
    handle = blocks[0].self_attn.q_proj.register_forward_pre_hook(lambda *_: ran.append(1))
    with scoring_mode(model), checkpointing(model):
        per_sample_backward(
            TokenLoss(model), collator(rows), find_tracked(model), lambda n, v: found.update({n: v.clone()})
        )
    handle.remove()
    # the forward pass and its recomputation
    assert len(ran) == 2 and all(module.training for module in model.modules())
    assert functions == [block._gradient_checkpointing_func for block in blocks]
    assert set(found) == set(expected[0])
    for name, values in found.items():
        for row, gradients in enumerate(expected):
            assert gradients[name].norm() > 0
            error = (values[row].view_as(gradients[name]) - gradients[name]).norm() / gradients[name].norm()
            assert error < 1e-4


class Block(torch.nn.Module):
    """Records whether it computed in training mode."""

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = True
        self.training_flags = []

    def forward(self, hidden_states, scale=1):
        self.training_flags.append(self.training)
        return scale * hidden_states


FORMS = {
    "method": lambda block: block.forward,
    "partial method": lambda block: partial(block.forward, scale=3),
    "partial call": lambda block: partial(super(Block, block).__call__, scale=3),
    "partial function": lambda block: partial(Block.forward, block, scale=3),
    "function": lambda block: lambda hidden_states, scale=3: block.forward(hidden_states, scale),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpointing_function_gets_the_kind_of_function_that_the_block_hands_over(form):
    block, got = Block(), []
    given = FORMS[form](block)
    block._gradient_checkpointing_func = lambda function, *args: got.append(function) or function(*args)
    with checkpointing(block):
        assert block.training
        output = block._gradient_checkpointing_func(given, torch.ones(2))
        assert block.training
    torch.testing.assert_close(output, given(torch.ones(2)))
    assert block.training_flags == [False, False]
    (function,) = got
    assert type(function) is type(given) and inspect.signature(function) == inspect.signature(given)
    if isinstance(given, partial):
        assert function.args == given.args and function.keywords == given.keywords
        function, given = function.func, given.func
    assert function.__name__ == given.__name__
    if isinstance(given, MethodType):
        assert function.__self__ is given.__self__ and inspect.unwrap(function.__func__) is given.__func__
