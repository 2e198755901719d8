"""Correctness of GAST: `all` against the stock Trainer, `topk` against a loop over samples, checkpointing, fp16."""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from acceptance.models import SMALL, pad, random_rows, tiny_model
from acceptance.record import Result, Steps, checked, skipped
from acceptance.scoring_exact import Gradients, reference_gradients
from hf_gist import GASTConfig, GASTTrainer
from hf_gist.functional.masking import support_rows
from hf_gist.gast.groups import find_groups


BATCH = 8
KEEP = 4
SUPPORT = 4


def _arguments(folder: str, device: str, **changes: Any) -> TrainingArguments:
    values = {
        "output_dir": folder, "per_device_train_batch_size": BATCH, "max_steps": 6, "learning_rate": 1e-3,
        "report_to": [], "use_cpu": device == "cpu", "save_strategy": "no", "logging_strategy": "no",
        "disable_tqdm": True, "seed": 3, **changes,
    }  # fmt: skip
    return TrainingArguments(**values)


def _trainer(model: nn.Module, folder: str, device: str, config: GASTConfig | None, **changes: Any) -> Trainer:
    given = {
        "model": model,
        "args": _arguments(folder, device, **changes),
        "train_dataset": random_rows(64, 6, 40, SMALL.vocabulary),
        "data_collator": pad,
    }
    if config is None:
        return Trainer(**given)
    support = random_rows(16, 6, 40, SMALL.vocabulary, seed=1)
    return GASTTrainer(**given, gast_config=config, support_dataset=support)


def _trained(device: str, config: GASTConfig | None) -> dict[str, Tensor]:
    model = tiny_model(device, dropout=0.1)
    with tempfile.TemporaryDirectory() as folder:
        _trainer(model, folder, device, config).train()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _all_equals_stock(device: str) -> list[Result]:
    """Two stock runs as a control: if they differ, the device itself is not deterministic."""
    stock = _trained(device, None)
    results = []
    for name, other in (("stock again", _trained(device, None)), ("all", _trained(device, GASTConfig(mode="all")))):
        differing = sum(not torch.equal(stock[key], other[key]) for key in stock)
        result = checked(differing, 0, f"matrices that differ from the stock Trainer: {name}")
        results.append(result)
    return results


def _step_gradients(
    device: str, config: GASTConfig, checkpointed: bool = False
) -> tuple[nn.Module, dict[str, Tensor], dict[int, Tensor]]:
    """Model, gradients and masks of one training step on the first rows."""
    model = tiny_model(device)
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, folder, device, config)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        batch = pad([trainer.train_dataset[row] for row in range(BATCH)])
        items = (batch["labels"][:, 1:] != -100).sum().to(device)
        trainer.training_step(model, {k: v.to(device) for k, v in batch.items()}, items)
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return model, gradients, {index: mask.cpu() for index, mask in trainer.gast.last.masks.items()}


def _support_gradient(model: nn.Module, config: GASTConfig) -> dict[str, Tensor]:
    rows = random_rows(16, 6, 40, SMALL.vocabulary, seed=1)
    chosen = support_rows(config.seed, len(rows), 0, config.support_batch_size)
    own = reference_gradients(model, rows.select(chosen))
    return {name: sum(row[name] for row in own) / len(own) for name in own[0]}


def _loop_over_samples(model: nn.Module, config: GASTConfig) -> tuple[dict[str, Tensor], dict[int, set[int]]]:
    """Gradients and kept samples of `topk`, from batches of one."""
    rows = random_rows(64, 6, 40, SMALL.vocabulary).select(range(BATCH))
    own: Gradients = reference_gradients(model, rows)
    support = _support_gradient(model, config)
    tokens = torch.tensor([sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]).float()
    weights = tokens / tokens.sum() * (BATCH / KEEP)
    gradients = {}
    kept = {}
    for group in find_groups(model, config.group_by, config.outside_blocks)[0]:
        names = list(group.parameters())
        aligned = torch.stack([sum((row[name] * support[name]).sum() for name in names) for row in own])
        best = aligned.topk(KEEP).indices.tolist()
        kept[group.index] = set(best)
        for name in names:
            gradients[name] = sum(weights[sample] * own[sample][name] for sample in best)
    return gradients, kept


def _topk_equals_loop(device: str) -> list[Result]:
    config = GASTConfig(mode="topk", keep=KEEP, support_batch_size=SUPPORT)
    model, found, masks = _step_gradients(device, config)
    expected, kept = _loop_over_samples(model, config)
    wrong = sum(set(mask.nonzero().flatten().tolist()) != kept[index] for index, mask in masks.items())
    whole = torch.cat([expected[name] for name in expected])
    error = (torch.cat([found[name].flatten() for name in expected]) - whole).norm() / whole.norm()
    return [
        checked(wrong, 0, "groups with other samples than the loop"),
        checked(float(error), 1e-5, "relative error of the gradient"),
    ]


def _checkpointing(device: str) -> Result:
    config = GASTConfig(keep=KEEP, support_batch_size=SUPPORT)
    _, plain, _ = _step_gradients(device, config)
    _, recomputed, _ = _step_gradients(device, config, checkpointed=True)
    whole = torch.cat([value.flatten() for value in plain.values()])
    error = (torch.cat([recomputed[name].flatten() for name in plain]) - whole).norm() / whole.norm()
    return checked(float(error), 1e-6, "relative difference of the gradient to that without checkpointing")


def _gradient_scaler(device: str) -> Result:
    if device != "cuda":
        return skipped("fp16 with a gradient scaler needs CUDA")
    model = tiny_model(device)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, folder, device, GASTConfig(keep=KEEP, support_batch_size=SUPPORT), fp16=True)
        trainer.train()
    after = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    finite = all(bool(value.isfinite().all()) for value in after.values())
    moved = all(not torch.equal(before[name], after[name]) for name in before)
    kept = {int(mask.sum()) for mask in trainer.gast.last.masks.values()}
    scale = trainer.accelerator.scaler.get_scale()
    passed = finite and moved and kept == {KEEP} and scale > 0
    return Result(
        passed, {"measured": f"finite {finite}, trained {moved}, kept {kept}", "of": f"loss scale {scale:g}"}
    )


def steps(device: str) -> Steps:
    """The checks of GAST."""
    yield "GAST `all`, bit for bit", lambda: _all_equals_stock(device)
    yield "GAST `topk` against a loop", lambda: _topk_equals_loop(device)
    yield "GAST masks under checkpointing", lambda: _checkpointing(device)
    yield "GAST with fp16 and a gradient scaler", lambda: _gradient_scaler(device)
