"""What a selection is worth on a real model: losses and accuracies, against baselines, with several seeds.

    python recipes/benchmarks/real_model.py --model MODEL --data DATA --output OUT
    python recipes/benchmarks/real_model.py --model MODEL --data DATA --output OUT --budgets 0.02 0.05 0.2 \
        --proxy_model SMALL_MODEL --gast
    python recipes/benchmarks/real_model.py --model MODEL --data DATA --output OUT --device cpu \
        --pool_rows 2000 --test_rows 300 --max_length 320 --seeds 0 1 --minutes 480

DATA holds `pool.jsonl` and, for every target, `target_NAME.jsonl` and `test_NAME.jsonl`: rows with `messages`, one
question and its answer; test rows also have `choices` (texts) and `answer` (index). Rows of the pool that are also
target or test rows are left out. Every arm trains a new LoRA on as many rows with the same settings; all targets are
scored in one pass over the pool, after a warm-up on 5 % of it, once for all budgets.

With `--proxy_model`, a smaller model with its own tokenizer also selects rows, for the same training. With `--gast`,
plain LoRA (`all`) and the modes of GAST are trained on random rows.

Every finished run is kept in OUT/runs, every warm-up in OUT/warmup_SEED and all scores in OUT/scores_SCORER_SEED
(those of the proxy in OUT/proxy_...), from which other selections can be made without scoring. A second start
continues: finished runs are skipped, and scoring resumes after the last saved batch. Arms, seeds and targets can be
added; any other setting must stay as it was. `--workers` runs several processes on one device, which a small model
does not keep busy; other processes may share OUT too, each with its own seeds.
OUT/results.json and OUT/results.md are rewritten after every run. With `--minutes`, runs that would not finish in
time are skipped, and named at the end.
"""

import argparse
import shlex
import sys
import time

import torch
import transformers
from real.arms import ARMS, PROXY_ARMS, UNTRAINED, WHOLE
from real.experiment import Experiment
from real.gast import gast_modes
from real.table import markdown


TARGETS = ["piqa", "arc_easy", "openbookqa"]


def parse(argv):
    """The options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    add_runs(parser)
    add_training(parser)
    options = parser.parse_args(argv)
    options.end = time.time() + 60 * options.minutes
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.tokens_per_batch = options.tokens_per_batch or (16384 if on_gpu else 4096)
    options.rows_at_once = options.rows_at_once or (options.batch_size if on_gpu else min(8, options.batch_size))
    if options.workers < 1:
        parser.error(f"--workers {options.workers} must be at least 1")
    if options.batch_size % options.rows_at_once:
        parser.error(f"--batch_size {options.batch_size} must be a multiple of --rows_at_once {options.rows_at_once}")
    if options.arms is None:
        options.arms = [UNTRAINED, *ARMS, *([WHOLE] if on_gpu else []), *(PROXY_ARMS if options.proxy_model else {})]
    if set(options.arms) & set(PROXY_ARMS) and not options.proxy_model:
        parser.error(f"--arms {' '.join(PROXY_ARMS)}: rows of a proxy need --proxy_model")
    if options.gast == []:
        options.gast = gast_modes()
    if options.gast_support is None:
        options.gast_support = options.targets[:1]
    if unknown := set(options.gast_support) - set(options.targets):
        parser.error(f"--gast_support {' '.join(sorted(unknown))}: choose from --targets {' '.join(options.targets)}")
    return options


def add_data(parser):
    parser.add_argument(
        "--model", required=True, help="folder of a causal model and its tokenizer with a chat template"
    )
    parser.add_argument("--data", required=True, help="folder with the pool, the targets and the test rows")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--pool_rows", type=int, help="random rows of the pool; default: all")
    parser.add_argument("--test_rows", type=int, help="random rows of each test set; default: all")
    parser.add_argument("--max_length", type=int, default=512, help="longer rows of pool and targets are left out")


def add_runs(parser):
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms",
        nargs="*",
        choices=[UNTRAINED, *ARMS, WHOLE, *PROXY_ARMS],
        help="default: all, on a CPU without the whole pool; those of the proxy with --proxy_model only",
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05], help="shares of the pool to train on")
    parser.add_argument("--proxy_model", help="folder of a smaller model with its tokenizer, which also selects rows")
    parser.add_argument(
        "--gast", nargs="*", choices=gast_modes(), help="also train with these modes of GAST; without a mode: with all"
    )
    parser.add_argument("--gast_rows", type=int, default=1000, help="random rows of the pool to train on with GAST")
    parser.add_argument("--gast_passes", type=int, default=3, help="passes over these rows")
    parser.add_argument("--gast_support", nargs="+", help="targets whose rows are support sets; default: the first")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the device: a small model needs several"
    )


def add_training(parser):
    parser.add_argument("--passes", type=int, default=3, help="passes over the selected or random rows")
    parser.add_argument("--whole_pool_passes", type=int, default=1, help="passes over the whole pool")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rows_at_once", type=int, help="rows of a batch in memory; default: all, on a CPU 8")
    parser.add_argument("--lora_target_modules", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--tokens_per_batch", type=int, help="of scoring and testing; default: 16384, on a CPU 4096")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16, on a CPU float32")
    parser.add_argument(
        "--attn_implementation",
        choices=["sdpa", "eager"],
        help="default: the model's own; on a CPU in bfloat16, a step with `eager` takes 0.7 times as long, and rounds more",
    )


def main(argv=None):
    """Run all that fits into the time limit; returns what is in `results.json`."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(arguments)
    transformers.logging.set_verbosity_error()
    try:
        report = Experiment(options, shlex.join(["real_model.py", *arguments])).run()
    except ValueError as error:
        sys.exit(f"real_model.py: error: {error}")
    print(markdown(report))
    return report


if __name__ == "__main__":
    main()
