"""`hf-gist demo`: its flags."""

import argparse

from hf_gist.commands.demo.run import run_demo


def add_demo_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `hf-gist demo`."""
    parser.add_argument("--output_dir", default="gist_demo", help="Folder for what the demo writes.")
    parser.add_argument("--seed", type=int, default=42, help="Seed of everything in the demo.")


def run_demo_command(flags: argparse.Namespace) -> None:
    """Run the demo with its default sizes."""
    run_demo(flags.output_dir, flags.seed)
