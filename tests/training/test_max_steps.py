"""`max_steps` with the callback: exactly that many steps from the constructor, and what the epochs allow later."""

import warnings

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.errors import MaxStepsWarning
from hf_gist.training.steps.plan import is_passes_over_pool
from tests.helpers.callback_runs import expected_rates, numbered_rows, train
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


WARMUP = 2
SHAPES = {1: (26, 10), 4: (104, 40)}
"""Accumulation to rows of the pool and of the selection: 7 batches or steps an epoch, 3 steps a pass, the last padded."""


def orders(pool_size, selection, seed=42):
    """The warm-up order, and then the order of each pass."""
    yield torch.randperm(pool_size, generator=torch.Generator().manual_seed(seed)).tolist()
    number = 0
    while True:
        number += 1
        order = torch.randperm(len(selection), generator=torch.Generator().manual_seed(seed + number)).tolist()
        yield [selection[at] for at in order]


def oracle(rows, selection, per_step, max_steps, accumulation):
    """Rows, losses and learning rates of a plain loop: warm-up, then passes until `max_steps`."""
    steps = []
    for number, order in enumerate(orders(len(rows), selection)):
        length = WARMUP if number == 0 else -(-len(order) // per_step)
        for step in range(length):
            steps.append([order[at % len(order)] for at in range(step * per_step, (step + 1) * per_step)])
        if len(steps) >= max_steps:
            break
    steps = steps[:max_steps]
    model, collator = lora_model(), PaddingCollator()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    scheduler = get_scheduler("cosine", optimizer, 2, max_steps)
    losses, rates = [], []
    size = per_step // accumulation
    for numbers in steps:
        batches = [collator([rows[i] for i in numbers[at : at + size]]) for at in range(0, per_step, size)]
        tokens = [int((batch["labels"] != -100).sum()) for batch in batches]
        total = sum(model(**batch).loss * count for batch, count in zip(batches, tokens, strict=True)) / sum(tokens)
        total.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return steps, losses, rates


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("max_steps", [5, 13], ids=["less than the pool", "more than the pool"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_run_and_its_resumed_runs_equal_a_plain_loop(tmp_path, accumulation, workers, max_steps):
    size, budget = SHAPES[accumulation]
    settings = {
        "rows": numbered_rows(size),
        "max_steps": max_steps,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
    }
    config = GISTConfig(budget=budget, warmup_steps=WARMUP)
    trainer, callback, recorder = train(tmp_path, config, **settings)
    rows, losses, rates = oracle(
        settings["rows"], callback.selection.indices, 4 * accumulation, max_steps, accumulation
    )
    assert [r for r in recorder.rows if r] == rows
    assert recorder.rates == pytest.approx(rates)
    assert losses_of(trainer) == pytest.approx(losses, rel=1e-4)
    assert trainer.state.global_step == trainer.state.max_steps == max_steps
    # before the swap, at the swap, and in the middle of a pass
    for stop in [1, 2, max_steps - 1]:
        resumed, _, again = train(tmp_path, config, resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
        assert [r for r in again.rows if r] == rows[stop:], stop
        assert again.rates == pytest.approx(rates[stop:])
        assert losses_of(resumed)[stop:] == pytest.approx(losses[stop:], rel=1e-4)
        assert resumed.state.global_step == max_steps


class Arguments(TrainerCallback):
    """Notes `max_steps` and `num_train_epochs` of the arguments at every event."""

    def __init__(self):
        self.seen = set()

    def note(self, args, state, control, **kwargs):
        self.seen.add((args.max_steps, args.num_train_epochs))

    on_init_end = on_train_begin = on_step_end = on_epoch_end = on_save = on_log = on_train_end = note


def make(tmp_path, callbacks, arguments=None, add=None, eval_dataset=None, **settings):
    settings = {"per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True} | settings
    arguments = arguments or TrainingArguments(str(tmp_path), **settings)
    trainer = Trainer(
        lora_model(),
        arguments,
        train_dataset=as_dataset(numbered_rows(26)),
        eval_dataset=eval_dataset,
        data_collator=PaddingCollator(),
        callbacks=callbacks,
    )
    if add is not None:
        trainer.add_callback(add)
    return trainer


def gist(**config):
    return GISTDataSelectorCallback(GISTConfig(**{"budget": 8, "warmup_steps": 2} | config), targets())


def targets():
    return as_dataset(token_rows(4, seed=5))


def test_the_arguments_are_never_changed(tmp_path):
    first, last = Arguments(), Arguments()
    trainer = make(tmp_path, [first, gist(), last], max_steps=9, save_steps=3)
    before = trainer.args.to_dict()
    trainer.train()
    assert trainer.args.to_dict() == before
    assert first.seen == last.seen == {(9, 3.0)}
    for folder in tmp_path.glob("checkpoint-*"):
        saved = torch.load(folder / "training_args.bin", weights_only=False)
        assert saved.to_dict() == before


def test_max_steps_counts_that_are_set_when_training_begins(tmp_path):
    callback = gist()
    trainer = make(tmp_path, [callback], save_strategy="no", num_train_epochs=3)
    for max_steps, steps in [(9, 9), (4, 4), (-1, 2 + 2 * 2), (30, 30)]:
        trainer.args.max_steps = max_steps
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps == steps
    # the same arguments and callback in another trainer
    trainer.args.max_steps = 11
    other = make(tmp_path, [callback], trainer.args)
    other.train()
    assert other.state.global_step == 11 and trainer.state.global_step == 30


def test_without_the_callback_the_trainer_is_as_before(tmp_path):
    callback = gist()
    trainer = make(tmp_path, [callback], save_strategy="no", max_steps=9)
    trainer.remove_callback(callback)
    trainer.train()
    assert trainer.state.num_train_epochs == 2 and trainer.state.epoch == pytest.approx(9 / 7)


def test_a_smaller_batch_size_has_the_same_number_of_steps(tmp_path):
    class OutOfMemory(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.train_batch_size == 8 and state.global_step == 3:
                raise RuntimeError("CUDA out of memory.")

    trainer = make(
        tmp_path,
        [gist(warmup_steps=1), OutOfMemory()],
        save_strategy="no",
        max_steps=9,
        per_device_train_batch_size=8,
        auto_find_batch_size=True,
    )
    trainer.train()
    assert trainer.state.train_batch_size < 8 and trainer.state.global_step == trainer.state.max_steps == 9


@pytest.mark.parametrize("add", [False, True])
def test_evaluation_and_saving_come_at_the_end_of_each_pass(tmp_path, add):
    # two steps a pass and seven an epoch of the whole pool; the last pass is cut
    callback = gist()
    trainer = make(
        tmp_path,
        [] if add else [callback],
        add=callback if add else None,
        eval_dataset=targets(),
        max_steps=13 if add else 7,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        num_train_epochs=30,
    )
    if add:
        with pytest.warns(MaxStepsWarning):
            trainer.train()
    else:
        trainer.train()
    ends = [2, 4, 6, 8, 9] if add else [2, 4, 6, 7]
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == ends
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == ends
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == ends
    assert trainer.state.num_train_epochs == len(ends)


def test_step_fractions_are_those_of_max_steps(tmp_path):
    trainer = make(tmp_path, [gist()], max_steps=20, logging_steps=0.25, save_steps=0.5)
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [5, 10, 15, 20]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-20"]


@pytest.mark.parametrize("max_steps", [1, 2])
@pytest.mark.parametrize("add", [False, True])
def test_a_run_without_a_selected_row_is_refused(tmp_path, max_steps, add):
    callback = gist()
    trainer = make(tmp_path, [] if add else [callback], add=callback if add else None, max_steps=max_steps)
    with pytest.raises(ValueError, match=rf"`max_steps={max_steps}` leaves no step .* warm-up alone takes 2 steps"):
        trainer.train()


# ---- A callback that is added after the Trainer was made ----


def added_later(tmp_path, **settings):
    return train(tmp_path, GISTConfig(budget=8, warmup_steps=2), rows=numbered_rows(26), add=True, **settings)


@pytest.mark.parametrize(
    ("max_steps", "settings"),
    [
        (28, {}),  # as `Trainer` rounds: 7 batches in each of 4 epochs
        (26, {}),  # as axolotl rounds: 4 * 26 / 4
        (24, {"dataloader_drop_last": True}),
        (14, {"gradient_accumulation_steps": 2, "num_train_epochs": 4}),
        (13, {"gradient_accumulation_steps": 2, "num_train_epochs": 4}),
        (17, {"num_train_epochs": 2.5}),
    ],
    ids=str,
)
def test_epochs_that_max_steps_was_derived_from_are_honoured(tmp_path, max_steps, settings, capsys):
    settings = {"num_train_epochs": 4} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaxStepsWarning)
        trainer, callback, recorder = added_later(tmp_path, max_steps=max_steps, **settings)
    per_pass = 1 if "gradient_accumulation_steps" in settings else 2
    steps = 2 + int((settings["num_train_epochs"] - 1) * per_pass)
    assert trainer.state.global_step == trainer.state.max_steps == steps
    assert trainer.args.max_steps == max_steps
    assert recorder.rates == pytest.approx(expected_rates(steps))
    seen = {row for rows in recorder.rows[2:] for row in rows}
    assert seen == set(callback.selection.indices)
    told = f"`max_steps={max_steps}` is the length of `num_train_epochs={settings['num_train_epochs']:g}` passes"
    assert told in capsys.readouterr().out


def test_otherwise_the_run_goes_as_far_as_the_epochs_reach(tmp_path):
    # 26 batches make three more epochs of 7 steps after the warm-up
    with pytest.warns(MaxStepsWarning, match=r"`max_steps=27` cannot be reached.* 4 epochs .* after 23 steps.*constr"):
        trainer, callback, recorder = added_later(tmp_path, max_steps=27)
    assert trainer.state.global_step == trainer.state.max_steps == 23
    assert recorder.rates == pytest.approx(expected_rates(23))
    after = [row for rows in recorder.rows[2:] for row in rows]
    for start in range(0, 80, 8):
        assert sorted(after[start : start + 8]) == sorted(callback.selection.indices)


def test_max_steps_within_reach_is_kept(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaxStepsWarning)
        trainer, _, recorder = added_later(tmp_path, max_steps=15, num_train_epochs=1)
    assert trainer.state.global_step == 15 and recorder.rates == pytest.approx(expected_rates(15))


@pytest.mark.parametrize(
    ("max_steps", "epochs", "message"),
    [
        (6, 3, "`max_steps=6` is not possible .* added after .* one epoch .*constructor"),
        (7, 1, "`num_train_epochs=1` leaves no epoch for the selected rows"),
    ],
)
def test_only_a_run_that_never_reaches_a_selected_row_is_refused(tmp_path, max_steps, epochs, message):
    with pytest.raises(ValueError, match=message):
        added_later(tmp_path, max_steps=max_steps, num_train_epochs=epochs)


@pytest.mark.parametrize("size", [64, 65, 71, 150])
@pytest.mark.parametrize("per_step", [1, 8, 12])
@pytest.mark.parametrize("epochs", [1, 2.5, 4])
def test_all_ways_to_round_passes_over_the_pool(size, per_step, epochs):
    exact = size * epochs / per_step
    lengths = [
        int(-(-exact // 1)),
        int(exact),
        int(-(-epochs * -(-size // per_step) // 1)),
        int(epochs * (size // per_step)),
    ]
    assert all(is_passes_over_pool(length, epochs, size, per_step) for length in lengths)
    slack = int(epochs) + 2
    assert not is_passes_over_pool(int(exact) + slack, epochs, size, per_step)
    assert not is_passes_over_pool(int(exact) - slack, epochs, size, per_step)
