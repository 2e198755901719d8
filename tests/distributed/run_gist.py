"""Run under `torchrun`: `select()` and a training with the callback; rank 0 writes what came out.

Usage: `run_distributed.py FOLDER`.
"""

import dataclasses
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback, select
from hf_gist.gradients.models import weights_digest
from tests.helpers.pairs import preference_rows, preference_trainer
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


def selected_pairs(folder: Path, processes: int) -> list[int]:
    """The pairs that DPOTrainer selects, whose loss gathers its metrics from all processes."""
    if find_spec("trl") is None:
        return []
    # a batch of 31 rows in several steps, so that the processes score different numbers of batches
    config = GISTConfig(budget=6, warmup_steps=2, scoring_tokens_per_batch=96)
    callback = GISTDataSelectorCallback(config, preference_rows(5, first=500))
    batch = {"per_device_train_batch_size": 4 // processes}
    preference_trainer("dpo", folder / "pairs", preference_rows(31), [callback], **batch).train()
    return callback.selection.indices


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(folder: Path, pool: Dataset, targets: Dataset, config: GISTConfig, epochs: int):
    """A training with the callback; checkpoints are written, so that every process reads what one has written."""
    callback = GISTDataSelectorCallback(config, targets)
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4 // PartialState().num_processes,
        num_train_epochs=epochs,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no" if config.reselect_every is None else "epoch",
        disable_tqdm=True,
    )
    trainer = Trainer(
        lora_model(), arguments, train_dataset=pool, data_collator=PaddingCollator(), callbacks=[callback]
    )
    trainer.train()
    assert trainer.args.world_size == PartialState().num_processes
    return trainer, callback


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    state = PartialState(cpu=True)
    pool, targets = as_dataset(token_rows(61, seed=1)), as_dataset(token_rows(5, seed=2))
    config = GISTConfig(budget=8, warmup_steps=2, scoring_tokens_per_batch=64)
    offline = select(lora_model(), pool, targets, config, data_collator=PaddingCollator(), progress=False)
    cheap = GISTConfig(budget=8, scoring_tokens_per_batch=64, scoring_cost=0.6)
    nearest = select(lora_model(), pool, targets, cheap, data_collator=PaddingCollator(), progress=False)

    watched = dataclasses.replace(config, target_holdout=0.4, stop_when_target_rises=True)
    once, callback = trained(folder / "training", pool, targets, watched, epochs=3)
    settings = {"reselect_every": 1, "reselect_share": 0.7}
    chosen, again = trained(folder / "again", pool, targets, dataclasses.replace(config, **settings), epochs=4)
    result = {
        "processes": state.num_processes,
        "indices": offline.indices,
        "scores": offline.scores.tolist(),
        "nearest": nearest.indices,
        "looked_at": nearest.measurements.looked_at.tolist(),
        "trained": callback.selection.indices,
        "target_losses": [point.losses for point in callback.run.target_watch.series.points],
        "held_out": callback.selection.manifest["held_out_targets"]["rows"],
        "final_step": callback.selection.manifest["target_loss"]["final_step"],
        "said": callback.selection.manifest["target_loss"]["sentence"],
        "adapter": weights_digest(once.model, trainable=True),
        "pairs": selected_pairs(folder, state.num_processes),
        "losses": losses_of(once),
        "chosen": [[record.step, record.indices] for record in again.run.history],
        "losses_of_chosen": losses_of(chosen),
    }
    (folder / f"rank{state.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
