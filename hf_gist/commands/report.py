"""`hf-gist report`: one HTML page about a run."""

import argparse
from pathlib import Path

from hf_gist.commands.compare.page import is_comparison, write_comparison
from hf_gist.report import write_report
from hf_gist.utils.terminal import named_path, say


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist report`."""
    parser.add_argument(
        "folder", metavar="DIR", help="Output folder of `hf-gist select`, `hf-gist compare` or of a training run."
    )
    parser.add_argument("--output_file", help="Where to write the page. Default: report.html in the folder.")


def run_report(flags: argparse.Namespace) -> None:
    """Write the page and print its path."""
    folder = Path(flags.folder)
    write = write_comparison if is_comparison(folder) else write_report
    say(named_path("report", write(folder, flags.output_file)))
