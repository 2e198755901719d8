"""`hf-gist`: table of commands, parser and exit codes."""

import argparse
import io
import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

from hf_gist.commands.card import add_card_flags, run_card
from hf_gist.commands.compare.run import add_compare_flags, run_compare
from hf_gist.commands.demo.command import add_demo_flags, run_demo_command
from hf_gist.commands.report import add_report_flags, run_report
from hf_gist.commands.select.run import add_select_flags, run_select
from hf_gist.utils.guides import guide
from hf_gist.utils.terminal import short_warnings
from hf_gist.version import __version__


@dataclass(frozen=True)
class Command:
    """One command of `hf-gist`.

    Args:
        help (`str`): its line in `hf-gist --help`.
        guide (`str`): where to read more, see [`hf_gist.utils.guides.guide`].
        add_flags (`Callable`): adds its flags to its parser.
        run (`Callable`): runs it with the parsed flags; returns what `--json` prints, or `None` where it has no `--json`.
    """

    help: str
    guide: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], dict[str, Any] | None]


COMMANDS = {
    "demo": Command(
        "select rows, train on them, and compare with random rows",
        guide("getting_started"),
        add_demo_flags,
        run_demo_command,
    ),
    "select": Command(
        "select the rows of a pool that align with a target set", guide("data"), add_select_flags, run_select
    ),
    "compare": Command(
        "train on the rows of each method and compare the test losses",
        guide("choosing_settings", "is-it-worth-it-on-your-data"),
        add_compare_flags,
        run_compare,
    ),
    "report": Command(
        "write one HTML page about a selection, a comparison or a GAST training run",
        guide("hub_and_reports", "the-report"),
        add_report_flags,
        run_report,
    ),
    "card": Command(
        "write the card of a run, or of its selection as a dataset, and push it",
        guide("hub_and_reports", "model-cards"),
        add_card_flags,
        run_card,
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        "hf-gist",
        description="Select the training rows that match a target set.",
        epilog=f"Guides: {guide('getting_started')} and the pages beside it. Errors: {guide('errors')}.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        own = parsers.add_parser(name, help=command.help, epilog=f"Guide: {command.guide}")
        command.add_flags(own)
        own.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"hf-gist: {text}\n")
    return code


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hf-gist`.

    Returns:
        `int`: 0; 2 for invalid input; 1 after any other error; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # a terminal or pipe of another encoding (Windows) shows what it lacks as escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    flags = build_parser().parse_args(argv)
    try:
        _run(flags)
    except KeyboardInterrupt:
        return _fail("interrupted. Finished work is saved; run the same command again to resume.", 130)
    except Exception as error:
        if flags.debug:
            raise
        if isinstance(error, (ValueError, OSError, ImportError)):
            return _fail(f"error: {error}", 2)
        return _fail(f"{type(error).__name__}: {error}\nRun it again with --debug for the traceback.", 1)
    return 0


def _run(flags: argparse.Namespace) -> None:
    as_json = getattr(flags, "json", False)
    # the output of other libraries must not mix with the JSON
    with redirect_stdout(sys.stderr) if as_json else nullcontext(), short_warnings():
        result = COMMANDS[flags.command].run(flags)
    if as_json:
        sys.stdout.write(json.dumps(_finite(result), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """A result with `None` for numbers that JSON does not have: the loss of a training that diverged."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
