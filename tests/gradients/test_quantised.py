"""QLoRA: LoRA on a 4-bit or 8-bit base model, for scoring and for GAST."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_gist import per_sample_gradients_reference
from hf_gist.gradients.collect import collect_vectors
from hf_gist.gradients.modes import PACKS_IN_EVAL_MODE, scoring_mode
from hf_gist.gradients.passes import DatasetPass
from tests.gast import test_exact as test_gast_exact
from tests.helpers import gast as gast_helpers
from tests.helpers.tiny import LINEARS, PaddingCollator, base_model, token_rows


pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
EIGHT_BITS = {"load_in_8bit": True}


def quantised(folder, base, bits, modules):
    base.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**bits), device_map="cpu", dtype=torch.float32
    )
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("bits", [FOUR_BITS, EIGHT_BITS], ids=["4 bits", "8 bits"])
def test_scoring_equals_the_oracle(tmp_path, bits):
    model = quantised(tmp_path, base_model(hidden_size=64, intermediate_size=128), bits, LINEARS)
    assert "bitsandbytes" in type(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer).__module__
    rows, collator = token_rows(7), PaddingCollator()
    expected = per_sample_gradients_reference(model, rows, collator)
    found, _ = collect_vectors(DatasetPass(model, collator, 64, progress=False), rows, "rows")
    for i, row in enumerate(expected):
        for name, gradient in row.items():
            assert gradient.norm() > 0
            assert (found[name][i].view_as(gradient) - gradient).norm() <= 1e-5 * gradient.norm()


def labelled_batch():
    return {name: torch.arange(2, 10).reshape(1, 8) for name in ("input_ids", "labels")}


def test_a_measured_loss_leaves_the_weights_as_the_training_needs_them(tmp_path):
    """On a CPU that multiplies in bfloat16, bitsandbytes would repack them for good."""
    model = quantised(tmp_path, base_model(hidden_size=64, intermediate_size=128), FOUR_BITS, LINEARS).train()
    layers = [module for module in model.modules() if hasattr(module, PACKS_IN_EVAL_MODE)]
    assert layers, "bitsandbytes has another name for it now, or no longer does it"
    for layer in layers:
        setattr(layer, PACKS_IN_EVAL_MODE, True)
    with pytest.raises(KeyboardInterrupt), scoring_mode(model), torch.no_grad():
        model(**labelled_batch())
        raise KeyboardInterrupt
    assert all(getattr(layer, PACKS_IN_EVAL_MODE) for layer in layers)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


def test_gast_gradients_equal_the_reference(tmp_path, monkeypatch):
    def build(name, **lora):
        base = base_model(hidden_size=64, intermediate_size=128, vocab_size=gast_helpers.VOCABULARY)
        return quantised(tmp_path / "base", base, FOUR_BITS, LINEARS)

    monkeypatch.setattr(test_gast_exact, "build_model", build)
    test_gast_exact.check("llama", tmp_path / "out")
