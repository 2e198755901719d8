"""Scoring and training that are killed and started again until they finish. Run as a script:

    python -m tests.reliability.jobs {scoring,training,choosing_again} FOLDER KILLS SEED

Children are forked, so that a kill costs milliseconds and not the imports; each is killed with SIGKILL at a random
moment. The last line of the output is JSON: kills, starts, and the results of the finished jobs.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import torch
import transformers
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback, select
from hf_gist.gradients.partial import PartialScores
from hf_gist.report import page
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


POOL, TARGETS = token_rows(90, seed=1), token_rows(5, seed=2)


class SlowCollator(PaddingCollator):
    """Slow enough that a kill can hit every phase."""

    def __call__(self, rows):
        time.sleep(0.004)
        return super().__call__(rows)


def rows_in_shards(folder: Path) -> list[int]:
    """Every row of every shard of the candidates."""
    return [row for path in folder.glob("stage0-*.safetensors") for row in load_file(path)["rows"].tolist()]


def scoring(folder: Path) -> dict:
    """One `select()` with a save after every second batch; returns the rows in the shards at the end, and the selection."""
    held: list[int] = []
    remove = PartialScores.remove
    PartialScores.remove = lambda self: (held.extend(rows_in_shards(self.folder)), remove(self))
    config = GISTConfig(budget=8, scoring_tokens_per_batch=24, save_every=2)
    selection = select(
        lora_model(), as_dataset(POOL), as_dataset(TARGETS), config,
        data_collator=SlowCollator(), output_dir=folder / "scores", progress=False,
    )  # fmt: skip
    return {"rows": held, "indices": selection.indices}


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; deletes incomplete ones."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").exists()]
    for path in folder.glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def training(folder: Path, after_selection: str = "restart", epochs: int = 3, **settings) -> dict:
    """A training with the callback that resumes from its last checkpoint; returns its losses, selections and weights."""
    shared = {"budget": 16, "warmup_ratio": 0.2, "scoring_tokens_per_batch": 64, "save_every": 2}
    config = GISTConfig(**shared, after_selection=after_selection, **settings)
    callback = GISTDataSelectorCallback(config, as_dataset(TARGETS))
    output = folder / "training"
    arguments = TrainingArguments(
        str(output), per_device_train_batch_size=4, num_train_epochs=epochs, learning_rate=1e-2, use_cpu=True, report_to=[],
        logging_steps=1, save_strategy="steps", save_steps=2, save_total_limit=2, disable_tqdm=True, lr_scheduler_type="cosine",
    )  # fmt: skip
    trainer = Trainer(
        lora_model(), arguments, train_dataset=as_dataset(POOL), data_collator=SlowCollator(), callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    weights = {name: p.double().sum().item() for name, p in trainer.model.named_parameters() if p.requires_grad}
    chosen = [[record.step, record.indices] for record in callback.run.history]
    return {"losses": losses, "indices": callback.selection.indices, "chosen": chosen, "weights": weights}


def choosing_again(folder: Path) -> dict:
    """A training that scores the pool, or a share of it, again after each pass but the last: four selections."""
    return training(folder, "continue", 5, reselect_every=1, reselect_share=0.8)


JOBS = {"scoring": scoring, "training": training, "choosing_again": choosing_again}
OUTPUT = {"scoring": "scores", "training": "training", "choosing_again": "training"}


def used(job: str, child: int, start: float) -> float:
    """Seconds that a job has taken: of the processor for the long one, so that it gets as far on a busy machine."""
    if job != "choosing_again":
        return time.monotonic() - start
    times = psutil.Process(child).cpu_times()
    return times.user + times.system


def start(job: str, folder: Path) -> int:
    """Fork a child that runs the job and writes its result to `done.json`."""
    child = os.fork()
    if child:
        return child
    try:
        sys.stdout = open(os.devnull, "w")
        sys.stderr = open(folder / "errors.log", "a")
        result = JOBS[job](folder)
        (folder / "done.tmp").write_text(json.dumps(result))
        os.replace(folder / "done.tmp", folder / "done.json")
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def run(job: str, folder: Path, kills: int, seed: int) -> dict:
    """Start the job until it has finished, killing it at random moments; starts again if it finishes before all kills."""
    rng = random.Random(seed)
    killed = starts = 0
    finished: list[dict] = []
    whole = time.monotonic()
    while True:
        starts += 1
        child = start(job, folder)
        limit = rng.uniform(0.02, 1.2) if killed < kills else 120.0
        begun = time.monotonic()
        status = None
        while used(job, child, begun) < limit:
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                status = code
                break
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            if time.monotonic() - whole > 900:
                raise SystemExit("too slow")
            continue
        if status != 0:
            raise SystemExit(f"the job failed: {(folder / 'errors.log').read_text()}")
        finished.append(json.loads((folder / "done.json").read_text()))
        if killed >= kills:
            return {"kills": killed, "starts": starts, "finished": finished}
        shutil.move(folder / OUTPUT[job], folder / f"finished{len(finished)}")
        (folder / "done.json").unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    # they would take most of the time of each attempt
    page._all_figures = lambda parts: {}
    name, where, count, chance = sys.argv[1:]
    Path(where).mkdir(parents=True, exist_ok=True)
    print(json.dumps(run(name, Path(where), int(count), int(chance))))
