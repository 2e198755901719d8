"""The `hf-gist` command."""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from hf_gist.commands.card import run_card
from hf_gist.commands.compare import run_compare
from hf_gist.commands.flags import build_parser, settings_of
from hf_gist.commands.select import run_select
from hf_gist.report import write_report
from hf_gist.utils.terminal import say


def _run(flags: argparse.Namespace) -> dict[str, Any] | None:
    if flags.command == "demo":
        # it needs what `select` does not, and takes a moment to import
        from hf_gist.commands.demo import run_demo

        run_demo(Path(flags.output_dir), flags.seed)
        return None
    if flags.command == "compare":
        _, (arguments, warmup, config) = settings_of(flags)
        return {"runs": run_compare(arguments, warmup, config), "artifacts": arguments.output_dir}
    if flags.command == "card":
        run_card(flags)
        return None
    if flags.command == "report":
        say(f"report: {write_report(flags.folder, flags.output_file)}")
        return None
    return run_select(flags)


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"hf-gist: {text}\n")
    return code


def main(argv: list[str] | None = None) -> int:
    """Entry point of `hf-gist`.

    Returns:
        `int`: 0; 2 after an error in what the user gave; 1 after any other error; 130 after Ctrl-C.
    """
    flags = build_parser().parse_args(argv)
    as_json = getattr(flags, "json", False)
    try:
        # whatever else a library prints must not mix with the JSON
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = _run(flags)
    except KeyboardInterrupt:
        return _fail("interrupted. What is finished is kept; the same command goes on behind it.", 130)
    except (ValueError, OSError, ImportError) as error:
        if flags.debug:
            raise
        return _fail(f"error: {error}", 2)
    except Exception as error:
        if flags.debug:
            raise
        return _fail(f"{type(error).__name__}: {error}\nRun it again with --debug for the traceback.", 1)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0
