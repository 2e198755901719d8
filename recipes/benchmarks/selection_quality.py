"""Does training on a GIST selection beat training on as many random rows? Several seeds, same steps, test loss.

    python recipes/benchmarks/selection_quality.py --model_name_or_path MODEL --train_file pool.jsonl \
        --test_file test.jsonl --scores_dir DIR --output_file quality.json

`DIR` is the output folder of `hf-gist select` on the same pool. Each seed trains a fresh LoRA on the selected rows, and
one on random rows, with the same number of rows and steps, and reports the mean token loss per test row.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from datasets import Dataset
from losses import mean_loss
from transformers import Trainer, TrainingArguments

from hf_gist import Selection
from hf_gist.data import load_rows, tokenize
from hf_gist.warmup import WarmupSettings, fresh_lora, load_base, load_tokenizer, padding_collator


def train(base_name: str, tokenizer, rows: Dataset, seed: int, options: argparse.Namespace) -> torch.nn.Module:
    """A fresh LoRA trained on `rows`."""
    settings = WarmupSettings(lora_target_modules=options.lora_target_modules)
    model = fresh_lora(load_base(base_name, None, "auto", False), settings, seed)
    arguments = TrainingArguments(
        output_dir=str(Path(options.output_file).with_suffix("")),
        per_device_train_batch_size=options.per_device_train_batch_size,
        num_train_epochs=options.num_train_epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        seed=seed,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to=[],
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=padding_collator(tokenizer)).train()
    return model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model_name_or_path", "train_file", "test_file", "scores_dir", "output_file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", default=["max"])
    parser.add_argument("--oracle_source", help="also train on random rows of this source")
    parser.add_argument("--lora_target_modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--per_device_train_batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=512)
    return parser.parse_args()


def subsets(selection: Selection, options: argparse.Namespace, seed: int) -> dict[str, list[int]]:
    """Row numbers of each method, all of the same size."""
    size, pool = int(options.budget * len(selection.scores)), len(selection.scores)
    generator = torch.Generator().manual_seed(1000 + seed)
    chosen = {"random": torch.randperm(pool, generator=generator)[:size].tolist()}
    if options.oracle_source:
        own = [i for i, name in enumerate(selection.measurements.sources) if name == options.oracle_source]
        chosen["random rows of the target's source"] = [
            own[i] for i in torch.randperm(len(own), generator=generator)[:size].tolist()
        ]
    for strategy in options.strategies:
        chosen[f"gist {strategy}"] = selection.reselect(budget=options.budget, strategy=strategy).indices
    return chosen


def main() -> None:
    options = parse()
    tokenizer, _ = load_tokenizer(options.model_name_or_path, None, False)
    pool = load_rows(options.train_file, None, "train", "train_file")
    pool = tokenize(pool, tokenizer, options.max_length, "train_file").select_columns(["input_ids", "labels"])
    test = tokenize(
        load_rows(options.test_file, None, "train", "test_file"), tokenizer, options.max_length, "test_file"
    )
    test = test.select_columns(["input_ids", "labels"])
    selection, collator = Selection.load(options.scores_dir), padding_collator(tokenizer)
    base = load_base(options.model_name_or_path, None, "auto", False)
    losses: dict[str, list[float]] = {"untrained": [mean_loss(base, test, collator)]}
    start = time.perf_counter()
    for seed in options.seeds:
        for name, indices in subsets(selection, options, seed).items():
            model = train(options.model_name_or_path, tokenizer, pool.select(indices), seed, options)
            losses.setdefault(name, []).append(mean_loss(model, test, collator))
            Path(options.output_file).write_text(json.dumps({"options": vars(options), "losses": losses}, indent=2))
    print("| trained on | " + " | ".join(f"seed {seed}" for seed in options.seeds) + " | mean |")
    print("|---|" + "---|" * (len(options.seeds) + 1))
    for name, values in losses.items():
        cells = [f"{value:.3f}" for value in values] + [""] * (len(options.seeds) - len(values))
        print(f"| {name} | " + " | ".join(cells) + f" | {statistics.mean(values):.3f} |")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
