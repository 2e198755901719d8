"""The files of a comparison: one for each finished run, and the results of all of them."""

from contextlib import suppress
from pathlib import Path

import pyarrow
from pyarrow import parquet

from hf_gist.commands.compare.arms import ARMS, UNTRAINED
from hf_gist.commands.compare.estimates import OUTCOMES, Runs
from hf_gist.commands.compare.figure import save_plot
from hf_gist.commands.compare.table import break_even, markdown
from hf_gist.commands.compare.verdicts import verdicts
from hf_gist.utils.disk import read_json, write


RUNS_FOLDER = "runs"
SETTINGS = "compare.json"
RESULTS = "compare.parquet"
TABLE = "compare.md"
PLOT = "compare.png"
POOL_TOKENS = "pool_tokens"
"""Column of the results: tokens of the whole pool, the unit of the costs."""


def run_file(folder: Path, method: str, seed: int) -> Path:
    """The file of one run: a finished run is kept, and several commands may write into one folder at the same time."""
    return folder / RUNS_FOLDER / (f"{method}.json" if method == UNTRAINED else f"{method}-seed{seed}.json")


def read_runs(folder: Path) -> Runs:
    """Every finished run, of this command or another, in the order of the methods and seeds."""
    runs = [read_json(path) for path in (folder / RUNS_FOLDER).glob("*.json")]
    return sorted(runs, key=lambda run: (list(ARMS).index(run["method"]), run["seed"]))


def write_results(pool_tokens: int, folder: Path) -> Runs:
    """Write the Parquet file, Markdown table and figure of all finished runs; returns the runs.

    The figure is left out if matplotlib is not installed.
    """
    runs = read_runs(folder)
    table = pyarrow.Table.from_pylist([run | {POOL_TOKENS: pool_tokens} for run in without_outcomes(runs)])
    write(folder / RESULTS, lambda name: parquet.write_table(table, name))
    said = "".join(f"- {verdict}\n" for verdict in verdicts(runs))
    text = "\n".join(part for part in (markdown(runs, pool_tokens), said, break_even(runs, pool_tokens)) if part)
    write(folder / TABLE, lambda name: Path(name).write_text(text, encoding="utf-8"))
    with suppress(ImportError):
        save_plot(runs, pool_tokens, folder / PLOT)
    return runs


def without_outcomes(runs: Runs) -> Runs:
    """The runs without the outcomes of single test rows, which are in the file of each run."""
    return [{name: value for name, value in run.items() if name != OUTCOMES} for run in runs]
