"""Selections made without a model, for cards."""

from pathlib import Path

import torch
from datasets import Dataset

from hf_gist import GISTConfig, Selection
from hf_gist.functional.measurements import Measurements


MANIFEST = {
    "hf_gist": "0.1",
    "versions": {"python": "3.11", "torch": "2.13"},
    "model": {"name_or_path": "meta/small", "revision": "a" * 40, "class": "LlamaForCausalLM"},
    "train_dataset": {"rows": 20, "hub": [{"id": "jane/pool", "revision": "b" * 40}], "split": "train"},
    "target_dataset": {"rows": 4, "file": "targets.jsonl", "sha256": "c" * 64},
    "leaks": {"target_dataset": {"rows": [1, 2], "exact": 1, "same_words": 1}, "targets_in_evaluation": 0},
    "warmup": {"lora_r": 8, "learning_rate": 0.001},
}


def selection(sources: list[str] | None = None, manifest: dict | None = None, rows: int = 20, **config) -> Selection:
    """A selection of a quarter of the rows by random coordinates."""
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randn(rows, 3, generator=generator)
    measured = Measurements(
        coordinates=coordinates,
        norms=coordinates.norm(dim=1) * 2,
        label_tokens=torch.arange(1, rows + 1),
        singular_values=torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64),
        target_coordinates=torch.randn(4, 3, generator=generator),
        target_label_tokens=torch.tensor([5, 6, 7, 8]),
        target_columns={},
        sources=sources,
    )
    settings = {"budget": 0.25, "source_column": "source" if sources else None} | config
    return Selection.choose(measured, GISTConfig(**settings), MANIFEST if manifest is None else manifest)


def pool(rows: int = 20) -> Dataset:
    """The pool of that selection."""
    return Dataset.from_list(
        [{"messages": [{"role": "user", "content": f"question {i}"}], "source": f"s{i % 2}"} for i in range(rows)]
    )


def select_folder(folder: Path, **more) -> Path:
    """A small output folder of `hf-gist select`."""
    made = selection(["a"] * 15 + ["b"] * 5, **more)
    made.save(folder)
    (folder / "warmup_adapter").mkdir()
    (folder / "warmup_adapter" / "adapter_config.json").write_text('{"task_type": "CAUSAL_LM"}')
    (folder / "warmup_adapter" / "README.md").write_text("base_model: /home/jane/secret")
    pool().select(made.indices).to_json(folder / "selected.jsonl")
    return folder
