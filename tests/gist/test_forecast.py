"""The forecast of memory and where the basis goes."""

import json

import pytest
import torch

from hf_gist import GISTConfig, select
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import in_units
from hf_gist.functional.sketch import CountSketch
from hf_gist.gist.forecast import MemoryPlan, activation_bytes, free_memory, plan_memory
from hf_gist.gist.scorers.sketched import SketchedVectors
from hf_gist.gradients.vectors import GradientVectors
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


GIB = 2**30


def plan(monkeypatch, free, sketch=None, targets=64):
    monkeypatch.setattr("hf_gist.gist.forecast.free_memory", lambda device: free)
    model = lora_model(base={"hidden_size": 256}, r=8)
    vectors = GradientVectors(model) if sketch is None else SketchedVectors(model, CountSketch(sketch, 0))
    return plan_memory(vectors, targets, rows=1000, tokens_per_batch=512), vectors


def test_the_basis_is_counted_value_by_value(monkeypatch):
    found, vectors = plan(monkeypatch, (GIB, GIB))
    values = sum(p.numel() for p in vectors.model.parameters() if p.requires_grad)
    assert found.values == values and found.basis >= 4 * 64 * values and found.placement == "device"
    smaller, vectors = plan(monkeypatch, (GIB, GIB), 512)
    assert smaller.values == sum(vectors.sizes.values()) < values / 8 and smaller.basis < found.basis / 8
    assert f"basis {in_units(smaller.basis)}" in smaller.describe()
    assert "device" not in smaller.describe() and smaller.describe().endswith("; free: 1.00 GiB")


@pytest.mark.parametrize(
    ("device", "placement", "values", "words"),
    [
        ("cpu", "device", 12_345, "(12,345 values for each of 1,024 targets), coordinates"),
        ("cuda", "device", 999_999, "(999,999 values for each of 1,024 targets) on the cuda, "),
        ("cuda", "host", 40_250_000, "(40.2 million values for each of 1,024 targets) on the host, "),
        ("mps", "device", 12, "(12 values for each of 1,024 targets) on the mps, "),
    ],
)
def test_the_line_on_memory_names_the_device_and_readable_numbers(device, placement, values, words):
    line = MemoryPlan(values, 1024, 10, 10, 10, GIB, 2 * GIB, placement, device).describe()
    free = "2.00 GiB" if device == "cpu" else f"1.00 GiB on the {device}, 2.00 GiB on the host"
    assert words in line and line.endswith(f"; free: {free}")


def test_no_room_is_an_error_that_names_the_way_out(monkeypatch):
    found, _ = plan(monkeypatch, (GIB, GIB))
    tight = int((found.basis * 0.5 + found.activations + found.coordinates) / 0.9) + 1
    with pytest.raises(ValueError, match=r"The basis of 64 targets takes .* Set `sketch_dim=8192`"):
        plan(monkeypatch, (tight, tight))
    assert plan(monkeypatch, (tight, tight), 512)[0].placement == "device"


def test_too_large_a_basis_stops_before_any_gradient(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_gist.gist.forecast.free_memory", lambda device: (1000, 1000))
    monkeypatch.setattr(GradientVectors, "__call__", None)
    with pytest.raises(ValueError, match="free on the cpu"):
        select(
            lora_model(), as_dataset(token_rows(9)), as_dataset(token_rows(2)), GISTConfig(budget=2),
            data_collator=PaddingCollator(), progress=False,
        )  # fmt: skip


def test_the_plan_is_printed_and_kept(tmp_path, capsys):
    select(
        lora_model(), as_dataset(token_rows(9)), as_dataset(token_rows(2)), GISTConfig(budget=2),
        data_collator=PaddingCollator(), output_dir=tmp_path,
    )  # fmt: skip
    assert capsys.readouterr().err.count("memory: basis") == 1
    kept = json.loads((tmp_path / "manifest.json").read_text())["memory_plan"]
    assert kept["placement"] == "device" and kept["targets"] == 2


def test_the_host_is_shared_by_the_processes_of_a_machine(monkeypatch):
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert free_memory(torch.device("cpu"))[1] < alone[1] / 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_basis_on_the_host_gives_the_same_scores(monkeypatch):
    pool, targets = as_dataset(token_rows(30, seed=1)), as_dataset(token_rows(4, seed=2))
    scores = []
    for free in ((GIB, GIB), (0, GIB)):
        monkeypatch.setattr("hf_gist.gist.forecast.free_memory", lambda device, free=free: free)
        found = select(lora_model().cuda(), pool, targets, GISTConfig(budget=3), data_collator=PaddingCollator())
        scores.append(found.scores)
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)


def test_what_pytorch_keeps_and_does_not_use_is_free(monkeypatch):
    for name, size in (("mem_get_info", (3, 24)), ("memory_reserved", 20), ("memory_allocated", 5)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert free_memory(torch.device("cuda"))[0] == 3 + 20 - 5


def test_a_model_of_text_and_pictures_has_the_sizes_of_its_text():
    model = lora_model()
    plain = activation_bytes(model, 100), ModelWork.of(model)

    class Composite:
        def get_text_config(self):
            return text

    text = model.get_base_model().config
    model.get_base_model().config = Composite()
    assert (activation_bytes(model, 100), ModelWork.of(model)) == plain and plain[0] > 0 and plain[1].layers == 2
