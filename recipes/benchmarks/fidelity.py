"""Agreement of the cheaper scoring methods with exact scores: `sketch_dim`, `score_layers`, `scoring_cost` and bf16.

    python recipes/benchmarks/fidelity.py --model_name_or_path MODEL --adapter_name_or_path ADAPTER \
        --train_file pool.jsonl --target_file targets.jsonl --rows 3000 --sketch_dims 1344 5376 21504 --score_layers 1 2 3

Spearman's correlation of the scores (cosine in the subspace, plain cosine), share of the same rows in the top 5 %, and
processor time as a share of the exact scoring's, on random rows of the pool. All run in one process, in sequence.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import transformers

from hf_gist import GISTConfig, select
from hf_gist.data.preparation.run import tokenize
from hf_gist.data.provenance import RowSource
from hf_gist.data.reading.load import load_rows
from hf_gist.training.loading import load_adapter, load_base, load_tokenizer, padding_collator


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model_name_or_path", "adapter_name_or_path", "train_file", "target_file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=3000, help="random rows of the pool")
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--sketch_dims", type=int, nargs="*", default=[1344, 5376, 21504])
    parser.add_argument("--score_layers", type=int, nargs="*", default=[])
    parser.add_argument("--scoring_costs", type=float, nargs="*", default=[0.25])
    parser.add_argument("--bf16", action="store_true", help="also with bfloat16 autocast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def ranks(scores):
    return scores.argsort().argsort().double()


def spearman(a, b):
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def overlap(a, b):
    """Share of the top 5 % of `a` that is in the top 5 % of `b`."""
    top = max(1, len(a) // 20)
    first, second = (set(scores.topk(top).indices.tolist()) for scores in (a, b))
    return len(first & second) / top


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer, _ = load_tokenizer(options.model_name_or_path, None, False)
    pool = load_rows(RowSource(options.train_file), "train_file")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    pool = tokenize(pool.select(order[: options.rows].tolist()), tokenizer, options.max_length, "train_file")
    targets = load_rows(RowSource(options.target_file), "target_file")
    targets = tokenize(targets, tokenizer, options.max_length, "target_file")
    base = load_base(options.model_name_or_path, None, "float32", False)
    model = load_adapter(base, options.adapter_name_or_path)
    variants = {"exact": {}}
    variants |= {f"sketch_dim={dim}": {"sketch_dim": dim} for dim in options.sketch_dims}
    variants |= {f"score_layers={n}": {"score_layers": n} for n in options.score_layers}
    variants |= {f"scoring_cost={cost}": {"scoring_cost": cost} for cost in options.scoring_costs}
    variants |= {"bfloat16": {"scoring_dtype": "bfloat16"}} if options.bf16 else {}
    results = []
    exact = None
    for name, change in variants.items():
        start = time.process_time()
        config = GISTConfig(budget=0.05, **change)
        found = select(model, pool, targets, config, data_collator=padding_collator(tokenizer), progress=False)
        seconds = time.process_time() - start
        values = found.manifest["memory_plan"]["values"]
        scores = {"subspace_cosine": found.scores, "cosine": found.reselect(score="cosine").scores}
        exact = exact or (scores, seconds, values)
        kept = torch.isfinite(found.scores)
        results.append(
            {
                "variant": name,
                "gradient_values": values,
                "smaller": exact[2] / values,
                "spearman": {name: spearman(exact[0][name][kept], own[kept]) for name, own in scores.items()},
                "top_overlap": {name: overlap(exact[0][name], own) for name, own in scores.items()},
                "time": seconds / exact[1],
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(
        "| scoring | gradient values | reduction factor | Spearman (subspace, plain) | same top 5 % | processor time |"
    )
    print("|---|---|---|---|---|---|")
    for row in results:
        agreement = ", ".join(f"{value:.4f}" for value in row["spearman"].values())
        same = ", ".join(f"{value:.1%}" for value in row["top_overlap"].values())
        print(
            f"| {row['variant']} | {row['gradient_values']:,} | {row['smaller']:.1f} | {agreement} | {same} | "
            f"{row['time']:.2f} |"
        )
    if options.output:
        Path(options.output).write_text(json.dumps({"settings": vars(options), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
