"""Preference pairs of words, a tokenizer for them, and trainers of TRL for them."""

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast


WORDS = 60
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def word_tokenizer():
    """One token for each of `w0` ... `w59`."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(WORDS)}}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _words(start: int, count: int) -> str:
    return " ".join(f"w{(7 * start + j * j) % WORDS}" for j in range(count))


def preference_rows(size: int, first: int = 0) -> Dataset:
    """Pairs of different lengths; `chosen` and `rejected` share the prompt."""
    rows = [
        {
            "prompt": _words(i, 3 + i % 5),
            "chosen": " " + _words(i + 7, 2 + i % 7),
            "rejected": " " + _words(i + 13, 3 + i % 4),
        }
        for i in range(first, first + size)
    ]
    return Dataset.from_list(rows)


def preference_trainer(kind, folder, rows, callbacks=(), **arguments):
    """A `DPOTrainer` that adds the adapter (`"dpo"`) or gets it (`"dpo with an adapter"`), or a `RewardTrainer`."""
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    torch.manual_seed(0)
    shared = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    settings = shared | {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "no"} | arguments
    data = {"train_dataset": rows, "processing_class": word_tokenizer(), "callbacks": list(callbacks)}
    sizes = SIZES | {"vocab_size": WORDS + 4, "pad_token_id": 0}
    if kind == "reward":
        lora = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA)
        model = LlamaForSequenceClassification(LlamaConfig(num_labels=1, **sizes))
        return RewardTrainer(model=model, args=RewardConfig(**settings), peft_config=lora, **data)
    lora = LoraConfig(task_type="CAUSAL_LM", **LORA)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    if kind == "dpo":
        return DPOTrainer(model=model, args=DPOConfig(**settings), peft_config=lora, **data)
    return DPOTrainer(model=get_peft_model(model, lora), args=DPOConfig(**settings), **data)
