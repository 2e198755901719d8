"""`hf-gist report`: one HTML page about a run."""

import argparse

from hf_gist.report import write_report
from hf_gist.utils.terminal import say


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist report`."""
    parser.add_argument("folder", metavar="DIR", help="Output folder of `hf-gist select` or of a training run.")
    parser.add_argument("--output_file", help="Where to write the page. Default: report.html in the folder.")


def run_report(flags: argparse.Namespace) -> None:
    """Write the page and print its path."""
    say(f"report: {write_report(flags.folder, flags.output_file)}")
