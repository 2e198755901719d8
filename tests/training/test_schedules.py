"""The learning-rate schedule has the length of the run, however the Trainer creates it."""

import copy
import functools
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, SequentialLR
from transformers import Trainer, get_scheduler

from hf_gist import GISTConfig
from hf_gist.errors import ScheduleLengthWarning
from tests.helpers.callback_runs import numbered_rows, train


WARMUP = 2
WSD = "warmup_stable_decay"


class Overwrites(Trainer):
    """Sets the lengths of the parts for the length that it is told."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        stable = num_training_steps // 3
        self.args.lr_scheduler_kwargs = {"num_stable_steps": stable, "num_decay_steps": num_training_steps - stable}
        return super().create_scheduler(num_training_steps, optimizer)


class FillsIn(Trainer):
    """Sets only those that the user did not set, in the user's dictionary, as LLaMA-Factory does."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        left = num_training_steps - self.args.get_warmup_steps(num_training_steps)
        kwargs = self.args.lr_scheduler_kwargs or {}
        for name, value in {"num_stable_steps": left // 3, "num_decay_steps": left - left // 3}.items():
            kwargs.setdefault(name, value)
        self.args.lr_scheduler_kwargs = kwargs
        return super().create_scheduler(num_training_steps, optimizer)


class NoOptimizerArgument(Trainer):
    """Makes a scheduler of another class, and has only the argument that the Trainer passes."""

    def create_scheduler(self, num_training_steps):
        self.lr_scheduler = CosineAnnealingLR(self.optimizer, num_training_steps)


class OneCycle(Trainer):
    """Changes the first moment's decay too."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = OneCycleLR(self.optimizer, max_lr=0.02, total_steps=num_training_steps, pct_start=0.4)
        return self.lr_scheduler


class TwoParts(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        first = num_training_steps // 2
        parts = [LambdaLR(self.optimizer, lambda step: (step + 1) / first), CosineAnnealingLR(self.optimizer, first)]
        self.lr_scheduler = SequentialLR(self.optimizer, parts, [first])
        return self.lr_scheduler


class Constant(Trainer):
    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = LambdaLR(self.optimizer, lambda step: 0.5)
        return self.lr_scheduler


def rates_of_a_trainer(folder, trainer_class, steps, **arguments):
    """The rates of a Trainer of this class without the callback in a run of `steps` steps."""
    from transformers import TrainingArguments

    from tests.helpers.tiny import lora_model

    trainer = trainer_class(
        lora_model(), TrainingArguments(str(folder), learning_rate=1e-2, report_to=[], **arguments)
    )
    optimizer = trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        trainer.lr_scheduler.step()
    return rates


def run(tmp_path, **arguments):
    config = GISTConfig(budget=8, warmup_steps=WARMUP, after_selection=arguments.pop("after_selection", "continue"))
    return train(tmp_path, config, **({"rows": numbered_rows(60), "num_train_epochs": 6} | arguments))


CASES = {
    "overwrites": (Overwrites, {"lr_scheduler_type": WSD}),
    "fills in": (FillsIn, {"lr_scheduler_type": WSD, "warmup_steps": 3}),
    "fills in, user's minimum": (
        FillsIn,
        {"lr_scheduler_type": WSD, "lr_scheduler_kwargs": {"min_lr_ratio": 0.1, "decay_type": "linear"}},
    ),
    "other class": (NoOptimizerArgument, {}),
    "one cycle": (OneCycle, {}),
    "two parts": (TwoParts, {}),
    "constant": (Constant, {}),
    "stock": (Trainer, {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}),
}


@pytest.mark.parametrize("restart", [False, True], ids=["continue", "restart"])
@pytest.mark.parametrize("case", CASES)
def test_the_trainer_is_asked_for_the_schedule_of_the_true_length(tmp_path, case, restart):
    trainer_class, arguments = CASES[case]
    after = "restart" if restart else "continue"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScheduleLengthWarning)
        trainer, _, recorder = run(
            tmp_path, trainer_class=trainer_class, after_selection=after, **copy.deepcopy(arguments)
        )
    assert trainer.state.global_step == trainer.state.max_steps == 12
    expected = []
    for steps in [WARMUP, 10] if restart else [12]:
        expected += rates_of_a_trainer(tmp_path, trainer_class, steps, **copy.deepcopy(arguments))
    assert recorder.rates == pytest.approx(expected)


@pytest.mark.parametrize("stop", [1, 2, 7])
@pytest.mark.parametrize("case", ["fills in", "one cycle"])
def test_a_resumed_run_has_the_same_rates(tmp_path, case, stop):
    trainer_class, arguments = CASES[case]
    settings = {"trainer_class": trainer_class, "save_strategy": "steps", "save_steps": stop} | arguments
    whole, _, first = run(tmp_path, **copy.deepcopy(settings))
    _, _, second = run(tmp_path, resume=str(tmp_path / f"checkpoint-{stop}"), **copy.deepcopy(settings))
    assert second.rates == pytest.approx(first.rates[stop:])
    assert [r for r in second.rows if r] == [r for r in first.rows if r][stop:]


def test_the_first_moment_follows_one_cycle(tmp_path):
    found = {}

    class Look(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            return OneCycle.create_scheduler(self, num_training_steps)

        def training_step(self, *args, **kwargs):
            found[self.state.global_step] = self.optimizer.param_groups[0]["betas"][0]
            return super().training_step(*args, **kwargs)

    run(tmp_path, trainer_class=Look)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))])
    scheduler = OneCycleLR(optimizer, max_lr=0.02, total_steps=12, pct_start=0.4)
    for step in range(12):
        assert found[step] == pytest.approx(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()


def test_the_arguments_and_the_trainer_are_not_changed_by_asking(tmp_path):
    calls = []

    class Notes(FillsIn):
        def create_scheduler(self, num_training_steps, optimizer=None):
            calls.append((num_training_steps, self))
            return super().create_scheduler(num_training_steps, optimizer)

    kwargs = {"min_lr_ratio": 0.1}
    trainer, _, _ = run(tmp_path, trainer_class=Notes, lr_scheduler_type=WSD, lr_scheduler_kwargs=kwargs)
    own = [steps for steps, asked in calls if asked is trainer]
    # 15 batches an epoch, 6 epochs: what this class itself leaves in the arguments
    assert own == [90] and trainer.args.lr_scheduler_kwargs == kwargs | {"num_stable_steps": 30, "num_decay_steps": 60}
    trainer.train()
    assert trainer.state.global_step == 12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_stable_steps": 20, "num_decay_steps": 5},
            "num_stable_steps=20.* never decays: the decay starts after 20",
        ),
        ({"num_stable_steps": 6, "num_decay_steps": 20}, "only 6 of 20 steps of decay are done"),
        ({"num_stable_steps": 3, "num_decay_steps": 5}, "the last 4 of them after the decay"),
        ({"num_decay_steps": 13}, "fixes num_decay_steps=13, but the schedule has 12 steps, fewer than 0"),
    ],
)
@pytest.mark.parametrize("trainer_class", [Trainer, FillsIn])
def test_lengths_that_the_user_fixed_are_kept_and_named_if_they_do_not_fit(tmp_path, trainer_class, kwargs, message):
    if trainer_class is FillsIn and "num_stable_steps" not in kwargs:
        pytest.skip("this class fills in the other length")
    arguments = {"lr_scheduler_type": WSD, "lr_scheduler_kwargs": kwargs}
    with pytest.warns(ScheduleLengthWarning, match=message):
        _, _, recorder = run(tmp_path, trainer_class=trainer_class, **copy.deepcopy(arguments))
    assert recorder.rates == pytest.approx(rates_of_a_trainer(tmp_path, Trainer, 12, **arguments))


@pytest.mark.parametrize("kwargs", [{"num_decay_steps": 5}, {"num_stable_steps": 4, "num_decay_steps": 8}], ids=str)
def test_lengths_that_fit_are_not_warned_of(tmp_path, kwargs):
    arguments = {"lr_scheduler_type": WSD, "lr_scheduler_kwargs": kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScheduleLengthWarning)
        _, _, recorder = run(tmp_path, **copy.deepcopy(arguments))
    assert recorder.rates == pytest.approx(rates_of_a_trainer(tmp_path, Trainer, 12, **arguments))
    assert recorder.rates[0] == 1e-2 and recorder.rates[-1] < 1e-2


@pytest.mark.parametrize("make", [lambda o: get_scheduler("linear", o, 0, 25), lambda o: CosineAnnealingLR(o, 25)])
def test_a_scheduler_that_was_passed_to_the_trainer_is_kept_with_a_warning(tmp_path, make):
    class Passed(Trainer):
        def __init__(self, model, **kwargs):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            super().__init__(model, optimizers=(optimizer, make(optimizer)), **kwargs)

    with pytest.warns(ScheduleLengthWarning, match="was not made by the Trainer's `create_scheduler`"):
        _, _, recorder = run(tmp_path, trainer_class=Passed)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))], lr=1e-2)
    scheduler = make(optimizer)
    for rate in recorder.rates:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_a_scheduler_that_follows_a_metric_has_no_length(tmp_path):
    from tests.helpers.tiny import as_dataset, token_rows

    trainer_class = functools.partial(Trainer, eval_dataset=as_dataset(token_rows(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScheduleLengthWarning)
        arguments = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}
        trainer, _, _ = run(tmp_path, trainer_class=trainer_class, metric_for_best_model="loss", **arguments)
    assert trainer.state.global_step == 12
