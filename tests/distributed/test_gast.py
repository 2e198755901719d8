"""Two processes under DDP and FSDP2 against the same masks computed in one process."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests import ROOT
from tests.distributed.run_gast import CONFIGS, LR
from tests.helpers.gast import build_model, label_counts, reference_gradients, relative_error, rows


def launch(kind, name, folder, check=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "tests.distributed.run_gast", kind, name, str(folder)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    if not check:
        return result
    assert result.returncode == 0, result.stderr[-4000:]
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)], result.stdout


def batches_of(tensors):
    names = ("input_ids", "attention_mask", "labels")
    return [{name: tensors[f"batch/{number}/{name}"] for name in names} for number in range(2)]


@pytest.mark.parametrize(
    ("kind", "name", "wrapper"),
    [
        ("ddp", "paper", "DistributedDataParallel"),
        ("ddp_reentrant", "paper", "DistributedDataParallel"),
        ("fsdp2", "paper", "FSDP"),
        ("ddp", "model", "DistributedDataParallel"),
        ("ddp", "greedy", "DistributedDataParallel"),
        ("fsdp2", "batch", "FSDP"),
    ],
)
def test_two_processes_give_the_gradients_of_the_same_masks_in_one(kind, name, wrapper, tmp_path):
    ranks, output = launch(kind, name, tmp_path)
    assert f"wrapped by {wrapper}" in output
    everything = [batch for tensors in ranks for batch in batches_of(tensors)]
    items = sum(label_counts(batch, "llama").sum() for batch in everything)
    # each process takes its own rows of the support sequence, and the two gradients are averaged
    config = CONFIGS[name]
    if config.support == "dataset":
        config = dataclasses.replace(config, support_batch_size=2 * config.support_batch_size)
    total = None
    for rank, tensors in enumerate(ranks):
        gradients, masks, _ = reference_gradients(
            build_model("llama"), "llama", batches_of(tensors), rows("llama", 48), config, items=items, rank=rank,
            lr=LR,
        )  # fmt: skip
        for number, by_group in enumerate(masks):
            for group, mask in by_group.items():
                assert torch.equal(tensors[f"mask/{number}/{group}"], mask)
        total = gradients if total is None else {name: total[name] + gradients[name] for name in total}
    for tensors in ranks:
        found = {name.removeprefix("gradient/"): v for name, v in tensors.items() if name.startswith("gradient/")}
        assert relative_error(found, total) < 1e-5


def test_one_mask_for_the_whole_model_is_refused_under_fsdp2(tmp_path):
    result = launch("fsdp2", "model", tmp_path, check=False)
    assert result.returncode and "use DDP, or set `group_by='block'`" in result.stderr
