r"""Selecting once, selecting again, choosing samples online, GAST and plain LoRA: which helps a target most?

    python recipes/benchmarks/while_training.py --model MODEL --pool pool.jsonl --output OUT --pool_rows 600 \
        --test_rows 100 --target gsm8k=target_gsm8k.jsonl:test_gsm8k.jsonl piqa=target_piqa.jsonl:test_piqa.jsonl

Files are those of `frontier.py`. Two tables for each target: every method trained on as many samples, and every method
with as many steps as the cost of selecting once (warm-up, scoring and training) pays for. Costs are operations, in
training passes over the pool; the target loss that the callback measures is not counted.

Every run is a file in OUT/runs, and is kept: the same command continues after an interruption. OUT/while_training.md is
rewritten after every run. After `--minutes` no further run begins; `--minutes 0` rewrites the tables.
"""

import sys

import transformers
from frontier_parts.data import read_data
from frontier_parts.flags import parser_of
from while_training_parts.runs import Experiment

from hf_gist.commands.preparing import Preparer
from hf_gist.training.loading import load_base, load_tokenizer, positions


def parse(argv):
    parser = parser_of(__doc__)
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pool to select, and of the warm-up")
    parser.add_argument("--batch_size", type=int, default=8, help="samples that are trained on in a step")
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
