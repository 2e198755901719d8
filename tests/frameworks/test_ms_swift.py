"""ms-swift 4.6.0: really run where it is installed, and otherwise what it hands to its Trainer."""

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import Seq2SeqTrainer as HfSeq2SeqTrainer
from transformers import Seq2SeqTrainingArguments, Trainer

from hf_gist import GASTConfig, GASTMixin, GISTConfig, GISTDataSelectorCallback
from hf_gist.commands.main import main
from tests import ROOT
from tests.frameworks.test_llamafactory import LogCallback
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows
from tests.helpers.words import save_model, tokenizer, varied


PLUGIN = ROOT / "recipes" / "frameworks" / "ms_swift_plugin.py"


# ---- What it hands over ----


class LazyDataset(Dataset):
    """`LazyLLMDataset`: rows are tokenised when they are read; a text as index gives a column."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, str):
            return [row[index] for row in self.rows]
        row = self.rows[index]
        return row | {"length": len(row["input_ids"]), "lengths": [len(row["input_ids"])]}


class BatchSamplerShard:
    """Its batch sampler, which has no sampler that could be replaced."""

    def __init__(self, total_samples, batch_size):
        self.total_samples, self.batch_size = total_samples, batch_size

    def __iter__(self):
        order = torch.randperm(self.total_samples).tolist()
        return (order[at : at + self.batch_size] for at in range(0, self.total_samples, self.batch_size))

    def __len__(self):
        return -(-self.total_samples // self.batch_size)


class OptimizerCallback:
    """Makes optimizer and scheduler; it has a reference to the trainer, also when a copy of the trainer asks it."""

    def __init__(self, trainer):
        self.trainer = trainer

    def create_optimizer(self):
        return Trainer.create_optimizer(self.trainer)

    def create_scheduler(self, num_training_steps, optimizer):
        return Trainer.create_scheduler(self.trainer, num_training_steps, optimizer)


class Seq2SeqTrainer(HfSeq2SeqTrainer):
    """Makes its callbacks and its collator itself; its loss cuts the logits, and counts a metric in each call."""

    def __init__(self, *args, make_callback=None, **kwargs):
        self.optimizer_callback = OptimizerCallback(self)
        self.custom_metrics = {"train": {"tokens": []}, "eval": {"tokens": []}}
        callbacks = [] if make_callback is None else [make_callback(kwargs["args"], self)]
        collator = partial(lambda rows, padding_to: PaddingCollator()(rows), padding_to=None)
        super().__init__(*args, callbacks=callbacks, data_collator=collator, **kwargs)
        self.model_accepts_loss_kwargs = True

    def get_train_dataloader(self, skip_batches=0):
        sampler = BatchSamplerShard(len(self.train_dataset), self._train_batch_size)
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)

    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer_callback.create_optimizer()
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = self.optimizer_callback.create_scheduler(num_training_steps, optimizer or self.optimizer)
        return self.lr_scheduler

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        labels = inputs["labels"]
        kept = labels.shape[-1] - int((labels != -100).int().argmax(-1).min()) + 1
        return inputs | {
            "labels": labels[:, -kept:],
            "logits_to_keep": kept,
            "compute_loss_func": self.compute_loss_func,
        }

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("compute_loss_func", None)
        outputs = model(**inputs)
        mode = "train" if self.model.training else "eval"
        self.custom_metrics[mode]["tokens"].append(int((inputs["labels"] != -100).sum()))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs, *args, **kwargs):
        tokens = self.custom_metrics["train" if self.model.training else "eval"].pop("tokens", [])
        self.custom_metrics["train"].setdefault("tokens", [])
        super().log(logs | ({"tokens": sum(tokens)} if tokens else {}), *args, **kwargs)


class PlainLoader(Seq2SeqTrainer):
    """The class of the plugin."""

    def get_train_dataloader(self, skip_batches=0):
        return Trainer.get_train_dataloader(self)


def make_callback(args, trainer):
    targets = token_rows(5, seed=9)
    return GISTDataSelectorCallback(GISTConfig(budget=16, warmup_steps=2), target_dataset=targets)


def trainer_of(folder, trainer_class, given=None, **arguments):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    settings |= {"remove_unused_columns": False, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    settings |= {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3, "lr_scheduler_type": "cosine"}
    return trainer_class(
        model=lora_model(),
        args=Seq2SeqTrainingArguments(str(folder), **settings | arguments),
        train_dataset=LazyDataset(token_rows(64)),
        processing_class=tokenizer(),
        **given or {},
    )


def test_its_own_dataloader_is_refused_with_the_way_out(tmp_path):
    trainer = trainer_of(tmp_path, Seq2SeqTrainer, {"make_callback": make_callback})
    with pytest.raises(ValueError, match=r"BatchSamplerShard.*get_train_dataloader.*hf-gist select"):
        trainer.train()


def test_the_dataloader_of_transformers_in_its_trainer(tmp_path):
    trainer = trainer_of(tmp_path, PlainLoader, {"make_callback": make_callback})
    log = LogCallback()
    trainer.add_callback(log)
    trainer.train()
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, GISTDataSelectorCallback))
    pool = trainer.train_dataset.rows
    logs = [entry for entry in trainer.state.log_history if "tokens" in entry]
    assert log.total_steps == trainer.state.global_step == 2 + 2 * 2
    # the schedule has the length of the run; scored rows do not count in its metrics, selected rows in each pass do
    assert log.rates[0][0] == 1e-3 and log.rates[-1][0] < 1e-4
    warmup = [row for step in (0, 1) for row in callback.run.sampler.rows_of_step(step)]
    selection = callback.selection.indices
    expected = [sum(label != -100 for row in rows for label in pool[row]["labels"]) for rows in (warmup, selection)]
    counted = [sum(entry["tokens"] for entry in logs if at < entry["step"] <= at + 2) for at in (0, 2, 4)]
    assert counted == [expected[0], expected[1], expected[1]]


def test_gast_in_its_trainer(tmp_path):
    class GASTSeq2SeqTrainer(GASTMixin, PlainLoader):
        """Only combines both classes."""

    given = {"gast_config": GASTConfig(keep=2), "support_dataset": token_rows(5, seed=9)}
    trainer = trainer_of(tmp_path, GASTSeq2SeqTrainer, given, num_train_epochs=1)
    trainer.train()
    assert [log["gast_kept_fraction"] for log in trainer.state.log_history if "loss" in log][0] == 0.5


# ---- The program ----


installed = pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="ms-swift is not installed")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sft(folder, dataset, *more):
    flags = {"model": folder / "model", "model_type": "llama", "template": "default", "dataset": dataset}
    flags |= {"tuner_type": "lora", "torch_dtype": "float32", "fp16": "false", "split_dataset_ratio": 0}
    flags |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 4}
    flags |= {"logging_steps": 1, "report_to": "none", "output_dir": folder / "out", "add_version": "false"}
    flags |= {"dataset_num_proc": 1, "dataloader_num_workers": 0, "check_model": "false"}
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "swift.cli.sft", *given, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = max((folder / "out").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return checkpoint, json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


@installed
def test_the_plugin_runs(tmp_path):
    save_model(tmp_path / "model")
    write_rows(tmp_path / "targets.jsonl", varied(6, seed=2))
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN.read_text(encoding="utf-8").replace("budget=0.05", "budget=0.2"), encoding="utf-8")
    pool = write_rows(tmp_path / "pool.jsonl", varied(80, seed=1))
    checkpoint, state = sft(tmp_path, pool, "--external_plugins", str(plugin), "--callbacks", "gist")
    assert state["global_step"] == 1 + 3 * 4 and state["epoch"] == 4
    assert [log["learning_rate"] for log in state["log_history"] if "loss" in log][-1] == 0
    assert (checkpoint / "gist" / "selected.json").exists() and (tmp_path / "out" / "report.html").exists()


@installed
def test_selected_rows_are_a_dataset_of_swift(tmp_path):
    save_model(tmp_path / "model")
    pool = write_rows(tmp_path / "pool.jsonl", varied(40, seed=1))
    targets = write_rows(tmp_path / "targets.jsonl", varied(6, seed=2))
    select = ["select", "--model_name_or_path", tmp_path / "model", "--train_file", pool, "--target_file", targets]
    assert main([*map(str, select), "--budget", "16", "--output_dir", str(tmp_path / "selection")]) == 0
    _, state = sft(tmp_path, Path(tmp_path, "selection", "selected.jsonl"))
    assert state["global_step"] == 4 * 16 / 4
