"""The scripts of the recipes start; the layer-wise baseline updates the drawn layers."""

import runpy
import sys

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests import ROOT
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


RECIPES = ROOT / "recipes"
SCRIPTS = [path for path in sorted(RECIPES.rglob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_script_says_what_it_takes(script, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: {script.name}" in said and "--" in said


def test_ist_updates_only_the_layers_it_drew_and_learns_their_importance(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES / "baselines"))
    from ist import ISTCallback

    model, rows = lora_model(base={"num_hidden_layers": 4}), token_rows(24)
    ist = ISTCallback(rows[:4], PaddingCollator(), layers=2, probe_every=2, seed=1)
    changed, norms, before = [], [], {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            before.update({n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n})

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())

        def on_step_end(self, args, state, control, **kwargs):
            moved = [n for n, p in model.named_parameters() if "lora_" in n and not torch.equal(p, before[n])]
            changed.append(({n.split(".layers.")[1][0] for n in moved}, {b[-1] for b in ist.drawn}))

    scaling = model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=5,
        report_to=[],
        save_strategy="no",
        weight_decay=0.0,
        use_cpu=True,
        max_grad_norm=1e-3,
    )
    Trainer(
        model, args, train_dataset=as_dataset(rows), data_collator=PaddingCollator(), callbacks=[ist, Watch()]
    ).train()
    assert len(changed) == 5 and all(moved == drawn and len(drawn) == 2 for moved, drawn in changed)
    assert len({tuple(sorted(drawn)) for _, drawn in changed}) > 1
    # clipping uses the norm of the applied gradients
    torch.testing.assert_close(torch.stack(norms), torch.full((5,), 1e-3), rtol=0.01, atol=0)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    assert any(ist.importance.values()) and abs(sum(ist.importance.values())) < 1e-6
    assert model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"] == scaling


def test_ist_thaws_what_a_training_that_failed_left_frozen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES / "baselines"))
    from ist import ISTCallback

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    model, rows = lora_model(base={"num_hidden_layers": 4}), token_rows(24)
    ist = ISTCallback(rows[:4], PaddingCollator(), layers=2, seed=1)
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], save_strategy="no", use_cpu=True)
    given = {"train_dataset": as_dataset(rows), "data_collator": PaddingCollator()}
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, args, callbacks=[ist, Fails()], **given).train()
    Trainer(model, args, callbacks=[ist], **given).train()
    assert len(ist.parameters) == 4 and all(p.requires_grad for own in ist.parameters.values() for p in own)
