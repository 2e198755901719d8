"""What has no per-sample gradients is refused by name, with the reason and the way out; what has them is exact."""

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, PeftType, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_gist import GASTConfig, GASTTrainer, GISTConfig, GISTDataSelectorCallback
from hf_gist.gradients.lora import find_tracked
from tests.gradients.test_vectors import worst_relative_error
from tests.helpers.tiny import (
    DECODER,
    LINEARS,
    PaddingCollator,
    as_dataset,
    base_model,
    lora_model,
    token_rows,
)


LINEAR = {"target_modules": ["q_proj", "v_proj"]}
METHODS = {
    "ADALORA": {"r": 4, "total_step": 10, "init_r": 4, "target_r": 2, **LINEAR},
    "BOFT": {"boft_block_size": 4, **LINEAR},
    "FOURIERFT": {"n_frequency": 10, **LINEAR},
    "HRA": {"r": 2, **LINEAR},
    "IA3": {},
    "LN_TUNING": {"target_modules": ["norm", "input_layernorm"]},
    "LOHA": LINEAR,
    "LOKR": LINEAR,
    "OFT": {"oft_block_size": 4, **LINEAR},
    "PREFIX_TUNING": {"num_virtual_tokens": 3},
    "PROMPT_TUNING": {"num_virtual_tokens": 3},
    "P_TUNING": {"num_virtual_tokens": 3},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 4, **LINEAR},
    "VERA": {"r": 4, **LINEAR},
    "XLORA": None,
}
"""peft's methods to settings of their configuration; for the last one only a name is compared."""


def other_adapter(method):
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[method]]
    if METHODS[method] is None:
        model = lora_model()
        model.peft_config["default"].peft_type = PeftType[method]
        return model, "LoraConfig"
    config = config_class(task_type="CAUSAL_LM", **METHODS[method])
    return get_peft_model(base_model(num_key_value_heads=4), config), config_class.__name__


@pytest.mark.parametrize("method", METHODS)
def test_other_peft_methods_are_named(method):
    model, config = other_adapter(method)
    with pytest.raises(
        ValueError, match=rf"'default' is {method} \(`{config}`\).*LoRA adapters only.*LoraConfig\(\.\.\.\)"
    ):
        find_tracked(model)


class Steps(TrainerCallback):
    """Whether a step of the optimizer was finished."""

    ended = False

    def on_step_end(self, *_, **__):
        self.ended = True


def through_both_methods(model, tmp_path):
    """The error of a GIST run and of a GAST run, before their first step."""
    rows = as_dataset(token_rows(40))
    args = TrainingArguments(str(tmp_path), num_train_epochs=2, report_to=[], use_cpu=True, save_strategy="no")
    given = {"model": model, "args": args, "train_dataset": rows, "data_collator": PaddingCollator()}
    callback = GISTDataSelectorCallback(GISTConfig(budget=8), rows.select(range(4)))
    errors = []
    for trainer_class, options in (
        (Trainer, {"callbacks": [callback]}),
        (GASTTrainer, {"gast_config": GASTConfig(keep=3), "callbacks": [steps := Steps()]}),
    ):
        with pytest.raises(ValueError) as raised:
            trainer_class(**given, **options).train()
        errors.append(str(raised.value))
    assert not steps.ended and callback.selection is None
    return errors


@pytest.mark.parametrize("method", ["IA3", "VERA", "LOHA"])
def test_other_peft_methods_are_refused_before_the_first_step(method, tmp_path):
    for message in through_both_methods(other_adapter(method)[0], tmp_path):
        assert f"is {method}" in message


def test_full_fine_tuning_is_told_how_to_add_lora(tmp_path):
    for message in through_both_methods(base_model(), tmp_path):
        assert "LlamaForCausalLM has no trainable LoRA parameter" in message and "not for full fine-tuning" in message
        assert "get_peft_model(model, LoraConfig(task_type=...))" in message


def test_a_frozen_adapter_is_told_how_to_load_it():
    model = lora_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="adapter is frozen.*is_trainable=True"):
        find_tracked(model)


# ---- Mixtures of experts ----


SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
EXPERTS = {
    "mixtral": (transformers.MixtralForCausalLM, transformers.MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig, SPARSE),
}


def experts_model(name, **lora):
    model_class, config_class, sizes = EXPERTS[name]
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, **lora)
    return get_peft_model(model_class(config_class(**DECODER | sizes)), config)


class ListOfExperts(nn.Module):
    """Experts that are modules, each called with the tokens that are routed to it."""

    def __init__(self, hidden=32):
        super().__init__()
        self.gate = nn.Linear(hidden, 2)
        self.experts = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))

    def forward(self, x):
        tokens = x.flatten(0, 1)
        shares, chosen = self.gate(tokens).softmax(-1).max(-1)
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            output[chosen == number] = expert(tokens[chosen == number])
        return (shares[:, None] * output).view_as(x)


def list_model(targets):
    base = base_model()
    for layer in base.model.layers:
        layer.mlp = ListOfExperts()
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))


ATTENTION = r"set `target_modules=\['q_proj', 'k_proj', 'v_proj', 'o_proj'\]`"


@pytest.mark.parametrize(
    "lora", [{"target_modules": "all-linear"}, {"target_parameters": ["mlp.experts.gate_up_proj"]}]
)
@pytest.mark.parametrize("name", EXPERTS)
def test_lora_on_expert_parameters_is_told_the_attention_modules(name, lora):
    model = experts_model(name, **{"target_modules": ["q_proj"]} | lora)
    if not any("experts" in parameter for parameter, p in model.named_parameters() if p.requires_grad):
        pytest.skip("this peft puts no LoRA on the experts")
    with pytest.raises(ValueError, match=rf"parameters of experts or routers \(.*mlp.*\) .*{ATTENTION}"):
        find_tracked(model)


@pytest.mark.parametrize("name", EXPERTS)
def test_the_attention_of_a_mixture_of_experts_is_exact(name):
    model = experts_model(name, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    assert worst_relative_error(model, token_rows(5), PaddingCollator()) <= 1e-4


def test_lora_on_a_list_of_experts_is_told_the_attention_modules():
    with pytest.raises(ValueError, match=rf"LoRA on experts \(.*experts\.0.*\) .*{ATTENTION}"):
        find_tracked(list_model("all-linear"))


def test_lora_on_a_router_is_refused_before_the_first_step(tmp_path):
    for message in through_both_methods(list_model(["q_proj", "gate"]), tmp_path):
        assert "mlp.gate.lora_" in message and "tokens of all samples" in message and "leave 'gate' out" in message


# ---- Other layers and variants ----


class WithOthers(transformers.LlamaForCausalLM):
    """With a convolution and PyTorch's attention."""

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv1d(4, 4, 1)
        self.mha = nn.MultiheadAttention(8, 2)


OTHERS = {
    "embedding": (
        {"target_modules": ["embed_tokens", "q_proj"]},
        "LoRA on embeddings .*leave 'embed_tokens' out of `target_",
    ),
    "embedding, DoRA": (
        {"target_modules": ["embed_tokens"], "use_dora": True},
        "LoRA on embeddings .*leave 'embed_tokens'",
    ),
    "convolution": (
        {"target_modules": ["conv", "q_proj"]},
        "LoRA on convolutions .*leave 'conv' out of `target_modules`",
    ),
    "attention": ({"target_modules": ["mha", "q_proj"]}, r"LoRA on `nn.MultiheadAttention` .*leave 'mha'"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "Single trained tokens .*leave `trainable_token_indices` out"),
    "saved": (
        {"modules_to_save": ["norm", "embed_tokens"]},
        "Only the linear layers of `modules_to_save`.*'embed_tokens'",
    ),
    "aLoRA": ({"alora_invocation_tokens": [5]}, r"is aLoRA \(`alora_invocation_tokens`\).*leave the setting out"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_and_variants_are_named_with_the_way_out(name):
    lora, message = OTHERS[name]
    torch.manual_seed(0)
    model = WithOthers(transformers.LlamaConfig(**DECODER))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": LINEARS} | lora)
    with pytest.raises(ValueError, match=message):
        find_tracked(get_peft_model(model, config))


VARIANTS = {
    "BD-LoRA": ("BdLoraConfig", "use_bdlora", {"target_modules_bd_a": LINEARS, "nblocks": 2}),
    "KaSA": ("KasaConfig", "kasa_config", {}),
    "MonteCLoRA": ("MontecloraConfig", "monteclora_config", {}),
    "VeLoRA": ("VeloraConfig", "velora_config", {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_inexact_variants_are_named_with_their_setting(name):
    config, setting, options = VARIANTS[name]
    if not hasattr(peft.tuners.lora.config, config):
        pytest.skip(f"this peft has no {name}")
    model = lora_model(**{setting: getattr(peft.tuners.lora.config, config)(**options)})
    with pytest.raises(ValueError, match=rf"is {name} \(`{setting}`\) .*leave the setting out"):
        find_tracked(model)


def test_a_variant_that_is_not_known_is_named_by_its_class():
    class NewVariant:
        pass

    model = lora_model()
    model.get_base_model().model.layers[0].self_attn.q_proj.lora_variant["default"] = NewVariant()
    with pytest.raises(ValueError, match="The adapter is NewVariant"):
        find_tracked(model)


@pytest.mark.parametrize(
    "lora",
    [
        *({"init_lora_weights": name} for name in ("pissa", "olora", "orthogonal", "gaussian", "eva", "mica")),
        {"layer_replication": [(0, 2), (1, 2)]},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}},
        {"layers_to_transform": [1]},
        {"use_rslora": True, "use_dora": True, "lora_bias": False},
    ],
    ids=str,
)
def test_variants_that_only_change_the_start_or_the_place_are_exact(lora):
    try:
        model = lora_model(**lora)
    except ValueError as error:
        if "init_lora_weights" not in str(error):
            raise
        pytest.skip(f"this peft does not know it: {error}")
    assert worst_relative_error(model.double(), token_rows(5), PaddingCollator()) <= 1e-5


def test_parameters_that_are_trained_besides_are_named_with_their_class():
    model = lora_model()
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"no LoRA on linear layers.*model\.norm\.weight \(in LlamaRMSNorm\).*freeze"):
        find_tracked(model)


def test_all_reasons_are_given_at_once():
    model = lora_model(target_modules=["embed_tokens", "q_proj"], modules_to_save=["norm"])
    with pytest.raises(ValueError, match=r"LoRA on embeddings.*Only the linear layers of `modules_to_save`"):
        find_tracked(model)


# ---- Modules that are not called ----


def fused_projections(model):
    """As Unsloth's and axolotl's kernels: the LoRA matrices are multiplied, their modules are not called."""

    def forward(self, x):
        lora_a, lora_b = self.lora_A["default"].weight, self.lora_B["default"].weight
        return nn.functional.linear(x, self.base_layer.weight + self.scaling["default"] * lora_b @ lora_a)

    for layer in model.get_base_model().model.layers:
        for module in (layer.self_attn.q_proj, layer.mlp.down_proj):
            module.forward = forward.__get__(module)
    return model


def test_fused_kernels_are_refused_with_the_settings_that_turn_them_off(tmp_path):
    gist, gast = through_both_methods(fused_projections(lora_model()), tmp_path)
    for message in (gist, gast):
        assert "fused LoRA kernel uses the adapter of" in message and "q_proj" in message and "v_proj" not in message
        assert "`lora_dropout` above 0" in message and "`lora_mlp_kernel`, `lora_qkv_kernel`" in message
    assert "select first with `hf-gist select`" in gist and "hf-gist select" not in gast


def test_a_module_that_the_loss_does_not_use_is_no_fused_kernel(tmp_path):
    model = lora_model()
    for layer in model.get_base_model().model.layers:
        layer.mlp.down_proj.forward = layer.mlp.down_proj.base_layer.forward
    for message in through_both_methods(model, tmp_path):
        assert "No gradient reached the adapter of" in message and "down_proj: the module is not used" in message
        assert "fused" not in message
