"""The report on a comparison: which method is best on each test set, and what each cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyarrow import parquet

from hf_gist.commands.compare.arms import ARMS, RANDOM, UNTRAINED
from hf_gist.commands.compare.estimates import Column, Estimate, Runs, by_value, columns_of, estimate, of_method
from hf_gist.commands.compare.files import POOL_TOKENS, RESULTS, SETTINGS, read_runs
from hf_gist.commands.compare.printing import HEADER, NOTE, cells
from hf_gist.commands.compare.table import mean_cost
from hf_gist.commands.compare.verdicts import Verdict
from hf_gist.report.draw import Dots
from hf_gist.report.page import write_page
from hf_gist.report.parts import Content, Opening, Plot, Section, Table
from hf_gist.report.wording import count, plural, short
from hf_gist.utils.disk import read, read_json


HEADINGS = ("What was compared", "Did the target get better?", "Cost")
MARGIN = 0.15
"""Space beside the dots of the trained methods, as a share of their range."""


def is_comparison(folder: Path) -> bool:
    """Whether a folder is the output folder of `hf-gist compare`."""
    return (folder / SETTINGS).is_file()


def write_comparison(folder: Path, output_file: str | None = None) -> Path:
    """Write the page on a comparison and its figures.

    Args:
        folder (`Path`): output folder of `hf-gist compare`.
        output_file (`str`, *optional*): where to write the page; by default `report.html` in `folder`.

    Raises:
        ValueError: if no method was trained yet, or a file is damaged.
    """
    return write_page(content_of(folder), folder, output_file)


def content_of(folder: Path) -> Content:
    """The content of the page.

    Args:
        folder (`Path`): output folder of `hf-gist compare`.

    Raises:
        ValueError: if no method was trained yet, or a file is damaged.
    """
    runs = read_runs(folder)
    path = folder / RESULTS
    if all(run["method"] == UNTRAINED for run in runs) or not path.is_file():
        raise ValueError(f"`{folder}`: no method has been trained yet. Run the same `hf-gist compare` command again.")
    table = read(path, lambda name: parquet.read_table(name).to_pylist())
    if POOL_TOKENS not in table[0]:
        raise ValueError(
            f"{path} has no column `{POOL_TOKENS}`: an earlier version wrote it. Run the same `hf-gist compare` command "
            "again; finished runs are kept."
        )
    pool_tokens = int(table[0][POOL_TOKENS])
    columns = columns_of(runs)
    sections = [_section(number, runs, column, pool_tokens) for number, column in enumerate(columns)]
    sections.append(_settings(read_json(folder / SETTINGS)))
    return Content(_opening(runs, columns[0], pool_tokens), [(sections, folder)], title="Comparison of selections")


def _opening(runs: Runs, column: Column, pool_tokens: int) -> Opening:
    verdict = Verdict(runs, column)
    seeds = {run["seed"] for run in runs if run["method"] != UNTRAINED}
    selecting = [run for run in runs if run["method"] in verdict.trained]
    most = max(run["rows"] for run in selecting)
    least = min(run["rows"] for run in selecting)
    rows = f"{count(least)} rows" if least == most else f"{count(least)} to {count(most)} rows"
    compared = (
        f"{plural(len(verdict.trained), 'way')} to select training rows, each with {plural(len(seeds), 'seed')}: the "
        f"model was trained on {rows} and tested on {short(column.test)}."
    )
    named = [method for method in dict.fromkeys([verdict.best, RANDOM]) if method in verdict.trained]
    known = {method: mean_cost(of_method(runs, method), pool_tokens) for method in named}
    cost = " and ".join(f"{value:.2f} with {_title(method)}" for method, value in known.items())
    return Opening(
        compared,
        verdict.headline(),
        f"In epochs of training on the whole pool, selecting and training cost {cost}.",
        HEADINGS,
    )


def _title(method: str) -> str:
    return short(ARMS[method].title, 80)


def _section(number: int, runs: Runs, column: Column, pool_tokens: int) -> Section:
    """One measure of one test set."""
    methods = by_value(runs, column)
    found = {method: estimate(of_method(runs, method), column) for method in methods}
    title = short(column.title, 80)
    rows = [[_title(method), method, *cells(runs, method, column, pool_tokens)] for method in methods]
    dots = Dots(
        methods,
        [found[method].mean for method in methods],
        [found[method].noise or 0.0 for method in methods],
        title,
        [{UNTRAINED: "line", RANDOM: "pool"}.get(method, "kept") for method in methods],
        _limits([estimates for method, estimates in found.items() if method != UNTRAINED]),
    )
    verdict = Verdict(runs, column)
    table = Table(title, rows, ["trained on", "method", *HEADER], NOTE)
    plot = Plot(title, verdict.numbers(), dots, table, 0.9 + 0.3 * len(methods))
    return Section(f"result-{number}", f"Result: {title}", text=[verdict.text()], plots={f"result-{number}": plot})


def _limits(trained: Sequence[Estimate]) -> tuple[float, float] | None:
    """Limits of the axis that show the trained methods; the untrained model may be far away from all of them."""
    ends = [one.mean + sign * (one.noise or 0.0) for one in trained for sign in (-1, 1) if math.isfinite(one.mean)]
    if not ends or min(ends) == max(ends):
        return None
    space = MARGIN * (max(ends) - min(ends))
    return min(ends) - space, max(ends) + space


def _settings(settings: dict[str, Any]) -> Section:
    rows = [[short(name), short(str(value), 200)] for name, value in settings.items() if value is not None]
    return Section("settings", "Settings", folded=[Table("All settings that are not empty", rows)])
