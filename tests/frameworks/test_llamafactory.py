"""LLaMA-Factory 0.9.5: really run where it is installed, and otherwise what it hands to its Trainer."""

import importlib.util
import json
import subprocess
import sys
from functools import WRAPPER_ASSIGNMENTS, partial, wraps
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from torch.utils.checkpoint import checkpoint
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from hf_gist import GASTConfig, GASTMixin, GISTConfig, GISTDataSelectorCallback
from tests import ROOT
from tests.helpers.tiny import as_dataset, lora_model, token_rows
from tests.helpers.words import save_model, tokenizer, varied


FRAMEWORKS = ROOT / "recipes" / "frameworks"
MEDIA = {"images": None, "videos": None, "audios": None}


# ---- What it hands over ----


def block_of(func):
    """The block of a checkpointed function: a bound method or, in later versions of transformers, its first argument."""
    inner = func.func if isinstance(func, partial) else func
    return inner.__self__ if hasattr(inner, "__self__") or not isinstance(func, partial) else func.args[0]


def checkpointing_of_trainable_layers(function):
    """`get_custom_gradient_checkpointing_func`: reads the block from the function that it is given."""

    @wraps(function, assigned=(*WRAPPER_ASSIGNMENTS, "__self__"))
    def custom(func, *args, **kwargs):
        if not any(parameter.requires_grad for parameter in block_of(func).parameters()):
            return func(*args, **kwargs)
        next(arg for arg in args if torch.is_tensor(arg) and torch.is_floating_point(arg)).requires_grad_(True)
        return function(func, *args, **kwargs)

    return custom


class Collator(DataCollatorForSeq2Seq):
    """Takes the media columns off every row, in place, and pads to a multiple of 8."""

    def __call__(self, features):
        for feature in features:
            assert [feature.pop(name) for name in MEDIA] == [None] * 3
        return super().__call__(features)


class CustomSeq2SeqTrainer(Seq2SeqTrainer):
    """Its sampler, its optimizer with a rate of its own for B (LoRA+), its schedule lengths, its `compute_loss`."""

    disable_shuffling = False
    loraplus_lr_ratio = None

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None and self.loraplus_lr_ratio:
            named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            rate = self.args.learning_rate
            groups = [
                {"params": [p for n, p in named if "lora_B" not in n], "lr": rate},
                {"params": [p for n, p in named if "lora_B" in n], "lr": rate * self.loraplus_lr_ratio},
            ]
            self.optimizer = torch.optim.AdamW(groups)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.args.lr_scheduler_type == "warmup_stable_decay":
            remaining = num_training_steps - self.args.get_warmup_steps(num_training_steps)
            given = self.args.lr_scheduler_kwargs or {}
            for name, value in {
                "num_stable_steps": remaining // 3,
                "num_decay_steps": remaining - remaining // 3,
            }.items():
                given.setdefault(name, value)
            self.args.lr_scheduler_kwargs = given
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, *args, **kwargs):
        if self.disable_shuffling:
            return torch.utils.data.SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, inputs, *args, **kwargs)


class LogCallback(TrainerCallback):
    """Reads the number of steps when training begins, after the callbacks that it was given."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.total_steps = state.max_steps

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.rates = [*getattr(self, "rates", []), [group["lr"] for group in optimizer.param_groups]]


class SeenRows(TrainerCallback):
    """The token rows that are trained on, by step; those whose loss is only measured have no gradient."""

    def __init__(self, model):
        self.steps = [set()]
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module, args, kwargs):
        if module.training and torch.is_grad_enabled():
            rows = zip(kwargs["input_ids"].tolist(), kwargs["attention_mask"].tolist(), strict=True)
            self.steps[-1] |= {tuple(t for t, m in zip(ids, mask, strict=True) if m) for ids, mask in rows}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(set())


def rows(size, seed=0):
    own = token_rows(size, seed=seed, low=6, high=14)
    return as_dataset(
        [{"input_ids": r["input_ids"], "attention_mask": [1] * len(r["input_ids"])} | r | MEDIA for r in own]
    )


def trainer_of(
    folder,
    checkpointed=True,
    reentrant=True,
    trainer_class=CustomSeq2SeqTrainer,
    callbacks=(),
    given=None,
    **arguments,
):
    model = lora_model(lora_dropout=0.0)
    model.enable_input_require_grads()
    function = checkpointing_of_trainable_layers(partial(checkpoint, use_reentrant=reentrant))
    if checkpointed:
        model.get_base_model()._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    settings |= {"remove_unused_columns": False, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    settings |= {"use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-3}
    return trainer_class(
        model=model,
        args=Seq2SeqTrainingArguments(str(folder), **settings | arguments),
        train_dataset=rows(64),
        data_collator=Collator(tokenizer(), model=model, pad_to_multiple_of=8, label_pad_token_id=-100),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        **given or {},
    )


def run(folder, config=None, **options):
    callback = GISTDataSelectorCallback(
        config or GISTConfig(budget=16, warmup_steps=2), target_dataset=rows(5, seed=9)
    )
    log = LogCallback()
    trainer = trainer_of(folder, callbacks=[callback, log], **options)
    seen = SeenRows(trainer.model)
    trainer.add_callback(seen)
    trainer.train()
    return trainer, callback, log, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without checkpointing and with the loss of transformers."""
    return run(tmp_path_factory.mktemp("plain"), checkpointed=False)


@pytest.mark.parametrize("reentrant", [True, False])
def test_its_checkpointing_changes_no_score(tmp_path, plain, reentrant):
    trainer, callback, log, seen = run(tmp_path, reentrant=reentrant)
    selected = {tuple(trainer.train_dataset[row]["input_ids"]) for row in callback.selection.indices}
    assert log.total_steps == trainer.state.global_step == 2 + 2 * 2
    assert set.union(*seen.steps[2:]) == selected
    torch.testing.assert_close(callback.selection.scores, plain[1].selection.scores, rtol=1e-4, atol=1e-5)


def test_its_warmup_stable_decay_ends_with_the_run(tmp_path):
    _, _, log, _ = run(tmp_path, lr_scheduler_type="warmup_stable_decay", num_train_epochs=6)
    rates = [rates[0] for rates in log.rates]
    assert len(rates) == log.total_steps == 12
    assert rates[0] == rates[3] == 1e-3 and rates[-1] < 1e-4
    assert rates == sorted(rates, reverse=True)


def test_max_steps(tmp_path):
    trainer, callback, log, _ = run(tmp_path, max_steps=7)
    assert trainer.state.global_step == log.total_steps == trainer.args.max_steps == 7
    assert len(callback.selection.indices) == 16


def test_its_disabled_shuffling_is_kept(tmp_path):
    class Sequential(CustomSeq2SeqTrainer):
        disable_shuffling = True

    trainer, callback, _, seen = run(tmp_path, trainer_class=Sequential)
    first = {tuple(trainer.train_dataset[row]["input_ids"]) for row in sorted(callback.selection.indices)[:8]}
    assert seen.steps[2] == first


def test_its_own_optimizer_keeps_the_ratio_of_its_rates(tmp_path):
    class LoraPlus(CustomSeq2SeqTrainer):
        loraplus_lr_ratio = 16.0

    _, _, log, _ = run(tmp_path, trainer_class=LoraPlus)
    assert all(b == pytest.approx(16 * a) for a, b in log.rates)
    assert log.rates[0][0] == 1e-3 and log.rates[-1][0] < 2e-4


def test_its_own_loss_function_decides_the_selection(tmp_path, plain):
    def dft(outputs, labels, num_items_in_batch=None):
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        losses = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1).float(), shifted, reduction="none")
        losses = losses[shifted != -100]
        return (losses * torch.exp(-losses.detach())).sum() / num_items_in_batch

    class Dft(CustomSeq2SeqTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.compute_loss_func = dft

    _, weighted, _, _ = run(tmp_path, trainer_class=Dft)
    assert weighted.selection.indices != plain[1].selection.indices


def test_gast_in_its_trainer(tmp_path):
    class GASTSeq2SeqTrainer(GASTMixin, CustomSeq2SeqTrainer):
        """Only combines both classes."""

    trainer = trainer_of(tmp_path, trainer_class=GASTSeq2SeqTrainer, given={"gast_config": GASTConfig(keep=2)})
    trainer.train()
    assert [log["gast_kept_fraction"] for log in trainer.state.log_history if "loss" in log][0] == 0.5


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="the commands need datasets>=4.7, which it does not allow")
def test_its_model_card_is_completed_by_the_command(plain):
    from hf_gist.commands.main import main

    trainer = plain[0]
    card = Path(trainer.args.output_dir, "README.md")
    # not `trainer.create_model_card`, "to prevent from connecting to hub"
    Trainer.create_model_card(trainer, license="other")
    assert "## Data selection" not in card.read_text(encoding="utf-8")
    assert main(["card", str(card.parent)]) == 0
    assert "## Data selection" in card.read_text(encoding="utf-8")


# ---- The program ----


def test_the_recipe_is_a_file_of_both_settings():
    recipe = yaml.safe_load((FRAMEWORKS / "llamafactory.yaml").read_text(encoding="utf-8"))
    assert GISTConfig(**recipe["gist"]) and recipe["target_dataset"] and recipe["num_train_epochs"] > 1


@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="LLaMA-Factory is not installed")
def test_the_recipe_runs(tmp_path):
    save_model(tmp_path / "model")
    described = {"formatting": "sharegpt", "columns": {"messages": "messages"}}
    described["tags"] = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    for name, chats in {"pool": varied(80, seed=1), "targets": varied(6, seed=2)}.items():
        lines = "".join(json.dumps(row) + "\n" for row in chats)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    about = {name: {"file_name": f"{name}.jsonl", **described} for name in ("pool", "targets")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(about), encoding="utf-8")
    given = {"model_name_or_path": tmp_path / "model", "dataset_dir": tmp_path, "output_dir": tmp_path / "out"}
    given |= {"template": "empty", "cutoff_len": 64, "gist.budget": 0.2, "logging_steps": 1, "lora_rank": 4}
    given |= {"gradient_accumulation_steps": 1, "overwrite_cache": "true"}
    command = [sys.executable, FRAMEWORKS / "run_llamafactory.py", FRAMEWORKS / "llamafactory.yaml"]
    done = subprocess.run(
        [*map(str, command), *(f"{name}={value}" for name, value in given.items())], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 1 + 3 * 4 and state["epoch"] == 4
    kept = json.loads((tmp_path / "out" / f"checkpoint-{state['global_step']}" / "gist" / "selected.json").read_text())
    assert (
        kept
        and (tmp_path / "out" / "adapter_model.safetensors").exists()
        and (tmp_path / "out" / "report.html").exists()
    )
