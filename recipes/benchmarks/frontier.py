r"""Loss after training against the cost of selecting, for each way to shorten the pool, and which setting to recommend.

    python recipes/benchmarks/frontier.py --model MODEL --pool pool.jsonl --output OUT \
        --target gsm8k=target_gsm8k.jsonl:test_gsm8k.jsonl arc=target_arc.jsonl:test_arc.jsonl \
        --without gsm8k=gsm8k --pool_rows 4000 --test_rows 150

Files hold rows with `messages`, or another format that `hf-gist select` takes; the pool has a column `source`.
`--without NAME=SOURCE` selects for the target NAME once more, from a pool without that source. With every seed all rows
are scored once, for all targets together; every arm then chooses from these scores as if only the rows that it pays for
had been scored. Every run is a file in OUT/runs, and is kept: the same command continues after an interruption, seed by
seed and arm by arm. OUT/frontier.md is rewritten after every arm, OUT/frontier.png after every seed. After `--minutes` no
further run begins, and the missing ones are named; `--minutes 0` rewrites table and figure.

`--arms` takes names such as random, bm25, paper, cosine@0.25 or cosine_random@0.25: a rule, and after `@` its
`scoring_cost`, one of `--scoring_costs`.
"""

import sys
from pathlib import Path

import transformers
from frontier_parts.arms import arms
from frontier_parts.data import read_data
from frontier_parts.figure import save_figure
from frontier_parts.flags import parser_of
from frontier_parts.results import Results
from frontier_parts.runs import Experiment
from frontier_parts.table import markdown

from hf_gist.commands.preparing import Preparer
from hf_gist.training.loading import load_base, load_tokenizer, positions
from hf_gist.utils.disk import write


TABLE = "frontier.md"
FIGURE = "frontier.png"


def parse(argv):
    parser = parser_of(__doc__)
    parser.add_argument("--budget", type=float, default=0.05, help="share of the pool to train on")
    parser.add_argument("--scoring_costs", type=float, nargs="+", default=[0.1, 0.25, 0.5])
    parser.add_argument("--arms", nargs="+", help="default: all but the mixtures at a cost")
    parser.add_argument("--batch_size", type=int, default=16)
    return parser.parse_args(argv)


def chosen_arms(names, costs):
    """The arms to run, in the order of the table.

    Raises:
        ValueError: naming an arm that does not exist.
    """
    known = arms(costs)
    if names is None:
        return {name: arm for name, arm in known.items() if arm.usual}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"`--arms {' '.join(unknown)}`: no such arm; there are {', '.join(known)}.")
    return {name: known[name] for name in names}


def write_table(experiment):
    """Write the tables of all finished runs; returns the Markdown."""
    data = experiment.data
    options = experiment.options
    families = {variant.name: variant.target for variant in data.variants}
    tests = ", ".join(f"{name} {len(rows)}" for name, rows in data.tests.items())
    settings = (
        f"Pool of {len(data.pool):,} rows, {100 * options.budget:g} % selected, {options.passes} passes over them, batches "
        f"of {options.batch_size}, learning rate {options.learning_rate:g}; test rows: {tests}."
    )
    results = Results(experiment.finished())
    text = markdown(results, experiment.arms, families, experiment.missing(), settings)
    write(experiment.folder / TABLE, lambda name: Path(name).write_text(text, encoding="utf-8"))
    return text


def write_figure(experiment):
    """Write the figure of all finished runs, if there are any."""
    results = Results(experiment.finished())
    if results.targets:
        save_figure(results, experiment.arms, experiment.folder / FIGURE)


def run(options):
    """Everything that is missing in the output folder; returns the results."""
    chosen = chosen_arms(options.arms, options.scoring_costs)
    tokenizer, limit = load_tokenizer(options.model, None, False)
    base = load_base(options.model, None, "float32", False).eval()
    preparer = Preparer(tokenizer, min(options.max_length, limit, positions(base)))
    experiment = Experiment(options, read_data(options, preparer), base, tokenizer, chosen)
    last = list(chosen)[-1]
    for arm in experiment.run():
        write_table(experiment)
        if arm == last:
            write_figure(experiment)
    write_figure(experiment)
    print(write_table(experiment))
    return Results(experiment.finished())


def main(argv=None):
    """Entry point; returns the results."""
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    try:
        return run(options)
    except ValueError as error:
        sys.exit(f"frontier.py: error: {error}")


if __name__ == "__main__":
    main()
