"""What Unsloth 2026.10.9 hands over: fused functions, a checkpointing function, a trainer written at run time."""

import importlib.util
import os
import subprocess
import sys
from types import MethodType

import pytest
import torch
from datasets import Dataset
from torch import nn

from hf_gist import GASTConfig, GASTMixin, GISTConfig, GISTDataSelectorCallback, select
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import save_model, tokenizer, varied


MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def scores(model):
    pool, targets = as_dataset(token_rows(12)), as_dataset(token_rows(3, 1))
    return select(model, pool, targets, GISTConfig(budget=4), data_collator=PaddingCollator()).scores


# ---- Fused LoRA kernels ----


class FusedLinear(torch.autograd.Function):
    """As `LoRA_W`: base output plus `s x A^T B^T`, with the gradients of the matrices themselves."""

    @staticmethod
    def forward(ctx, x, base, a, b, scaling):
        ctx.save_for_backward(x, base, a, b)
        ctx.scaling = scaling
        return x @ base.T + scaling * (x @ a.T @ b.T)

    @staticmethod
    def backward(ctx, d):
        x, base, a, b = ctx.saved_tensors
        rows, outputs = x.flatten(0, 1), d.flatten(0, 1)
        of_a = ctx.scaling * (outputs @ b).T @ rows
        of_b = ctx.scaling * outputs.T @ (rows @ a.T)
        return d @ base + ctx.scaling * (d @ b @ a), None, of_a, of_b, None


def fused(layer, x):
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return FusedLinear.apply(x, layer.base_layer.weight, a, b, layer.scaling["default"])


def fused_mlp(mlp, x):
    return fused(mlp.down_proj, nn.functional.silu(fused(mlp.gate_proj, x)) * fused(mlp.up_proj, x))


def fuse(model, where):
    """Patch instances as Unsloth does: `mlp.forward`, and what attention calls in place of its modules."""
    for layer in model.get_base_model().model.layers:
        if where == "mlp":
            layer.mlp.forward = MethodType(fused_mlp, layer.mlp)
        else:
            projection = getattr(layer.self_attn, where)
            projection.forward = MethodType(fused, projection)


@pytest.mark.parametrize("where", ["mlp", "q_proj", "o_proj"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_fused_kernels_are_refused_with_both_settings(where, dropout):
    """Dropout alone does not turn them off: this release fuses it, too."""
    model = lora_model(target_modules=MODULES, lora_dropout=dropout)
    fuse(model, where)
    with pytest.raises(ValueError, match="fused LoRA kernel.*`lora_dropout` above 0.*UNSLOTH_FUSED_LORA_DROPOUT=0"):
        scores(model)


# ---- Checkpointing ----


class OffloadingCheckpoint(torch.autograd.Function):
    """As `Unsloth_Gradient_Checkpointer`: reentrant, keeps only the hidden states, recomputes in the backward pass."""

    @staticmethod
    def forward(ctx, function, hidden_states, *args):
        with torch.no_grad():
            output = function(hidden_states, *args)
        ctx.save_for_backward(hidden_states.detach().clone())
        ctx.function = function
        ctx.args = args
        return output

    @staticmethod
    def backward(ctx, d):
        (hidden_states,) = ctx.saved_tensors
        hidden_states = hidden_states.detach().requires_grad_(True)
        with torch.enable_grad():
            output = ctx.function(hidden_states, *ctx.args)
        torch.autograd.backward(output, d)
        return (None, hidden_states.grad, *(None for _ in ctx.args))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_its_checkpointing_gives_the_same_scores(dropout):
    model = lora_model(lora_dropout=dropout)
    expected = scores(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    for layer in model.get_base_model().model.layers:
        layer._gradient_checkpointing_func = lambda function, *args, **_: OffloadingCheckpoint.apply(function, *args)
    torch.testing.assert_close(scores(model), expected)


# ---- The trainer ----


def unsloth_trainer(drops=0):
    """As the class in `unsloth_compiled_cache/UnslothSFTTrainer.py`: its own loss and preparation of rows."""
    trl = pytest.importorskip("trl")

    class _UnslothSFTTrainer(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def _prepare_dataset(self, dataset, *args, **kwargs):
            prepared = super()._prepare_dataset(dataset, *args, **kwargs)
            kept = [name for name in ("input_ids", "labels") if name in prepared.column_names]
            is_targets = "target_dataset" in args
            return prepared.select_columns(kept).select(range(len(prepared) - drops * is_targets))

    class UnslothSFTTrainer(_UnslothSFTTrainer):
        pass

    for kind in (UnslothSFTTrainer, _UnslothSFTTrainer):
        kind.__module__ = "UnslothSFTTrainer"
    return UnslothSFTTrainer


def sft(kind, folder, callbacks=(), **others):
    trl = pytest.importorskip("trl")
    own = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    own |= {"max_length": 32, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    return kind(
        model=lora_model(),
        args=trl.SFTConfig(str(folder), **own),
        train_dataset=Dataset.from_list(varied(24, 0)),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        **others,
    )


def callback(targets=None):
    return GISTDataSelectorCallback(GISTConfig(budget=8), targets or Dataset.from_list(varied(4, 1)))


def test_raw_targets_of_a_trainer_that_keeps_only_tokens(tmp_path):
    gist = callback()
    sft(unsloth_trainer(), tmp_path, [gist]).train()
    assert len(gist.run.inputs.targets) == 4 and len(gist.selection.indices) == 8


def test_target_rows_that_it_drops_without_a_name_are_refused(tmp_path):
    trainer = sft(unsloth_trainer(drops=1), tmp_path, [callback()])
    with pytest.raises(ValueError, match="UnslothSFTTrainer keeps 3 of the 4 rows of `target_dataset`"):
        trainer.train()


def test_gast_in_its_trainer(tmp_path):
    kind = unsloth_trainer()

    class GASTUnslothTrainer(GASTMixin, kind):
        pass

    trainer = sft(GASTUnslothTrainer, tmp_path, gast_config=GASTConfig(keep=2))
    trainer.train()
    assert "gast_kept_fraction" in str(trainer.state.log_history)


# ---- train_on_responses_only ----


def responses(batch):
    """Labels after the word `assistant` only; what `train_on_responses_only(..., return_function=True)` returns."""
    cuts = [ids.index(5) + 1 for ids in batch["input_ids"]]
    return {"labels": [[-100] * cut + ids[cut:] for cut, ids in zip(cuts, batch["input_ids"], strict=True)]}


@pytest.mark.parametrize("columns", [["messages", "input_ids", "labels"], ["input_ids", "labels"]])
def test_raw_targets_are_refused_after_the_labels_were_changed(tmp_path, columns):
    """With and without the raw rows beside the tokens, of which Unsloth keeps none."""
    trl = pytest.importorskip("trl")
    trainer = sft(trl.SFTTrainer, tmp_path, [callback()])
    changed = trainer.train_dataset.map(responses, batched=True)
    trainer.train_dataset = changed.select_columns([name for name in columns if name in changed.column_names])
    with pytest.raises(ValueError, match="SFTTrainer labels all tokens.*`input_ids` and `labels`"):
        trainer.train()


def test_targets_with_the_same_labels_keep_them(tmp_path):
    trl = pytest.importorskip("trl")
    tokens = tokenizer()
    ids = [tokens.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in varied(4, 1)]
    gist = callback(Dataset.from_dict({"input_ids": ids}).map(responses, batched=True))
    trainer = sft(trl.SFTTrainer, tmp_path, [gist])
    trainer.train_dataset = trainer.train_dataset.map(responses, batched=True)
    trainer.train()
    assert gist.run.inputs.targets["labels"] == responses({"input_ids": ids})["labels"]
    assert len(gist.selection.indices) == 8


def test_raw_targets_of_unchanged_rows_are_taken(tmp_path):
    trl = pytest.importorskip("trl")
    gist = callback()
    sft(trl.SFTTrainer, tmp_path, [gist]).train()
    assert len(gist.selection.indices) == 8


# ---- Unsloth itself, on its CPU backend ----


SCRIPT = """
import sys
from unsloth import FastLanguageModel
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from hf_gist import GISTConfig, GISTDataSelectorCallback
from tests.helpers.words import varied
model, tokenizer = FastLanguageModel.from_pretrained(sys.argv[1], max_seq_length=32, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8, lora_dropout=0.05)
callback = GISTDataSelectorCallback(GISTConfig(budget=8), Dataset.from_list(varied(4, 1)))
args = SFTConfig(sys.argv[2], num_train_epochs=2, per_device_train_batch_size=4, max_length=32, report_to="none")
data = Dataset.from_list(varied(24, 0))
SFTTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=args, callbacks=[callback]).train()
print("selected", len(callback.selection.indices))
"""


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="for the CPU backend")
def test_a_run_of_unsloth(tmp_path):
    model = save_model(tmp_path / "model")
    command = [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "out")]
    environment = os.environ | {"UNSLOTH_FUSED_LORA_DROPOUT": "0"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "selected 8" in result.stdout
