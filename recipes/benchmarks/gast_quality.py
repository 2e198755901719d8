"""Test losses of plain LoRA, the modes of GAST, and IST, with several seeds and the same steps.

    python recipes/benchmarks/gast_quality.py --model_name_or_path MODEL --train_file pool.jsonl \
        --test arc=test_arc.jsonl gsm8k=test_gsm8k.jsonl --target arc=target_arc.jsonl gsm8k=target_gsm8k.jsonl \
        --output gast_quality.json

All runs with the same seed start from the same adapter and have the same batches. `--target NAME=FILE` adds runs whose
support set is that file: `stochastic`, `positive`, and whole samples drawn, ranked, and chosen greedily (GREATS). The loss is the mean over test rows of each row's mean token loss.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PrinterCallback, TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.data.preparation.run import tokenize
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import load_rows
from hf_gist.gradients.collect import mean_loss
from hf_gist.trainer import GASTTrainer
from hf_gist.training.loading import load_tokenizer, padding_collator


sys.path.insert(0, str(Path(__file__).parent.parent / "baselines"))
from ist import ISTCallback  # noqa: E402


IST = "IST, half of the layers"


def named_files(values):
    return dict(value.split("=", 1) for value in values or [])


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--test", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--target", nargs="*", metavar="NAME=FILE", help="support sets")
    parser.add_argument("--methods", nargs="+", help="methods of the table to run; default: all")
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--lora_rank", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--test_rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def train(options, collator, pool, config, support, seed, callbacks):
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(options.model_name_or_path),
        LoraConfig(
            task_type="CAUSAL_LM", r=options.lora_rank, lora_alpha=2 * options.lora_rank, lora_dropout=0.05,
            target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
        ),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate, lr_scheduler_type="cosine", warmup_steps=max(options.steps // 10, 1),
            seed=seed, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GASTTrainer(
            model=model, args=args, train_dataset=pool, data_collator=collator, gast_config=config,
            support_dataset=support, callbacks=callbacks,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


def methods(options, targets, seed):
    """Name to configuration and support set; `None` means the training set."""
    keep = {"keep": options.keep, "seed": seed}
    ranked = {"mode": "topk", "group_by": "model", **keep}
    result = {
        "plain LoRA": (GASTConfig(mode="all"), None),
        "random": (GASTConfig(mode="random", **keep), None),
        "stochastic": (GASTConfig(mode="stochastic", **keep), None),
        "topk": (GASTConfig(mode="topk", **keep), None),
        "positive": (GASTConfig(mode="positive", seed=seed), None),
        "stochastic, support batch": (GASTConfig(support="batch", **keep), None),
        "positive, support batch": (GASTConfig(mode="positive", support="batch", seed=seed), None),
        "stochastic, whole samples": (GASTConfig(group_by="model", **keep), None),
        IST: (GASTConfig(mode="all"), None),
    }
    for name, rows in targets.items():
        result[f"stochastic, support {name}"] = (GASTConfig(mode="stochastic", **keep), rows)
        result[f"positive, support {name}"] = (GASTConfig(mode="positive", seed=seed), rows)
        result[f"stochastic, whole samples, support {name}"] = (GASTConfig(group_by="model", **keep), rows)
        result[f"topk, whole samples, support {name}"] = (GASTConfig(**ranked), rows)
        result[f"greedy, whole samples, support {name}"] = (GASTConfig(redundancy=True, **ranked), rows)
    wanted = options.methods or list(result)
    if unknown := set(wanted) - set(result):
        raise SystemExit(f"--methods {', '.join(sorted(unknown))}: choose from {', '.join(result)}")
    return {name: result[name] for name in wanted}


def table(results, tests, seeds):
    header = " | ".join(f"{name} test loss (mean ± sd; seeds {', '.join(map(str, seeds))})" for name in tests)
    lines = [f"| method | {header} |", "| --- |" + " --- |" * len(tests)]
    for method, by_test in results.items():
        cells = []
        for name in tests:
            values = by_test[name]
            cell = f"{statistics.mean(values):.4f}"
            if len(values) > 1:
                cell += f" ± {statistics.stdev(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})"
            cells.append(cell)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer, _ = load_tokenizer(options.model_name_or_path, None, False)
    collator = padding_collator(tokenizer)

    def tokens(file, name):
        rows = tokenize(load_rows(RowSource(file), name), tokenizer, options.max_length, name)
        # a row truncated before its answer has no label
        return rows.filter(lambda row: any(label != -100 for label in row["labels"][1:])).select_columns(
            ["input_ids", "labels"]
        )

    pool = tokens(options.train_file, "train_file")
    tests = {name: tokens(file, "test") for name, file in named_files(options.test).items()}
    tests = {name: rows.select(range(min(len(rows), options.test_rows))) for name, rows in tests.items()}
    targets = {name: tokens(file, "target") for name, file in named_files(options.target).items()}
    base = AutoModelForCausalLM.from_pretrained(options.model_name_or_path)
    results = {"not trained": {name: [mean_loss(base, rows, collator)] for name, rows in tests.items()}}
    start = time.perf_counter()
    for seed in options.seeds:
        for method, (config, support) in methods(options, targets, seed).items():
            half = base.config.num_hidden_layers // 2
            ist = [ISTCallback(pool.select(range(16)), collator, half, seed=seed)] if method == IST else []
            model = train(options, collator, pool, config, support, seed, ist)
            by_test = results.setdefault(method, {name: [] for name in tests})
            for name, rows in tests.items():
                by_test[name].append(mean_loss(model, rows, collator))
            print(f"{time.perf_counter() - start:6.0f} s  seed {seed}  {method}", flush=True)
    print(table(results, tests, options.seeds))
    if options.output:
        Path(options.output).write_text(json.dumps({"settings": vars(options), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
