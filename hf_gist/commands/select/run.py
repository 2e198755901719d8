"""`hf-gist select`: flags and output."""

import argparse
import dataclasses
import warnings
from typing import Any

from hf_gist.commands.flags import GROUPS, SelectArguments, add_settings_flags, settings_of
from hf_gist.commands.select.dry_run import dry_run
from hf_gist.commands.select.earlier import remove_others, say_replaced
from hf_gist.commands.select.from_scores import select_from_scores
from hf_gist.commands.select.rows import write_rows
from hf_gist.commands.select.scoring import score
from hf_gist.commands.select.stream import select_from_stream
from hf_gist.commands.workspace import USAGE, check_source
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.ledger import CostLedger
from hf_gist.data.reading.origins import RawRows
from hf_gist.errors import NoEffectWarning
from hf_gist.gist.selection import Selection
from hf_gist.report import report_at_end, summary_line, summary_table
from hf_gist.training.tracking import selection_metrics
from hf_gist.utils.terminal import in_columns, named, named_path, say, say_wrapped, wrapped


NOT_WRITTEN = "no rows written: add --train_file or --dataset_name, the pool that was scored"


def add_select_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist select`."""
    parser.usage = f"hf-gist select {USAGE} [flags]"
    add_settings_flags(parser, GROUPS["select"])
    parser.add_argument(
        "--dry_run", action="store_true", help="Print a forecast of rows, memory and time; write nothing."
    )
    parser.add_argument(
        "--json", action="store_true", help="Print the result as JSON on stdout, everything else on stderr."
    )


def run_select(flags: argparse.Namespace) -> dict[str, Any]:
    """`hf-gist select`; returns what `--json` prints."""
    given, (arguments, warmup, config) = settings_of(flags)
    if arguments.streaming and arguments.from_scores is not None:
        raise ValueError(
            "`--from_scores` selects from saved scores, and `--streaming` scores a pool; give one of them."
        )
    if arguments.from_scores is None or arguments.output_dir is None:
        check_source(arguments)
    warn_of_warm_up(given)
    if flags.dry_run:
        return dry_run(arguments, warmup, config)
    if arguments.streaming:
        return select_from_stream(arguments, config)
    say_replaced(arguments.folder)
    if arguments.from_scores is None:
        rows = arguments.load_pool()
        return report_selection(score(arguments, warmup, config, rows), arguments, rows)
    rows = arguments.load_pool() if "train_file" in given or "dataset_name" in given else None
    selection, scored = select_from_scores(arguments, given, rows)
    return report_selection(selection, arguments, scored)


def warn_of_warm_up(given: dict[str, Any]) -> None:
    """Warn of settings of a warm-up where an adapter is given, which is scored with as it is.

    Args:
        given (`dict`): the settings that were given.

    Warns:
        NoEffectWarning: naming them.
    """
    names = {field.name for field in dataclasses.fields(WarmupSettings)} | {"warmup_ratio", "warmup_steps"}
    unused = sorted(names & set(given))
    if unused and given.get("adapter_name_or_path") is not None:
        warnings.warn(
            f"{', '.join(f'`--{name}`' for name in unused)}: no effect with `--adapter_name_or_path`, since a trained "
            "adapter has no warm-up. Leave one of them out.",
            NoEffectWarning,
            stacklevel=2,
        )


def report_selection(selection: Selection, arguments: SelectArguments, rows: RawRows | None) -> dict[str, Any]:
    """Write the selected rows and the report, and print the outcome; returns what `--json` prints.

    Args:
        selection (`Selection`): saved in the output folder.
        arguments (`SelectArguments`): output folder and format.
        rows (`RawRows`, *optional*): the pool; without it no rows are written.
    """
    say_wrapped(summary_line(selection))
    say(summary_table(selection))
    if selection.costs is not None:
        say(f"\n{cost_table(selection.costs)}")
    say(f"\n{named_path('artifacts', arguments.output_dir)}")
    result = selection_metrics(selection) | {"method": selection.method, "artifacts": arguments.output_dir}
    path = None if rows is None else write_rows(rows, selection, arguments)
    removed = remove_others(arguments.folder, path)
    if path is not None:
        result["selected_rows"] = str(path)
        say(named_path("selected rows", path))
    else:
        gone = f"; {' and '.join(removed)} of the earlier selection removed" if removed else ""
        say(named("selected rows", f"{NOT_WRITTEN}{gone}"))
    if page := report_at_end(arguments.folder, selection):
        result["report"] = str(page)
        say(named_path("report", page))
    return result | {"costs": None if selection.costs is None else selection.costs.to_dict()}


def cost_table(costs: CostLedger) -> str:
    """The phases in aligned columns, and the break-even sentence; the operations are in `costs.json` and the report."""
    table = costs.table()
    shown = [at for at, name in enumerate(table[0]) if "FLOP" not in name]
    return f"{in_columns([[row[at] for at in shown] for row in table])}\n\n{wrapped(costs.break_even())}"
