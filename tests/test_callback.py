"""`GISTDataSelectorCallback` in a stock Trainer: what is trained on, when, and at which learning rate."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import IterableDataset
from transformers import OPTConfig, OPTForCausalLM, Trainer, TrainerCallback, TrainingArguments, get_scheduler

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.errors import NoEffectWarning, ResumedStepWarning, SelectionNotVerifiedWarning
from hf_gist.gist.scorers.less import adam_checkpoint
from hf_gist.training.gist_run import GISTRun
from tests.helpers.callback_runs import expected_rates, numbered_rows, train
from tests.helpers.tiny import VOCABULARY, PaddingCollator, as_dataset, lora_model, patterned_rows, token_rows


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_only_selected_rows_in_whole_passes_at_the_right_rate(tmp_path, accumulation, workers):
    trainer, callback, recorder = train(
        tmp_path,
        GISTConfig(budget=32, warmup_ratio=0.1),
        gradient_accumulation_steps=accumulation,
        dataloader_num_workers=workers,
    )
    per_step = 4 * accumulation
    warmup, per_pass = -(-15 // per_step), 32 // per_step
    steps = [rows for rows in recorder.rows if rows]
    assert [len(rows) for rows in steps] == [per_step] * (warmup + 2 * per_pass)
    warm = [row for rows in steps[:warmup] for row in rows]
    assert len(set(warm)) == len(warm) and not set(warm) <= set(callback.selection.indices)
    for number in range(2):
        start = warmup + number * per_pass
        seen = [row for rows in steps[start : start + per_pass] for row in rows]
        assert sorted(seen) == sorted(callback.selection.indices)
    assert steps[warmup : warmup + per_pass] != steps[warmup + per_pass :]
    total = warmup + 2 * per_pass
    assert trainer.state.global_step == trainer.state.max_steps == total
    assert recorder.rates == pytest.approx(expected_rates(total))
    assert trainer.state.epoch == pytest.approx(3.0)
    assert recorder.epochs == pytest.approx(
        [s / warmup for s in range(1, warmup + 1)] + [1 + s / per_pass for s in range(1, 2 * per_pass + 1)]
    )
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == total


def test_a_pass_that_does_not_divide_is_filled_from_its_own_start(tmp_path):
    trainer, callback, recorder = train(tmp_path, GISTConfig(budget=10, warmup_steps=2), num_train_epochs=2)
    steps = [rows for rows in recorder.rows if rows][2:]
    seen = [row for rows in steps for row in rows]
    assert [len(rows) for rows in steps] == [4, 4, 4]
    assert set(seen) == set(callback.selection.indices) and seen[10:] == seen[:2]


def test_one_by_eight_and_eight_by_one_accumulation_give_the_same_losses(tmp_path):
    config = GISTConfig(budget=24, warmup_steps=2)
    losses = []
    for batch, accumulation in ((1, 8), (8, 1)):
        trainer, callback, _ = train(
            tmp_path, config, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_constructor_and_add_callback_are_the_same(tmp_path):
    outcomes = [train(tmp_path, add=add) for add in (False, True)]
    assert outcomes[0][1].selection.indices == outcomes[1][1].selection.indices
    assert outcomes[0][2].rows == outcomes[1][2].rows
    assert outcomes[0][2].rates == outcomes[1][2].rates


@pytest.mark.parametrize("add", [False, True])
def test_the_progress_bar_has_the_true_length(tmp_path, add, monkeypatch):
    from transformers import trainer_callback

    totals = []
    close = trainer_callback.tqdm.close

    def note(bar):
        if getattr(bar, "total", None) is not None and bar.desc in (None, ""):
            totals.append((bar.total, bar.n))
        close(bar)

    monkeypatch.setattr(trainer_callback.tqdm, "close", note)
    trainer, _, _ = train(tmp_path, add=add, disable_tqdm=False)
    assert (trainer.state.max_steps, trainer.state.max_steps) in totals


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.2},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-4}},
    ],
    ids=lambda a: "-".join([a["lr_scheduler_type"], *a.get("lr_scheduler_kwargs", {})]),
)
def test_other_schedules_have_the_true_length_too(tmp_path, arguments):
    trainer, _, recorder = train(tmp_path, **arguments)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-2)
    total = trainer.state.max_steps
    scheduler = get_scheduler(
        arguments["lr_scheduler_type"],
        optimizer,
        trainer.args.get_warmup_steps(total),
        total,
        scheduler_specific_kwargs=arguments.get("lr_scheduler_kwargs"),
    )
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert recorder.rates == pytest.approx(expected)


def test_restart_begins_again_from_the_initial_adapter(tmp_path):
    start = {n: p.detach().clone() for n, p in lora_model().named_parameters() if p.requires_grad}
    found = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step in (4, 5):
                values = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
                found[state.global_step] = values, len(optimizer.state)

    config = GISTConfig(budget=20, warmup_steps=4, after_selection="restart")
    trainer, callback, recorder = train(tmp_path, config, extra=[Look()])
    values, moments = found[4]
    assert all(torch.equal(values[n], start[n]) for n in start) and moments == 0
    assert any(not torch.equal(found[5][0][n], start[n]) for n in start)
    assert recorder.rates == pytest.approx(expected_rates(4) + expected_rates(10))

    after = [e["loss"] for e in trainer.state.log_history if "loss" in e][4:]
    plain = plain_training_on(tmp_path, callback, recorder)
    assert after == pytest.approx(plain, rel=1e-5)


def plain_training_on(tmp_path, callback, recorder):
    """The losses of a stock loop over the batches recorded after the swap, from the initial adapter."""
    model, rows, collator = lora_model(), numbered_rows(150), PaddingCollator()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, 0, 10)
    losses = []
    for numbers in [r for r in recorder.rows if r][4:]:
        loss = model(**collator([rows[i] for i in numbers])).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_continue_keeps_the_warmed_up_adapter_and_the_optimizer(tmp_path):
    start = {n: p.detach().clone() for n, p in lora_model().named_parameters() if p.requires_grad}
    found = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            if state.global_step == 4:
                found["moved"] = any(
                    not torch.equal(p, start[n]) for n, p in model.named_parameters() if p.requires_grad
                )
                found["moments"] = len(optimizer.state)

    train(tmp_path, GISTConfig(budget=20, warmup_steps=4), extra=[Look()])
    assert found["moved"] and found["moments"] > 0


def test_the_whole_pool_with_drop_last_has_its_true_length(tmp_path):
    arguments = {"dataloader_drop_last": True, "num_train_epochs": 2, "rows": numbered_rows(99)}
    with pytest.warns(NoEffectWarning, match="kept the whole pool"):
        trainer, _, recorder = train(tmp_path, GISTConfig(budget=1.0, warmup_steps=2), **arguments)
    assert trainer.state.global_step == trainer.state.max_steps == 2 + 24
    assert recorder.rates == pytest.approx(expected_rates(26))


def test_a_collator_without_an_attention_mask_is_checked_too(tmp_path):
    class NoMask(PaddingCollator):
        def __call__(self, rows):
            return {name: value for name, value in super().__call__(rows).items() if name != "attention_mask"}

    callback = GISTDataSelectorCallback(GISTConfig(budget=20), as_dataset(token_rows(4, seed=5)))
    trainer = Trainer(
        lora_model(),
        TrainingArguments(
            str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, report_to=[], disable_tqdm=True
        ),
        train_dataset=as_dataset(numbered_rows(60)),
        data_collator=NoMask(),
        callbacks=[callback],
    )
    trainer.train()
    assert callback.run.row_check.done and trainer.state.global_step == trainer.state.max_steps


def test_max_steps_is_kept_over_several_passes(tmp_path):
    trainer, callback, recorder = train(tmp_path, GISTConfig(budget=8, warmup_steps=3), max_steps=40)
    assert trainer.state.global_step == 40
    after = [row for rows in recorder.rows[3:] for row in rows]
    assert set(after) == set(callback.selection.indices)
    assert recorder.rates == pytest.approx(expected_rates(40))
    for start in range(0, 36 * 4, 8):
        assert sorted(after[start : start + 8]) == sorted(callback.selection.indices)


def test_a_token_budget_gets_its_true_length_at_the_swap(tmp_path):
    config = GISTConfig(budget=0.1, budget_unit="tokens", warmup_steps=3)
    trainer, callback, recorder = train(tmp_path, config)
    tokens = callback.selection.measurements.label_tokens
    kept = callback.selection.indices
    assert 0 < int(tokens[kept].sum()) <= 0.1 * int(tokens.sum())
    per_pass = -(-len(kept) // 4)
    assert trainer.state.global_step == trainer.state.max_steps == 3 + 2 * per_pass
    assert recorder.rates[-1] == pytest.approx(expected_rates(3 + 2 * per_pass)[-1])


def test_the_selection_does_not_depend_on_the_trainer(tmp_path):
    """The callback inside training and `select()` on the same weights keep the same rows."""
    from hf_gist import select

    caught = {}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                caught["model"] = copy.deepcopy(model)

    targets = as_dataset(token_rows(4, seed=5))
    config = GISTConfig(budget=20, warmup_steps=3)
    _, callback, _ = train(tmp_path, config, extra=[Look()])
    offline = select(
        caught["model"],
        as_dataset(numbered_rows(150)),
        targets,
        config,
        data_collator=PaddingCollator(),
        progress=False,
    )
    assert offline.indices == callback.selection.indices
    torch.testing.assert_close(offline.scores, callback.selection.scores)


def test_artifacts_are_in_the_output_folder(tmp_path):
    _, callback, _ = train(tmp_path)
    assert Selection.load(tmp_path / "gist").indices == callback.selection.indices


@pytest.mark.parametrize("after_selection", ["continue", "restart"])
@pytest.mark.parametrize("stop", [2, 4, 9])
def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path, stop, after_selection):
    config = GISTConfig(budget=20, warmup_steps=4, after_selection=after_selection)
    settings = {"save_strategy": "steps", "save_steps": stop, "gradient_accumulation_steps": 2}
    whole, callback, recorder = train(tmp_path, config, **settings)
    resumed, again, second = train(tmp_path, config, resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
    assert resumed.state.global_step == whole.state.global_step == 10
    assert again.selection.indices == callback.selection.indices
    assert [r for r in second.rows if r] == [r for r in recorder.rows if r][stop:]
    assert second.rates == pytest.approx(recorder.rates[stop:])
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[1][-3:] == pytest.approx(losses[0][-3:], rel=1e-5)


def test_resuming_without_the_initial_adapter_says_which_run_writes_it(tmp_path):
    config = GISTConfig(budget=20, warmup_steps=2, after_selection="restart")
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    train(tmp_path, config, **settings)
    (tmp_path / "gist" / "initial_adapter.safetensors").unlink()
    with pytest.raises(
        ValueError, match="initial_adapter.safetensors does not exist; it is written before the first step of"
    ):
        train(tmp_path, config, resume=str(tmp_path / "checkpoint-1"), **settings)


@pytest.mark.parametrize("stop", [5, 8])
def test_a_resumed_run_crosses_the_end_of_the_pool_without_a_short_step(tmp_path, stop):
    # 26 batches, 4 a step: Trainer's epochs have 7 steps, the last with 2 batches only
    config = GISTConfig(budget=50, warmup_steps=5)
    settings = {
        "save_strategy": "steps",
        "save_steps": stop,
        "gradient_accumulation_steps": 4,
        "rows": numbered_rows(104),
    }
    settings |= {"num_train_epochs": 4, "eval_strategy": "no"}
    whole, callback, recorder = train(tmp_path, config, **settings)
    resumed, again, second = train(tmp_path, config, resume=str(tmp_path / f"checkpoint-{stop}"), **settings)
    assert whole.state.global_step == resumed.state.global_step == 5 + 3 * 4
    assert {len(rows) for rows in recorder.rows if rows} == {16}
    assert [r for r in second.rows if r] == [r for r in recorder.rows if r][stop:]
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed)]
    assert losses[1][-(17 - stop) :] == pytest.approx(losses[0][stop:], rel=1e-5)


def test_the_one_step_that_cannot_be_kept_whole_is_named(tmp_path):
    config = GISTConfig(budget=50, warmup_steps=5)
    settings = {
        "save_strategy": "steps",
        "save_steps": 6,
        "gradient_accumulation_steps": 4,
        "rows": numbered_rows(104),
    }
    train(tmp_path, config, **settings)
    with pytest.warns(ResumedStepWarning, match="The first step after resuming at step 6 has fewer batches"):
        resumed, _, second = train(tmp_path, config, resume=str(tmp_path / "checkpoint-6"), **settings)
    assert len(second.rows[0]) == 8 and {len(rows) for rows in second.rows[1:] if rows} == {16}


def test_epochs_of_a_resumed_run_that_end_within_a_pass_are_no_epochs_to_others(tmp_path):
    config = GISTConfig(budget=50, warmup_steps=5)
    settings = {"save_strategy": "epoch", "gradient_accumulation_steps": 4, "rows": numbered_rows(104)}
    settings |= {"num_train_epochs": 4}
    train(tmp_path, config, **settings)
    saved = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert saved == [5, 9, 13, 17]
    for step in (9, 13, 17):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    train(tmp_path, config, resume=str(tmp_path / "checkpoint-5"), **settings)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == saved


def test_resuming_with_another_config_is_refused_and_a_finished_run_is_no_mistake(tmp_path, recwarn):
    settings = {"save_strategy": "steps", "save_steps": 15}
    trainer, _, _ = train(tmp_path, GISTConfig(budget=20, warmup_steps=5), **settings)
    assert trainer.state.global_step == 15
    checkpoint = str(tmp_path / "checkpoint-15")
    train(tmp_path, GISTConfig(budget=20, warmup_steps=5), resume=checkpoint, **settings)
    assert not [w for w in recwarn if issubclass(w.category, NoEffectWarning)]
    with pytest.raises(ValueError, match="made with another GISTConfig"):
        train(tmp_path, GISTConfig(budget=19, warmup_steps=5), resume=checkpoint, **settings)


class Evaluating(Trainer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, eval_dataset=as_dataset(token_rows(4, seed=8)))


def test_a_finished_run_that_is_resumed_is_not_evaluated_and_saved_again(tmp_path):
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "trainer_class": Evaluating}
    config = GISTConfig(budget=20, warmup_steps=5)
    whole, _, _ = train(tmp_path, config, **settings)
    shutil.copytree(tmp_path / "checkpoint-15", tmp_path / "copy")
    shutil.rmtree(tmp_path / "checkpoint-15" / "gist")
    resumed, _, recorder = train(tmp_path, config, resume=str(tmp_path / "checkpoint-15"), **settings)
    assert not [rows for rows in recorder.rows if rows]
    evaluations = [[e["step"] for e in t.state.log_history if "eval_loss" in e] for t in (whole, resumed)]
    assert evaluations[0] == evaluations[1] == [5, 10, 15]
    # what a repeated save would have written
    assert not (tmp_path / "checkpoint-15" / "gist").exists()


def test_a_run_that_is_stopped_within_a_pass_is_saved_and_evaluated_as_any_other(tmp_path):
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 7
            return control

    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "trainer_class": Evaluating}
    trainer, _, _ = train(tmp_path, GISTConfig(budget=20, warmup_steps=5), extra=[Stops()], **settings)
    assert trainer.state.global_step == 7 and (tmp_path / "checkpoint-7" / "gist" / "selected.json").is_file()
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [5, 7]


def test_resuming_in_another_output_folder_names_both(tmp_path):
    config = GISTConfig(budget=20, warmup_steps=5)
    train(tmp_path / "one", config, save_strategy="steps", save_steps=8)
    message = "`resume_from_checkpoint` names a checkpoint of step 8.*`output_dir=.*two` has no selection"
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "two", config, resume=str(tmp_path / "one" / "checkpoint-8"))
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    train(tmp_path / "three", config, resume=str(tmp_path / "three" / "checkpoint-8"))


def test_a_hyperparameter_search_is_refused(tmp_path):
    class Searching(Trainer):
        def train(self, *args, **kwargs):
            self.hp_search_backend = "optuna"
            return super().train(*args, **kwargs)

    with pytest.raises(ValueError, match="`hyperparameter_search` trains in a folder of each trial"):
        train(tmp_path, trainer_class=Searching)


OF_ANOTHER_TOKENIZER = [{**row, "input_ids": [*row["input_ids"][:-1], 5000]} for row in token_rows(60)]


@pytest.mark.parametrize(
    ("architecture", "lora", "rows", "message"),
    [
        ("gpt2", {}, token_rows(60, low=70, high=80), "The longest row of `train_dataset` has .* tokens"),
        (
            "llama",
            {},
            OF_ANOTHER_TOKENIZER,
            "A row of `train_dataset` has the token id 5000, but the model has .* emb",
        ),
        ("opt", {"target_modules": ["fc1"]}, numbered_rows(60), "fc1.* gets .* rows for a batch of 2 samples"),
    ],
)
def test_what_the_model_cannot_do_shows_before_the_first_step(tmp_path, architecture, lora, rows, message):
    if architecture == "opt":
        config = OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        )
        model = get_peft_model(
            OPTForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **lora)
        )
    else:
        model = lora_model(architecture, **lora)

    class NoStep(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            pytest.fail("a step was taken")

    callback = GISTDataSelectorCallback(GISTConfig(budget=20), as_dataset(token_rows(4, seed=5)))
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, report_to=[])
    with pytest.raises(ValueError, match=message):
        Trainer(
            model,
            arguments,
            train_dataset=as_dataset(rows),
            data_collator=PaddingCollator(),
            callbacks=[callback, NoStep()],
        ).train()


class Stream(IterableDataset):
    def __iter__(self):
        yield from numbered_rows(150)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train_epochs": 1}, r"`num_train_epochs=1.*Set `num_train_epochs` to 1 \+"),
        ({"max_steps": 2}, "`max_steps=2` leaves no step for the selected rows"),
        ({"config": {"warmup_steps": 100}}, "`warmup_steps=100` gives a warm-up of 100"),
        ({"config": {"budget": 0.001}}, "selects nothing"),
        ({"config": {"budget": 151}}, "more than the 150 rows"),
        ({"config": {"target_group_column": "task"}}, "'task'. is not a column"),
        (
            {"config": {"source_column": "source"}},
            "`source_column='source'` is not a column of the trainer's rows; they",
        ),
        (
            {"targets": "targets.jsonl"},
            r"`target_dataset` is the text 'targets.jsonl', not a dataset.*load_dataset\('json'",
        ),
        ({"targets": Path("targets.jsonl")}, "`target_dataset` is the text 'targets.jsonl'"),
        ({"targets": [{"messages": []}]}, "does not have the column.* input_ids, labels of the .*; it has messages"),
        ({"targets": as_dataset(token_rows(1)).select([])}, "`target_dataset` is empty"),
        ({"targets": as_dataset([{"input_ids": [5, 6], "labels": [-100, -100]}])}, "No labelled token"),
        ({"targets": as_dataset([{"text": "hello"}])}, "does not have the column"),
        ({"rows": [{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 150}, "No labelled token in 150 rows of `train"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(tmp_path, change, message):
    change = dict(change)
    config = GISTConfig(**({"budget": 20} | change.pop("config", {})))
    callback = GISTDataSelectorCallback(config, change.pop("targets", as_dataset(token_rows(4, seed=5))))

    class NoStep(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            pytest.fail("a step was taken")

    with pytest.raises(ValueError, match=message):
        train(tmp_path, callback=callback, extra=[NoStep()], **change)


def test_streams_frozen_models_and_wrong_types_are_refused(tmp_path):
    targets = as_dataset(token_rows(4, seed=5))
    callback = GISTDataSelectorCallback(GISTConfig(), targets)
    arguments = TrainingArguments(str(tmp_path), max_steps=20, report_to=[])
    with pytest.raises(ValueError, match="streaming dataset"):
        Trainer(
            lora_model(), arguments, train_dataset=Stream(), data_collator=PaddingCollator(), callbacks=[callback]
        ).train()
    with pytest.raises(ValueError, match="must be a GISTConfig, got dict"):
        GISTDataSelectorCallback({"budget": 0.1}, targets)
    with pytest.raises(ValueError, match="`target_dataset` is missing"):
        GISTDataSelectorCallback(GISTConfig())


def test_source_column_comes_from_the_dataset_given_to_the_callback(tmp_path):
    rows = patterned_rows(150)
    callback = GISTDataSelectorCallback(
        GISTConfig(budget=20, source_column="source"),
        as_dataset(patterned_rows(4, seed=5)),
        train_dataset=as_dataset(rows),
    )
    train(tmp_path, callback=callback, rows=rows)
    assert callback.selection.measurements.sources == [row["source"] for row in rows]


def test_rows_that_were_not_selected_are_noticed(tmp_path):
    class Meddles(TrainerCallback):
        def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
            if state.global_step:
                train_dataloader.set_sampler(range(140))

    callback = GISTDataSelectorCallback(GISTConfig(budget=5), as_dataset(token_rows(4, seed=5)))
    with pytest.raises(RuntimeError, match="were not selected"):
        train(tmp_path, callback=callback, extra=[Meddles()])


def test_a_collator_that_changes_tokens_each_time_is_said_to_be_unchecked(tmp_path):
    class Masks(PaddingCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            return batch | {"input_ids": torch.randint_like(batch["input_ids"], 3, VOCABULARY)}

    callback = GISTDataSelectorCallback(GISTConfig(budget=20), as_dataset(token_rows(4, seed=5)))
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    with pytest.warns(SelectionNotVerifiedWarning):
        Trainer(
            lora_model(),
            arguments,
            train_dataset=as_dataset(numbered_rows(60)),
            data_collator=Masks(),
            callbacks=[callback],
        ).train()


def test_keeping_everything_and_stopping_early_are_said_to_have_no_effect(tmp_path):
    with pytest.warns(NoEffectWarning, match="kept the whole pool"):
        train(tmp_path, GISTConfig(budget=1.0), num_train_epochs=2, rows=numbered_rows(24))

    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    with pytest.warns(NoEffectWarning, match="Training ended at step 1"):
        train(tmp_path, extra=[Stops()])


def test_evaluation_saving_and_the_best_model_keep_working(tmp_path):
    model = lora_model()
    callback = GISTDataSelectorCallback(GISTConfig(budget=20), as_dataset(token_rows(4, seed=5)))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_train_epochs=3,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=as_dataset(numbered_rows(100)),
        eval_dataset=as_dataset(token_rows(10, seed=9)),
        data_collator=PaddingCollator(),
        callbacks=[callback],
    )
    trainer.train()
    evaluations = [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluations == [1.0, 2.0, 3.0]
    assert trainer.state.best_model_checkpoint is not None


def test_the_model_is_left_without_hooks(tmp_path):
    trainer, _, _ = train(tmp_path)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in trainer.model.modules())
    assert hooks == 1  # the recorder's own


@pytest.mark.parametrize(
    "choice",
    [
        {"strategy": "random"},
        {"strategy": "length_matched_random"},
        {"score": "grad_norm"},
        {"scorer": "rds_plus"},
        {"scorer": "less"},
        {"scoring_cost": 0.8},
        {"score_layers": 1},
    ],
    ids=str,
)
def test_baselines_and_cheaper_scorings_go_through_the_same_swap(tmp_path, choice):
    config = GISTConfig(budget=20, warmup_ratio=0.1, **choice)
    trainer, callback, recorder = train(tmp_path, config, max_grad_norm=1.0)
    seen = [row for rows in recorder.rows[4:] for row in rows]
    assert sorted(seen) == sorted(callback.selection.indices * 2)
    assert Selection.load(tmp_path / "gist").indices == callback.selection.indices


def test_a_cost_that_pays_for_too_few_rows_is_refused_before_the_first_step(tmp_path):
    config = GISTConfig(budget=20, warmup_ratio=0.1, scoring_cost=0.15)
    with pytest.raises(ValueError, match=r"after 0\.1\d+ training passes over the pool for the warm-up"):
        train(tmp_path, config)
    assert not (tmp_path / "gist").exists()


def test_the_cost_of_the_warm_up_is_part_of_the_limit(tmp_path):
    config = GISTConfig(budget=20, warmup_ratio=0.1, scoring_cost=0.5)
    trainer, callback, _ = train(tmp_path, config)
    costs = callback.selection.costs
    assert [phase.phase for phase in costs.phases][:2] == ["warm-up", "shortlist"]
    assert 0.4 < costs.selection_passes() <= 0.5
    assert callback.selection.manifest["scoring_plan"]["warmup"] > 0.08


def test_less_in_the_callback_uses_the_live_optimizer(tmp_path, monkeypatch):
    offline = []

    def swap(run, state, original=GISTRun.swap):
        parts, inputs = run.parts, run.inputs
        checkpoint = adam_checkpoint(parts.model, parts.optimizer, 0.5)
        assert checkpoint.steps == 4 and all(float(v.sum()) > 0 for _, v in checkpoint.moments.values())
        given = {"data_collator": parts.collator, "checkpoints": [checkpoint]}
        offline.append(select(parts.model, inputs.pool, inputs.targets, run.config, **given))
        original(run, state)

    monkeypatch.setattr(GISTRun, "swap", swap)
    config = GISTConfig(budget=20, warmup_ratio=0.1, scorer="less")
    callback = GISTDataSelectorCallback(config, as_dataset(token_rows(4, seed=5)))
    train(tmp_path, callback=callback)
    (selected,) = offline
    assert selected.indices == callback.selection.indices
    plain = callback.selection.measurements.coordinates
    assert torch.equal(selected.measurements.coordinates, plain) and plain.abs().sum() > 0


def test_less_refuses_another_optimizer_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="needs the moments of torch's Adam or AdamW, got SGD"):
        train(tmp_path, GISTConfig(budget=20, scorer="less"), optim="sgd")
