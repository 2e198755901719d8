"""Models with random weights and rows of random tokens, made on the device."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int


LLAMA_7B = Shape(4096, 32, 32, 11008, 32000)
SMALL = Shape(64, 3, 4, 128, 128)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PAPER_GAST = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


def base_model(shape: Shape, device: str, dtype: torch.dtype, seed: int = 0) -> LlamaForCausalLM:
    """A model with random weights, made on the device in its dtype."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.to(device)


def adapted(
    base: LlamaForCausalLM, rank: int, modules: tuple[str, ...], dropout: float = 0.0, seed: int = 0
) -> PeftModel:
    """A base model with a new adapter whose `B` matrices are not zero, so that every matrix has a gradient."""
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(modules), task_type="CAUSAL_LM"
    )
    torch.manual_seed(seed)
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def tiny_model(device: str, *, rank: int = 4, dropout: float = 0.0, seed: int = 0, shape: Shape = SMALL) -> PeftModel:
    """A small fp32 model for checks, with equal weights on every device."""
    return adapted(base_model(shape, "cpu", torch.float32, seed), rank, PAPER_GAST, dropout, seed).to(device)


def random_rows(count: int, low: int, high: int, vocabulary: int, seed: int = 0) -> Dataset:
    """Rows of `low` to `high` random tokens, the second half of each labelled."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return rows_of_lengths(lengths, vocabulary, generator)


def workload(median: int, tokens: int, vocabulary: int, seed: int = 0) -> Dataset:
    """Rows with log-normal lengths around a median, `tokens` tokens in all."""
    generator = torch.Generator().manual_seed(seed)
    count = max(8, tokens // median)
    lengths = (median * torch.exp(0.4 * torch.randn(count, generator=generator))).long().clamp(8, 4096)
    return rows_of_lengths(lengths.tolist(), vocabulary, generator)


def rows_of_lengths(lengths: list[int], vocabulary: int, generator: torch.Generator) -> Dataset:
    """Rows of random tokens, the second half of each labelled."""
    rows = []
    for length in lengths:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return Dataset.from_list(rows)


def pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([list(row[name]) + [value] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": padded("input_ids", 0), "attention_mask": mask, "labels": padded("labels", -100)}
