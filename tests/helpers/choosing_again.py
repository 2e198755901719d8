"""A plain loop that trains, selects with `select()` and trains on, as the oracle of `reselect_every`."""

import dataclasses
import itertools
import math

import torch

from hf_gist import GISTConfig, select
from hf_gist.functional.selection.draws import seed_of_selection
from hf_gist.gist.scorers.less import adam_checkpoint
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model


RATE = 1e-2


def shuffled(rows, seed):
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[at] for at in order]


class PlainLoop:
    """Trains one step after the other, and selects by the model and the optimizer of the moment."""

    def __init__(self, rows, targets, config, per_step):
        self.rows, self.targets, self.config, self.per_step = rows, as_dataset(targets), config, per_step
        self.model, self.collator = lora_model(), PaddingCollator()
        self.start = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self.steps, self.losses, self.rates, self.selections = [], [], [], []
        self.begin_schedule()

    def begin_schedule(self):
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        self.since = len(self.steps)

    def restart(self):
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.start:
                    parameter.copy_(self.start[name])
        self.begin_schedule()

    def choose(self):
        """The rows that `select()` selects now, with the draws of this selection."""
        number = len(self.selections) + 1
        config = dataclasses.replace(
            self.config,
            reselect_every=None,
            reselect_share=1.0,
            seed=seed_of_selection(self.config.seed, number) if self.config.scorer != "less" else self.config.seed,
        )
        given = {}
        if config.scorer == "less":
            given["checkpoints"] = [adam_checkpoint(self.model, self.optimizer, 1.0)]
        pool = as_dataset(self.rows)
        found = select(self.model, pool, self.targets, config, data_collator=self.collator, progress=False, **given)
        self.selections.append(found.indices)
        return found.indices

    def train(self, order, steps, length):
        """Some steps over an order of rows; `length` is that of the linear schedule."""
        for step in range(steps):
            numbers = [order[at % len(order)] for at in range(step * self.per_step, (step + 1) * self.per_step)]
            rate = RATE * max(0.0, (length - (len(self.steps) - self.since)) / length)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.model(**self.collator([self.rows[i] for i in numbers])).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps.append(numbers)
            self.losses.append(loss.item())
            self.rates.append(rate)


def plain_run(rows, targets, config: GISTConfig, passes, per_step=4):
    """Warm-up of `config.warmup_steps`, then `passes` passes with a selection before the first of every few."""
    loop = PlainLoop(rows, targets, config, per_step)
    warmup = config.warmup_steps
    per_pass = math.ceil(min(config.budget, len(rows)) / per_step)
    total = warmup + math.ceil(passes * per_pass)
    restart = config.after_selection == "restart"
    loop.train(shuffled(list(range(len(rows))), config.seed), warmup, warmup if restart else total)
    for number in itertools.count():
        left = total - len(loop.steps)
        if left <= 0:
            return loop
        if number % (config.reselect_every or passes) == 0:
            selected = loop.choose()
            if restart and number == 0:
                loop.restart()
        order = shuffled(selected, config.seed + 1 + number)
        loop.train(order, min(per_pass, left), total - warmup if restart else total)
