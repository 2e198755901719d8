"""Theoretical cost of a selection: operations, seconds, memory and storage from the shape of the model and the data.

    python recipes/benchmarks/cost_model.py --rows 10_000_000 --gpus 64
    python recipes/benchmarks/cost_model.py --check scoring.json

`--check` compares the prediction with the measurements of `scoring.py`. The formulas are in `README.md` here.
"""

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from scoring import MEDIANS


@dataclass(frozen=True)
class Shape:
    """A Llama with LoRA on q, k, v and o.

    Args:
        hidden, layers, vocabulary, intermediate (`int`): of the model.
        rank (`int`): LoRA's.
    """

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    rank: int

    @property
    def blocks(self) -> int:
        """Weights of all blocks."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocabulary * self.hidden

    @property
    def trainable(self) -> int:
        """`D`: weights of the adapter."""
        return self.layers * 4 * 2 * self.hidden * self.rank


def floor_operations(shape: Shape, tokens: float, labelled: float) -> float:
    """Forward and activation backward of one row, adapters included."""
    attention = 2 * 2 * shape.layers * shape.hidden * tokens**2 * 1.5
    return 4 * (shape.blocks + shape.trainable) * tokens + attention + 4 * shape.head * labelled * tokens


def extra_operations(shape: Shape, tokens: float, rank: int) -> float:
    """Operations that scoring adds to a row: its gradient, the norm, and the projection."""
    return 2 * shape.trainable * (tokens + 1 + rank)


def share_of_floor(shape: Shape, tokens: float, labelled: float, rank: int) -> float:
    """Predicted speed as a share of the floor, if every operation took the same time."""
    floor = floor_operations(shape, tokens, labelled)
    return floor / (floor + extra_operations(shape, tokens, rank))


def bytes_needed(shape: Shape, rows: int, rank: int) -> dict[str, int]:
    """Memory and storage beyond the model and its activations."""
    return {
        "basis on every device, overwriting the target gradients": 4 * shape.trainable * rank,
        "coordinates, norms and counts": rows * (4 * rank + 20),
    }


def forecast(options: argparse.Namespace) -> str:
    """Seconds and bytes of the parts of a selection, as a table."""
    shape = Shape(options.hidden, options.layers, options.vocabulary, options.intermediate, options.lora_rank)
    per_row = floor_operations(shape, options.tokens, options.labelled)
    per_row += extra_operations(shape, options.tokens, options.targets)
    speed = options.gpus * options.flops
    warm = options.warmup_ratio * options.rows * (per_row + 2 * shape.trainable * options.tokens)
    parts = {
        "warm-up": warm / speed,
        "target gradients": options.targets * per_row / speed,
        "Gram matrix and basis": 4 * shape.trainable * options.targets**2 / options.flops_fp64,
        "scoring": options.rows * per_row / speed,
    }
    lines = [
        f"D = {shape.trainable / 1e6:.0f} M, {per_row / 1e12:.2f} TFLOP per row",
        "",
        "| part | time |",
        "|---|---|",
    ]
    lines += [f"| {name} | {seconds:,.0f} s |" for name, seconds in parts.items()]
    lines += ["", "| memory | GiB |", "|---|---|"]
    sizes = bytes_needed(shape, options.rows, options.targets)
    lines += [f"| {name} | {size / 2**30:.2f} |" for name, size in sizes.items()]
    return "\n".join(lines)


def check(path: str) -> str:
    """Predicted and measured shares of the floor for each workload."""
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    s = found["settings"]
    shape = Shape(s["hidden_size"], s["layers"], s["vocabulary"], int(2.6875 * s["hidden_size"]), s["lora_rank"])
    lines = ["| workload | variant | predicted share of the floor | measured |", "|---|---|---|---|"]
    for row in found["results"]:
        if row["name"].startswith("library") and "half" not in row["name"]:
            predicted = share_of_floor(shape, MEDIANS[row["workload"]], 0.5, s["targets"])
            clock = "processor" if s["device"] == "cpu" else "wall"
            measured = statistics.median(row[f"{clock}_share_of_floor"])
            lines.append(f"| {row['workload']} | {row['name']} | {predicted:.3f} | {measured:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="JSON", help="output file of scoring.py")
    for name, default, text in [
        ("rows", 10_000_000, "candidates"), ("tokens", 180, "tokens per row"), ("targets", 64, "target rows, the largest possible rank"),
        ("gpus", 64, "devices"), ("hidden", 4096, "hidden size"), ("layers", 32, "transformer blocks"),
        ("vocabulary", 32000, "vocabulary size"), ("intermediate", 11008, "MLP size"), ("lora_rank", 128, "LoRA rank"),
    ]:  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--labelled", type=float, default=0.5, help="share of the tokens that have a label")
    parser.add_argument("--warmup_ratio", type=float, default=0.05, help="share of the pool in the warm-up")
    parser.add_argument("--flops", type=float, default=4e14, help="operations per second and device (an assumption)")
    parser.add_argument("--flops_fp64", type=float, default=3e13, help="the same in double precision, one device")
    options = parser.parse_args()
    print(check(options.check) if options.check else forecast(options))


if __name__ == "__main__":
    main()
