"""Trainings with `GISTDataSelectorCallback` that record the rows and the learning rate of every step."""

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.training.watch.target_watch import TargetWatch
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


def numbered_rows(size):
    """Rows that carry their own number in their first two tokens."""
    rows = token_rows(size, seed=7, low=6, high=10)
    for number, row in enumerate(rows):
        row["input_ids"][:2] = [3 + number // 90, 3 + number % 90]
    return rows


class Recorder(TrainerCallback):
    """Notes the row numbers that reach the model, step by step, and the learning rate used for each step."""

    def __init__(self, model):
        self.rows, self.rates, self.epochs = [[]], [], []
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        if module.training:
            self.rows[-1] += [(a - 3) * 90 + b - 3 for a, b in kwargs["input_ids"][:, :2].tolist()]

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        self.rows.append([])
        self.epochs.append(state.epoch)


def train(
    tmp_path,
    config=None,
    rows=None,
    callback=None,
    add=False,
    trainer_class=Trainer,
    resume=None,
    extra=(),
    **arguments,
):
    model = lora_model()
    callback = callback or GISTDataSelectorCallback(config or GISTConfig(budget=20), as_dataset(token_rows(4, seed=5)))
    recorder = Recorder(model)
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "max_grad_norm": 0.0,
    } | arguments
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(str(tmp_path), **settings),
        train_dataset=as_dataset(rows or numbered_rows(150)),
        data_collator=PaddingCollator(),
        callbacks=[*extra, recorder] if add else [*extra, callback, recorder],
    )
    if add:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback, recorder


def expected_rates(steps, warmup_steps=0, kind="linear"):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-2)
    scheduler = get_scheduler(kind, optimizer, warmup_steps, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def plan_losses(monkeypatch, by_step):
    """Mean losses by optimizer step in place of the measured ones."""
    original = TargetWatch._losses

    def planned(self, state):
        facts = original(self, state)
        facts.losses[:] = by_step[state.global_step]
        return facts

    monkeypatch.setattr(TargetWatch, "_losses", planned)
