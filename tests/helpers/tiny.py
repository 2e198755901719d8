"""Tiny models from configs and small token datasets, for tests without a network."""

import random

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


VOCABULARY = 99
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 3,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, DECODER),
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, DECODER),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, DECODER | {"head_dim": 8}),
    "gemma": (GemmaForCausalLM, GemmaConfig, DECODER | {"head_dim": 8}),
    "bert": (BertForSequenceClassification, BertConfig, BERT),
    "t5": (T5ForConditionalGeneration, T5Config, T5),
}
ARCHITECTURES = list(MODELS)
TASKS = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
LINEARS = ["q_proj", "v_proj", "down_proj"]
TARGET_MODULES = {
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "bert": ["query", "value", "dense"],
    "t5": ["q", "v", "wi"],
}


def base_model(architecture: str = "llama", seed: int = 0, **overrides) -> transformers.PreTrainedModel:
    """A randomly initialised model of a few thousand parameters; `overrides` are fields of its configuration."""
    torch.manual_seed(seed)
    model_class, config_class, sizes = MODELS[architecture]
    return model_class(config_class(**{**sizes, **overrides}))


def lora_model(architecture: str = "llama", seed: int = 0, base: dict | None = None, **lora):
    """A peft model whose LoRA matrices are all away from zero; `base` goes to the base model, `lora` to `LoraConfig`."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": TARGET_MODULES.get(architecture, LINEARS)} | lora
    config = LoraConfig(task_type=TASKS.get(architecture, "CAUSAL_LM"), fan_in_fan_out=architecture == "gpt2", **lora)
    model = get_peft_model(base_model(architecture, seed, **(base or {})), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def token_rows(size: int, seed: int = 0, architecture: str = "llama", low: int = 5, high: int = 15) -> list[dict]:
    """Rows of random tokens, with a masked prompt (a class for BERT)."""
    rng = random.Random(seed)
    rows = []
    for _ in range(size):
        ids = [rng.randint(3, VOCABULARY - 1) for _ in range(rng.randint(low, high))]
        cut = rng.randint(1, len(ids) - 2)
        if architecture == "bert":
            labels = rng.randint(0, 2)
        elif architecture == "t5":
            labels = ids[cut:]
        else:
            labels = [-100] * cut + ids[cut:]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def patterned_rows(size: int, seed: int = 0, families: int = 4) -> list[dict]:
    """Rows of several families with their own vocabulary, so that selection has something to find."""
    rng = random.Random(seed)
    rows = []
    for i in range(size):
        family = i % families
        start = 3 + family * (VOCABULARY - 3) // families
        ids = [rng.randint(start, start + 7) for _ in range(rng.randint(6, 12))]
        rows.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "source": f"family{family}"})
    return rows


def as_dataset(rows: list[dict]) -> Dataset:
    """The rows as a `datasets.Dataset`."""
    return Dataset.from_list(rows)


class PaddingCollator:
    """Pads `input_ids`, `attention_mask` and `labels` on one side; class labels are stacked."""

    def __init__(self, side: str = "right", label_side: str | None = None) -> None:
        self.side, self.label_side = side, label_side or side

    def _pad(self, sequences: list[list[int]], value: int, side: str) -> torch.Tensor:
        width = max(len(s) for s in sequences)
        fill = [[value] * (width - len(s)) for s in sequences]
        return torch.tensor([s + f if side == "right" else f + s for s, f in zip(sequences, fill, strict=True)])

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [list(row["input_ids"]) for row in rows]
        labels = [row["labels"] for row in rows]
        return {
            "input_ids": self._pad(ids, 0, self.side),
            "attention_mask": self._pad([[1] * len(s) for s in ids], 0, self.side),
            "labels": torch.tensor(labels)
            if isinstance(labels[0], int)
            else self._pad([list(s) for s in labels], -100, self.label_side),
        }


def sixteen_bit(model):
    """The base model in bfloat16 and the adapter in float32, as peft leaves them."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model
