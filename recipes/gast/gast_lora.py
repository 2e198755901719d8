"""Fine-tune a LoRA with GAST: in every step each layer learns from the samples that agree with a support set.

    accelerate launch recipes/gast/gast_lora.py --model_name_or_path MODEL --train_file train.jsonl \
        --support_file target.jsonl --output_dir out --per_device_train_batch_size 16 --learning_rate 1e-4 \
        --warmup_steps 100 --num_train_epochs 3 --logging_steps 10 --report_to none

Rows are JSON lines with `messages`, `prompt` and `completion`, or `text`; labels are on the answers. Without
`--support_file` the support samples come from the training set, as in the paper. All `TrainingArguments` are flags.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, HfArgumentParser, TrainingArguments

from hf_gist.config import GASTConfig, fraction_or_count
from hf_gist.data import load_rows, tokenize
from hf_gist.trainer import GASTTrainer
from hf_gist.warmup import load_tokenizer, padding_collator


@dataclass
class ScriptArguments:
    """What to train on, the adapter, and the main GAST settings."""

    model_name_or_path: str = field(metadata={"help": "A causal language model: a folder or a Hub id."})
    train_file: str = field(metadata={"help": "Training rows as JSON lines."})
    support_file: str | None = field(default=None, metadata={"help": "Support rows; by default the training rows."})
    max_length: int = field(default=256, metadata={"help": "Longer rows are cut."})
    lora_r: int = field(default=32, metadata={"help": "Rank."})
    lora_alpha: int = field(default=64, metadata={"help": "Alpha."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout."})
    lora_target_modules: str = field(
        default="q_proj,k_proj,v_proj,up_proj,down_proj", metadata={"help": "Adapted modules, comma-separated."}
    )
    gast_config: str | None = field(default=None, metadata={"help": "YAML file with GASTConfig fields; wins."})
    keep: str = field(default="0.5", metadata={"help": "Samples kept per layer: 0.5 is a fraction, 8 is a count."})
    mode: str = field(default="stochastic", metadata={"help": "stochastic, random, topk or all."})
    support: str = field(default="dataset", metadata={"help": "dataset, or momentum for no extra pass."})
    support_every: int = field(default=1, metadata={"help": "Optimizer steps per support gradient."})
    source_column: str | None = field(default=None, metadata={"help": "Column to report the selection by."})


def gast_config(script: ScriptArguments, seed: int) -> GASTConfig:
    if script.gast_config is not None:
        return GASTConfig.from_yaml(Path(script.gast_config).read_text(encoding="utf-8"))
    return GASTConfig(
        keep=fraction_or_count(script.keep), mode=script.mode, support=script.support, support_every=script.support_every,
        source_column=script.source_column, seed=seed,
    )  # fmt: skip


def main() -> None:
    script, args = HfArgumentParser((ScriptArguments, TrainingArguments)).parse_args_into_dataclasses()
    config = gast_config(script, args.seed)
    tokenizer, _ = load_tokenizer(script.model_name_or_path, None, False)
    with args.main_process_first(desc="tokenizing"):
        train_rows, support_rows = (
            tokenize(load_rows(file, None, "train", name), tokenizer, script.max_length, name) if file else None
            for name, file in (("train_file", script.train_file), ("support_file", script.support_file))
        )
    dtype = torch.bfloat16 if args.bf16 else "auto"
    base = AutoModelForCausalLM.from_pretrained(script.model_name_or_path, dtype=dtype)
    torch.manual_seed(args.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=script.lora_r, lora_alpha=script.lora_alpha, lora_dropout=script.lora_dropout,
        target_modules=script.lora_target_modules.split(","),
    )  # fmt: skip
    trainer = GASTTrainer(
        model=get_peft_model(base, lora), args=args, train_dataset=train_rows, support_dataset=support_rows,
        data_collator=padding_collator(tokenizer), gast_config=config,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(args.output_dir)
        settings = {"gast": config.to_dict(), "script": vars(script)}
        (Path(args.output_dir) / "gast_config.json").write_text(
            json.dumps(settings, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
