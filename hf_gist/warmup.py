"""The model of `hf-gist select`: a trained adapter, or a fresh LoRA that takes its own warm-up first."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_gist.baselines import AdamCheckpoint, adam_checkpoint
from hf_gist.config import GISTConfig
from hf_gist.disk import naming
from hf_gist.rows import keep_columns, signature_columns


@dataclass(frozen=True)
class WarmupSettings:
    """LoRA and training values of the warm-up; each is a flag of `hf-gist select`.

    Args:
        lora_r (`int`): LoRA rank (paper: 128).
        lora_alpha (`int`): LoRA alpha (paper: 512; the ratio to the rank is kept here).
        lora_dropout (`float`): LoRA dropout (paper: 0.1).
        lora_target_modules (`str`): comma-separated module names, or `all-linear` (paper: q, k, v and o projections).
        learning_rate (`float`): peak learning rate (paper: 2e-5 at rank 128).
        per_device_train_batch_size (`int`): batch size (paper: 32).
        less_checkpoints (`int`): evenly spaced moments of the warm-up that `scorer="less"` scores at, a pass each (LESS: 4).
    """

    lora_r: int = 16
    lora_alpha: int = 64
    lora_dropout: float = 0.1
    lora_target_modules: str = "q_proj,k_proj,v_proj,o_proj"
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 32
    less_checkpoints: int = 4


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> tuple[PreTrainedTokenizerBase, int]:
    """The model's tokenizer, padding on the right with its end-of-text token if it has no padding token.

    Returns:
        `tuple[PreTrainedTokenizerBase, int]`: the tokenizer, and the longest row it says the model takes.
    """
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    limit = tokenizer.model_max_length
    # Rows are cut after tokenising; until then a long one is no reason for a warning.
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    return tokenizer, limit


def padding_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Pads `input_ids` and `labels`; what the warm-up trains with and what scoring uses."""
    return DataCollatorForSeq2Seq(tokenizer, padding=True)


def load_base(name: str, revision: str | None, dtype: str, trust_remote_code: bool) -> torch.nn.Module:
    """The base model, on an accelerator where there is one."""
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return model.to("cuda") if torch.cuda.is_available() else model


def positions(model: torch.nn.Module) -> int:
    """The longest row that the model has positions for."""
    config = model.config
    return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or sys.maxsize


def load_adapter(base: torch.nn.Module, adapter: str) -> PeftModel:
    """A trained LoRA adapter on the base model, ready for gradients."""
    return PeftModel.from_pretrained(base, adapter, is_trainable=True)


def fresh_lora(base: torch.nn.Module, settings: WarmupSettings, seed: int) -> PeftModel:
    """A new LoRA on the base model; `B` is zero until the warm-up."""
    torch.manual_seed(seed)
    modules: Any = settings.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
    )
    return get_peft_model(base, config)


class CheckpointRecorder(TrainerCallback):
    """Keeps what LESS needs from a warm-up: a few moments of it, weighted by the mean learning rate up to each.

    Args:
        model (`PeftModel`): the model in training.
        count (`int`): evenly spaced moments, the last one at the end.
    """

    def __init__(self, model: PeftModel, count: int) -> None:
        self.model, self.count = model, count
        self.checkpoints: list[AdamCheckpoint] = []
        self._rates: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the learning rate."""
        self._rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep a moment when one is due."""
        due = [math.ceil(state.max_steps * (i + 1) / self.count) for i in range(self.count)]
        if state.global_step in due:
            rate = sum(self._rates) / len(self._rates)
            self.checkpoints.append(adam_checkpoint(self.model, kwargs["optimizer"], rate, copy_weights=True))
            self._rates.clear()


def warmup_rows(
    config: GISTConfig, settings: WarmupSettings, size: int, barred: torch.Tensor | None = None
) -> list[int]:
    """The random rows of a pool that the warm-up trains on.

    Args:
        config (`GISTConfig`): `warmup_ratio` or `warmup_steps`, and the seed.
        settings (`WarmupSettings`): batch size.
        size (`int`): rows of the pool.
        barred (`Tensor`, *optional*): `[N]` bool, rows that are not to be trained on.

    Raises:
        ValueError: if there are not enough rows for `warmup_steps`, or none.
    """
    batch = settings.per_device_train_batch_size
    rows = math.ceil(config.warmup_ratio * size) if config.warmup_steps is None else config.warmup_steps * batch
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(size, generator=generator)
    if barred is not None:
        order = order[~barred[order]]
    if not len(order):
        raise ValueError("Every row of the pool is a target or evaluation row too; nothing is left to train on.")
    # the last batch may be a smaller one
    if rows >= len(order) + batch:
        raise ValueError(
            f"`warmup_steps={config.warmup_steps}` takes {rows} rows in batches of {batch}, and the pool has {len(order)} "
            "to train on; lower it."
        )
    return order[:rows].tolist()


def warm_up(
    model: PeftModel,
    pool: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: GISTConfig,
    settings: WarmupSettings,
    folder: Path,
    sample: list[int],
) -> list[AdamCheckpoint]:
    """Train one epoch on a random share of the pool (paper GIST: 5 %), and save the adapter into `folder`.

    Args:
        model (`PeftModel`): a fresh LoRA; it is trained in place.
        pool (`Dataset`): tokenised candidates.
        tokenizer (`PreTrainedTokenizerBase`): for padding.
        config (`GISTConfig`): `warmup_ratio` or `warmup_steps`, the seed, and whether `scorer="less"` needs checkpoints.
        settings (`WarmupSettings`): learning rate and batch size.
        folder (`Path`): where the adapter is written.
        sample (`list[int]`): the rows of the pool that it trains on, see [`warmup_rows`].

    Returns:
        `list[AdamCheckpoint]`: for `scorer="less"`, its checkpoints.
    """
    batch = settings.per_device_train_batch_size
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        num_train_epochs=1,
        logging_steps=max(1, len(sample) // batch // 5),
        save_strategy="no",
        report_to=[],
        seed=config.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    recorder = CheckpointRecorder(model, settings.less_checkpoints)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=keep_columns(pool, signature_columns(model)).select(sample),
        data_collator=padding_collator(tokenizer),
        callbacks=[recorder] if config.scorer == "less" else [],
    ).train()
    with naming(folder):
        model.save_pretrained(folder)
    return recorder.checkpoints
