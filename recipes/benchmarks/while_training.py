r"""Selecting once, selecting again, choosing samples online, GAST and plain LoRA: which helps a target most?

    python recipes/benchmarks/while_training.py --model MODEL --pool pool.jsonl --output OUT --pool_rows 600 \
        --test_rows 100 --target gsm8k=target_gsm8k.jsonl:test_gsm8k.jsonl piqa=target_piqa.jsonl:test_piqa.jsonl

Files are those of `frontier.py`. Two tables for each target: every method trained on as many samples, and every method
with as many steps as the cost of selecting once (warm-up, scoring and training) pays for. Costs are operations, in
training passes over the pool; the target loss that the callback measures is not counted.

Every run is a file in OUT/runs, and is kept: the same command continues after an interruption. OUT/while_training.md is
rewritten after every run. After `--minutes` no further run begins; `--minutes 0` rewrites the tables.
"""

import argparse
import sys

import transformers
from frontier_parts.data import read_data
from while_training_parts.runs import Experiment

from hf_gist.commands.preparing import Preparer
from hf_gist.training.loading import load_base, load_tokenizer, positions


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a causal model with a chat template")
    parser.add_argument("--pool", required=True, help="file with the pool")
    parser.add_argument("--target", required=True, nargs="+", help="NAME=TARGET.jsonl:TEST.jsonl")
    parser.add_argument("--without", nargs="+", default=[], help="NAME=SOURCE: once more, from a pool without SOURCE")
    parser.add_argument("--output", required=True, help="folder for runs and tables")
    parser.add_argument("--pool_rows", type=int, help="random rows of the pool; default: all")
    parser.add_argument("--test_rows", type=int, help="random rows of each test file; default: all")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pool to select, and of the warm-up")
    parser.add_argument("--passes", type=int, default=3, help="passes over the selected rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=8, help="samples that are trained on in a step")
    parser.add_argument("--lora_target_modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--max_length", type=int, default=512, help="longer rows are cut to so many tokens")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no run begins later")
    return parser.parse_args(argv)


def main(argv=None):
    """Entry point; returns the Markdown of the tables."""
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    try:
        tokenizer, limit = load_tokenizer(options.model, None, False)
        base = load_base(options.model, None, "float32", False).eval()
        preparer = Preparer(tokenizer, min(options.max_length, limit, positions(base)))
        experiment = Experiment(options, read_data(options, preparer), base, tokenizer)
        experiment.run()
        text = experiment.write_tables()
    except ValueError as error:
        sys.exit(f"while_training.py: error: {error}")
    print(text)
    return text


if __name__ == "__main__":
    main()
