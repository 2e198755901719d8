"""Flags, LoRA and settings file that `frontier.py` and `while_training.py` share."""

import argparse
from pathlib import Path
from typing import Any

from hf_gist.config.warmup import WarmupSettings
from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.utils.disk import as_json, read_json, write_json


RUNS = "runs"


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser with the flags for model, data, seeds and training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal model with a chat template")
    parser.add_argument("--pool", required=True, help="file with the pool")
    parser.add_argument("--target", required=True, nargs="+", help="NAME=TARGET.jsonl:TEST.jsonl")
    parser.add_argument("--without", nargs="+", default=[], help="NAME=SOURCE: once more, from a pool without SOURCE")
    parser.add_argument("--output", required=True, help="folder for runs and tables")
    parser.add_argument("--pool_rows", type=int, help="random rows of the pool; default: all")
    parser.add_argument("--test_rows", type=int, help="random rows of each test file; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--passes", type=int, default=3, help="passes over the selected rows")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lora_target_modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--max_length", type=int, default=512, help="longer rows are cut to so many tokens")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run begins later")
    return parser


def lora_of(options: argparse.Namespace) -> WarmupSettings:
    """LoRA, learning rate and batch size of every run."""
    return WarmupSettings(
        lora_alpha=32,
        lora_dropout=0.0,
        lora_target_modules=options.lora_target_modules,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
    )


def keep_settings(file: Path, settings: dict[str, Any]) -> None:
    """Write what all runs of a folder share, and make the folder of the runs.

    Raises:
        ValueError: if the folder has runs with other settings or rows, naming them.
    """
    settings = as_json(settings)
    if file.exists():
        refuse_other_settings(read_json(file), settings, file.parent)
    (file.parent / RUNS).mkdir(parents=True, exist_ok=True)
    write_json(file, settings)
