"""Run under `torchrun`: a training with the callback on CPUs under DeepSpeed ZeRO; rank 0 writes what came out.

Usage: `run_deepspeed.py FOLDER STAGE [KEY=VALUE of GISTConfig ...]`; stage 0 is without DeepSpeed.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


def zero(stage: int) -> dict:
    """A DeepSpeed configuration in fp32."""
    automatic = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps")
    return dict.fromkeys(automatic, "auto") | {
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }


def main(folder: Path, stage: int, changes: dict[str, str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    config = GISTConfig(budget=16, warmup_ratio=0.2, **changes)
    callback = GISTDataSelectorCallback(config, as_dataset(token_rows(5, seed=2)))
    arguments = TrainingArguments(
        str(folder / "training"), per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        gradient_accumulation_steps=2, num_train_epochs=3, learning_rate=1e-2, lr_scheduler_type="cosine", use_cpu=True,
        report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, deepspeed=zero(stage) if stage else None,
    )  # fmt: skip
    pool = as_dataset(token_rows(90, seed=1))
    trainer = Trainer(
        lora_model(), arguments, train_dataset=pool, data_collator=PaddingCollator(), callbacks=[callback]
    )
    trainer.train()
    if arguments.process_index == 0:
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {
            "engine": type(trainer.model_wrapped).__name__,
            "indices": callback.selection.indices,
            "scores": callback.selection.scores.tolist(),
            "losses": [entry["loss"] for entry in log],
            "rates": [entry["learning_rate"] for entry in log],
        }
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), dict(pair.split("=") for pair in sys.argv[3:]))
