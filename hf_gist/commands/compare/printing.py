"""The results of a comparison for the terminal: one table for each measure, by the names that `--methods` takes."""

from hf_gist.commands.compare.arms import RANDOM
from hf_gist.commands.compare.estimates import Column, Runs, by_value, columns_of, difference, estimate, of_method
from hf_gist.commands.compare.table import mean_cost, mean_of
from hf_gist.commands.compare.verdicts import verdicts
from hf_gist.utils.terminal import in_columns, wrapped


HEADER = ["mean", "± rows", "± seeds", "minus random", "better", "rows", "steps", "cost"]
NOTE = (
    "± rows: standard error over the test rows, of one run. ± seeds: standard deviation over the seeds. better: seeds in "
    "which the method was better than random rows. cost: selecting and training, in passes over the pool."
)


def cells(runs: Runs, method: str, column: Column, pool_tokens: int) -> list[str]:
    """The cells below [`HEADER`] of one method; empty where nothing is known.

    Args:
        runs (`Runs`): all runs.
        method (`str`): one of them.
        column (`Column`): measure and test set.
        pool_tokens (`int`): tokens of the whole pool.
    """
    own = of_method(runs, method)
    found = estimate(own, column)
    errors = ["" if error is None else f"{error:.4f}" for error in (found.row_error, found.spread)]
    against = None if method == RANDOM else difference(own, of_method(runs, RANDOM), column)
    compared = ["", ""]
    if against is not None:
        better = sum(column.sign * value > 0 for value in against.values)
        compared = [f"{against.mean:+.4f}", f"{better} of {len(against.values)}"]
    sizes = [f"{round(mean_of(own, name)):,}" for name in ("rows", "steps")]
    return [f"{found.mean:.4f}", *errors, *compared, *sizes, f"{mean_cost(own, pool_tokens):.2f}"]


def results(runs: Runs, pool_tokens: int) -> str:
    """A table for each measure of each test set, and the verdicts.

    Args:
        runs (`Runs`): all runs.
        pool_tokens (`int`): tokens of the whole pool.
    """
    tables = []
    for column in columns_of(runs):
        rows = [["method", *HEADER]]
        rows += [[method, *cells(runs, method, column, pool_tokens)] for method in by_value(runs, column)]
        tables.append(f"{wrapped(column.title)}\n{in_columns(rows)}")
    said = [wrapped(f"- {verdict}") for verdict in verdicts(runs)]
    return "\n\n".join([*tables, wrapped(NOTE), "\n".join(said)]).rstrip()
