"""Proves on one GPU, within some minutes, that the library is correct and fast there.

Sections in order of worth, each with its own time limit: correctness, scoring at the shape of Llama-2-7B, a GAST step
at that shape, profiles, and (with `--model`) a comparison on a real model. The results so far are in
`acceptance.json` and `acceptance.md` after every step, so that an interrupted run counts.

    python recipes/benchmarks/gpu_acceptance.py --output acceptance
    python recipes/benchmarks/gpu_acceptance.py --output acceptance --model SMOLLM2 --data TESTBED
    python recipes/benchmarks/gpu_acceptance.py --output acceptance --device cpu --small

Needs torch, transformers, peft, accelerate and datasets, without a network; with `--model` evaluate and TRL too. The exit
status is 1 if a check failed or a goal was missed.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import torch
import transformers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder for acceptance.json and acceptance.md")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all sections together")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--model", help="folder of a real model, for the last section")
    parser.add_argument("--data", help="folder with its pool, targets and tests, see real_model.py")
    options = parser.parse_args()
    if (options.model is None) != (options.data is None):
        parser.error("--model and --data go together")
    return options


MINUTES = 8.0
"""Default of `--minutes`."""

SECTIONS = {"correctness": 1.0, "scoring": 3.25, "gast": 1.5, "profile": 1.5, "real": MINUTES}
"""Name to its limit in minutes, for the default; what is left over is for the real model."""


def make_sections(options: argparse.Namespace) -> list:
    """The sections to run."""
    from acceptance import gast_exact, gast_speed, profiles, scoring_exact, scoring_speed
    from acceptance.models import LLAMA_7B, SMALL, base_model
    from acceptance.record import Section

    device = options.device
    shape = SMALL if options.small else LLAMA_7B
    scale = scoring_speed.TINY if options.small else scoring_speed.LARGE
    base = functools.cache(lambda: base_model(shape, device, torch.bfloat16))

    def correctness():
        yield from scoring_exact.steps(device)
        yield from gast_exact.steps(device)

    steps = {
        "correctness": correctness,
        "scoring": lambda: scoring_speed.steps(base, shape, scale),
        "gast": lambda: gast_speed.steps(base, shape, device, options.small),
        "profile": lambda: profiles.steps(base, shape, device, options.small, scale),
    }
    scaled = options.minutes / MINUTES
    return [Section(name, steps[name], scaled * SECTIONS[name]) for name in options.sections if name in steps]


def compare_on_a_real_model(options: argparse.Namespace, seconds: float) -> None:
    """`real_model.py` for as long as time is left."""
    import real_model

    output = Path(options.output) / "real_model"
    arguments = ["--model", options.model, "--data", options.data, "--device", options.device]
    real_model.main([*arguments, "--minutes", f"{seconds / 60:.2f}", "--output", str(output)])


def main() -> int:
    options = parse()
    end = time.monotonic() + options.minutes * 60
    transformers.logging.set_verbosity_error()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA device. Use `--device cpu --small` to try the script.")
    from acceptance.record import Report, environment, missing_packages, run_section

    if missing := missing_packages():
        raise SystemExit(f"Not installed, and needed by every section: {'; '.join(missing)}")
    report = Report(Path(options.output), environment(options.device))
    for section in make_sections(options):
        run_section(report, section, end - time.monotonic())
    if options.model is not None and "real" in options.sections:
        compare_on_a_real_model(options, end - time.monotonic())
    print(f"\n{report.markdown()}")
    failures = report.failures()
    print(f"Failed: {'; '.join(failures)}" if failures else "Nothing failed.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
