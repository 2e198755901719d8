"""Two processes under DDP and FSDP2 against the same masks computed in one process."""

import dataclasses
from functools import cache

import pytest
import torch
from safetensors import safe_open

from tests.distributed.run_gast import CONFIGS, LR
from tests.helpers.gast import build_model, label_counts, reference_gradients, relative_error, rows
from tests.helpers.processes import launch


CASES = {
    "DistributedDataParallel": ["ddp/paper", "ddp_reentrant/paper", "ddp/model", "ddp/greedy"],
    "FSDP": ["fsdp2/paper", "fsdp2/batch", "fsdp2/model"],
}
"""What two processes run one after another, by the wrapper of the model; `fsdp2/model` is refused."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs all cases of a wrapper, once, and returns their folder."""

    @cache
    def finished(wrapper):
        folder = tmp_path_factory.mktemp(wrapper)
        assert launch("tests.distributed.run_gast", 2, folder, *CASES[wrapper]) == {}
        return folder

    return finished


def tensors_of(file, wrapper):
    """What a process wrote, after a check of the wrapper of its model."""
    refused = file.parent / "refused"
    assert not refused.exists(), refused.read_text()
    with safe_open(file, "pt") as tensors:
        assert wrapper in tensors.metadata()["wrapper"]
        return {name: tensors.get_tensor(name) for name in tensors.keys()}


def batches_of(tensors):
    names = ("input_ids", "attention_mask", "labels")
    return [{name: tensors[f"batch/{number}/{name}"] for name in names} for number in range(2)]


@pytest.mark.parametrize(
    ("wrapper", "case"),
    [(wrapper, case) for wrapper, cases in CASES.items() for case in cases if case != "fsdp2/model"],
)
def test_two_processes_give_the_gradients_of_the_same_masks_in_one(wrapper, case, finished):
    files = [finished(wrapper) / case / f"rank{rank}.safetensors" for rank in range(2)]
    ranks = [tensors_of(file, wrapper) for file in files]
    everything = [batch for tensors in ranks for batch in batches_of(tensors)]
    items = sum(label_counts(batch, "llama").sum() for batch in everything)
    # each process takes its own rows of the support sequence, and the two gradients are averaged
    config = CONFIGS[case.split("/")[1]]
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


def test_one_mask_for_the_whole_model_is_refused_under_fsdp2(finished):
    refused = (finished("FSDP") / "fsdp2" / "model" / "refused").read_text()
    assert "use DDP, or set `group_by='block'`" in refused
