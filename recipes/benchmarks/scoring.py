"""Speed, memory and storage of scoring: this library, a lower bound (the floor), a plain loop, and LESS.

The floor is the same batches through forward and backward of the same frozen model, with no per-sample work. All
variants alternate in one process, so that other load slows all of them down; ratios are medians over the rounds. On
a CPU the processor time is reported as well as the wall time: with one thread it depends little on other load.

glibc returns freed memory to the system and allocates it again page by page, in some variants and rounds and not in
others. This takes up to a fifth of the time and would distort the comparison. The two variables turn it off.

    export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184
    python recipes/benchmarks/scoring.py --output scoring.json
    python recipes/benchmarks/scoring.py --device cuda --dtype bfloat16 --hidden_size 4096 --layers 32 --heads 32 \
        --vocabulary 32000 --lora_rank 128 --workloads instruction --scoring_tokens_per_batch 16384
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from memory import peak_bytes
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_gist.data.batches import plan_batches
from hf_gist.data.rows import fetch_rows, row_lengths
from hf_gist.functional.sketch import CountSketch
from hf_gist.functional.subspace import basis_slice
from hf_gist.gist.scorers.less import LESS_SIZE, AdamCheckpoint
from hf_gist.gist.scorers.rds_plus import HiddenStateVectors
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.losses import prepared, sample_losses
from hf_gist.gradients.models import adapter_parameters, to_device
from hf_gist.gradients.modes import scoring_precision
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.vectors import GradientVectors


MEDIANS = {"short": 60, "instruction": 180, "long": 900}
TARGET = 0.93
LESS_CHECKPOINTS = 4


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the frozen model")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--targets", type=int, default=64, help="rank of the basis")
    parser.add_argument("--workloads", nargs="+", default=list(MEDIANS), choices=list(MEDIANS))
    parser.add_argument("--rows", type=int, default=48, help="rows of a workload with a median of 180 tokens")
    parser.add_argument("--scoring_tokens_per_batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of the variants to run in addition to the floors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def build_model(options):
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden_size, num_hidden_layers=options.layers,
        intermediate_size=int(2.6875 * options.hidden_size), num_attention_heads=options.heads,
        num_key_value_heads=options.heads, max_position_embeddings=4096,
    )  # fmt: skip
    lora = LoraConfig(
        r=options.lora_rank, lora_alpha=4 * options.lora_rank, task_type="CAUSAL_LM",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    )  # fmt: skip
    with torch.device(options.device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, options.dtype))
        try:
            base = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(previous)
    model = get_peft_model(base, lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.to(options.device)


def make_rows(workload, options):
    """Random tokens, log-normal lengths around the median of the workload, the second half of each row labelled."""
    median = MEDIANS[workload]
    generator = torch.Generator().manual_seed(options.seed)
    count = max(8, options.rows * MEDIANS["instruction"] // median)
    lengths = (median * torch.exp(0.4 * torch.randn(count, generator=generator))).long().clamp(8, 4096)
    rows = []
    for length in lengths.tolist():
        ids = torch.randint(3, options.vocabulary, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return Dataset.from_list(rows)


def pad(rows):
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    ids = padded("input_ids", 0)
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", -100)}


def random_basis(rank, size, generator):
    """A basis that the library computes from random target gradients, with the library's memory layout."""
    return basis_slice(torch.randn(rank, size, generator=generator), torch.ones(rank), torch.eye(rank).double())


class Bench:
    """One workload on one model, and all variants of scoring it."""

    def __init__(self, model, rows, options):
        self.model = model
        self.rows = rows
        self.options = options
        generator = torch.Generator().manual_seed(1)
        self.basis = {
            name: random_basis(options.targets, parameter.numel(), generator).to(options.device)
            for name, parameter in adapter_parameters(model).items()
        }
        moments = {
            name: (torch.zeros_like(p, dtype=torch.float32), torch.full_like(p, 1e-6, dtype=torch.float32))
            for name, p in adapter_parameters(model).items()
        }
        adam = AdamCheckpoint(1.0, moments, 10, (0.9, 0.999), 1e-8)
        self.less = SketchedVectors(model, CountSketch(LESS_SIZE, 0), 1.0, adam)
        self.sketch_basis = {"sketch": torch.randn(options.targets, LESS_SIZE, generator=generator).to(options.device)}
        self.rds = HiddenStateVectors(model)
        self.rds_basis = {"hidden": torch.randn(options.targets, options.hidden_size).to(options.device)}
        self.half = GradientVectors(model, options.layers // 2)

    def floor(self, dtype, rows=None):
        rows = self.rows if rows is None else rows
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        embeddings = self.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_())
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            for indices in plan_batches(row_lengths(rows), len(rows), self.options.scoring_tokens_per_batch):
                batch = prepared(self.model, pad(fetch_rows(rows, indices)))
                batch = to_device(batch, torch.device(self.options.device))
                with scoring_precision(self.model, dtype):
                    losses, _ = sample_losses(self.model, batch)
                    losses.sum().backward()
        finally:
            handle.remove()
            for parameter in trainable:
                parameter.requires_grad_(True)

    def library(self, dtype, rows=None, basis=None, vectors=None):
        dataset_pass = DatasetPass(self.model, pad, self.options.scoring_tokens_per_batch, dtype, progress=False)
        rows = self.rows if rows is None else rows
        return collect_coordinates(dataset_pass, rows, basis or self.basis, "rows", vectors)

    def loop(self):
        """For every eighth row: one forward and backward, the whole gradient, one projection."""
        parameters = adapter_parameters(self.model)
        basis = torch.cat([self.basis[name] for name in parameters], 1)
        for row in self.rows.select(range(0, len(self.rows), 8)):
            batch = to_device(pad([row]), torch.device(self.options.device))
            gradients = torch.autograd.grad(self.model(**batch).loss, list(parameters.values()))
            (basis @ torch.cat([g.flatten() for g in gradients]).float()).cpu()

    def variants(self):
        """Name to function, name of its floor, and share of the tokens that it scores."""
        lengths = row_lengths(self.rows)
        whole = 1.0
        some = lengths[::8].sum() / lengths.sum()
        dtype = "auto" if self.options.dtype == "bfloat16" else "float32"
        last = {name: self.basis[name] for name in self.half.sizes}
        found = {
            "floor": (lambda rows=None: self.floor(dtype, rows), "floor", whole),
            "library": (lambda rows=None: self.library(dtype, rows), "floor", whole),
            "obvious loop": (lambda rows=None: self.loop(), "floor", some),
            "LESS, one checkpoint": (
                lambda rows=None: self.library(dtype, rows, self.sketch_basis, self.less), "floor", whole,
            ),
            "library, last half of the blocks": (
                lambda rows=None: self.library(dtype, rows, last, self.half), "floor", whole,
            ),
            "RDS+": (lambda rows=None: self.library(dtype, rows, self.rds_basis, self.rds), "floor", whole),
        }  # fmt: skip
        if self.options.dtype == "float32":
            found |= {
                "floor, bf16 autocast": (lambda rows=None: self.floor("bfloat16", rows), "floor, bf16 autocast", whole),
                "library, bf16 autocast": (
                    lambda rows=None: self.library("bfloat16", rows), "floor, bf16 autocast", whole,
                ),
            }  # fmt: skip
        only = self.options.only
        names = found if only is None else [n for n in found if n in only]
        needed = {"floor", *names, *(found[n][1] for n in names)}
        return {n: v for n, v in found.items() if n in needed}

    def timed(self, function):
        cuda = self.options.device == "cuda"
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter(), time.process_time()
        function()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start[0], time.process_time() - start[1]


def measure(workload, model, options):
    bench = Bench(model, make_rows(workload, options), options)
    variants = bench.variants()
    seconds = defaultdict(list)
    for turn in range(-1, options.rounds):  # the first round warms up
        order = list(variants)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            taken = bench.timed(variants[name][0])
            if turn >= 0:
                seconds[name].append(taken)
        print(f"{workload}: round {turn + 1}/{options.rounds}", file=sys.stderr, flush=True)
    # memory on the batch with the most tokens, which is the first
    longest = plan_batches(row_lengths(bench.rows), len(bench.rows), options.scoring_tokens_per_batch)[0]
    few = bench.rows.select(longest)
    peaks = {}
    for name, (function, _, share) in variants.items():
        peaks[name] = peak_bytes(lambda function=function: function(few), options.device) if share == 1.0 else None
    return [
        summarise(name, workload, bench, seconds, peaks, floor, share, options)
        for name, (_, floor, share) in variants.items()
    ]


def summarise(name, workload, bench, seconds, peaks, floor, share, options):
    def ratio(clock):
        pairs = zip(seconds[floor], seconds[name], strict=True)
        return sorted(f[clock] / (s[clock] / share) for f, s in pairs)

    wall = [taken[0] / share for taken in seconds[name]]
    basis = sum(values.numel() * 4 for values in bench.basis.values()) if name.startswith("library") else 0
    return {
        "workload": workload,
        "name": name,
        "rows_per_second": len(bench.rows) / statistics.median(wall),
        "tokens_per_second": int(row_lengths(bench.rows).sum()) / statistics.median(wall),
        "wall_share_of_floor": ratio(0),
        "processor_share_of_floor": ratio(1),
        "peak_bytes": peaks[name],
        "memory_ratio": peaks[name] / peaks[floor] if peaks[name] else None,
        "basis_bytes": basis,
    }


def table(results):
    lines = [
        "| workload | variant | rows/s | wall: share of the floor | processor: share of the floor "
        "| peak MB without the basis | peak / floor |",
        "|---|---|---|---|---|---|---|",
    ]

    def cell(values):
        return f"{statistics.median(values):.3f} ({values[0]:.3f}-{values[-1]:.3f})"

    for row in results:
        shares = f"{cell(row['wall_share_of_floor'])} | {cell(row['processor_share_of_floor'])}"
        memory = "| |"
        if row["peak_bytes"] is not None:
            memory = f"{row['peak_bytes'] / 2**20:.0f} | {row['memory_ratio']:.3f} |"
        lines.append(f"| {row['workload']} | {row['name']} | {row['rows_per_second']:.1f} | {shares} | {memory}")
    return "\n".join(lines) + "\n\nMedians over the rounds, smallest and largest in parentheses."


def storage(options):
    """Bytes per candidate: coordinates, norm and token count; for LESS, projections in fp32 (its code has fp16)."""
    ours = 4 * options.targets + 4 + 8
    less = 4 * LESS_SIZE * LESS_CHECKPOINTS
    return {"bytes_per_candidate": ours, "less_bytes_per_candidate": less, "share": ours / less}


def main():
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = build_model(options)
    on_gpu = options.device == "cuda"
    with torch.cuda.device(0) if on_gpu else nullcontext():
        results = [row for workload in options.workloads for row in measure(workload, model, options)]
    print(table(results))
    kept = storage(options)
    print(
        f"\nstorage: {kept['bytes_per_candidate']} B per candidate, {kept['share']:.2%} of LESS's "
        f"{kept['less_bytes_per_candidate']} B"
    )
    if options.output:
        processor = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
        about = {"torch": torch.__version__, "processor": processor, **vars(options)}
        text = json.dumps({"settings": about, "results": results, "storage": kept}, indent=2) + "\n"
        Path(options.output).write_text(text)


if __name__ == "__main__":
    main()
