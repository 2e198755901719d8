"""Run under `torchrun`: the callback on a model sharded by FSDP2. Usage: `FOLDER AFTER_SELECTION ...`."""

import json
import sys
from pathlib import Path

import torch
import transformers
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.errors import SelectionNotVerifiedWarning
from tests.helpers.fsdp import FSDP2, ShardsOnCPU
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


class Sharded(ShardsOnCPU, Trainer):
    """A stock Trainer under FSDP2."""


def run(folder: Path, after_selection: str, sharded: bool) -> dict:
    """Train with the callback; says the selection, the scores and the losses."""
    # 61 rows in batches of one or two: the processes have different numbers of batches
    # the embeddings that the nearest rows are found by are sharded too
    cost = 0.9 if after_selection == "restart" else None
    config = GISTConfig(
        budget=8, warmup_steps=2, scoring_tokens_per_batch=24, after_selection=after_selection, scoring_cost=cost
    )
    callback = GISTDataSelectorCallback(config, as_dataset(token_rows(5, seed=2)))
    arguments = TrainingArguments(
        str(folder / "training"), per_device_train_batch_size=2 if sharded else 4, num_train_epochs=3, learning_rate=1e-2,
        report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True, ddp_backend="gloo" if sharded else None,
        **(FSDP2 if sharded else {}),
    )  # fmt: skip
    trainer = (Sharded if sharded else Trainer)(
        lora_model(), arguments, train_dataset=as_dataset(token_rows(61, seed=1)), data_collator=PaddingCollator(),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert any(isinstance(p, DTensor) for p in trainer.model.parameters()) == sharded
    return {
        "indices": callback.selection.indices,
        "scores": callback.selection.scores.tolist(),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "rank": trainer.args.process_index,
    }


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("error", SelectionNotVerifiedWarning)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for after_selection in sys.argv[2:]:
        folder = Path(sys.argv[1]) / after_selection
        result = run(folder, after_selection, sharded=True)
        (folder / f"rank{result['rank']}.json").write_text(json.dumps(result))
