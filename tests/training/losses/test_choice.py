"""Rows are scored by the loss that the trainer trains with, whatever it is."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.errors import LossMismatchWarning
from hf_gist.gradients.lora import find_tracked
from hf_gist.gradients.models import adapter_parameters
from hf_gist.gradients.modes import scoring_mode
from hf_gist.gradients.vectors import per_sample_backward
from hf_gist.training.losses.choice import TrainerBatchLoss
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


POOL = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in token_rows(32, low=5, high=15)]
TARGETS = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in token_rows(5, seed=7)]


class Unlearning(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (-outputs.loss, outputs) if return_outputs else -outputs.loss


class Counting(Trainer):
    """Calls the Trainer's own loss, as the trainers of training programs do, and counts its calls."""

    calls = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.calls += 1
        return super().compute_loss(model, inputs, *args, **kwargs)


class DiffersInEvaluation(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
        losses = torch.nn.functional.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
        by_row = losses.sum(1) / (labels != -100).sum(1)
        loss = by_row.square().mean() if model.training else by_row.mean()
        return (loss, outputs) if return_outputs else loss


class Mixing(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(**inputs).logits
        return torch.pdist(logits.mean(1)).sum() + logits.mean()


def row_mean(outputs, labels, num_items_in_batch=None):
    labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    losses = torch.nn.functional.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    return (losses.sum(1) / (labels != -100).sum(1)).mean()


def token_sum(outputs, labels, num_items_in_batch):
    labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    losses = torch.nn.functional.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="none")
    return 2 * losses.square().sum() / num_items_in_batch


KINDS = {
    "compute_loss": (Unlearning, {}, {}, "Unlearning.compute_loss"),
    "calls the stock loss": (Counting, {}, {}, "Counting.compute_loss"),
    "differs in evaluation": (DiffersInEvaluation, {}, {}, "DiffersInEvaluation.compute_loss"),
    "function of rows": (Trainer, {}, {"compute_loss_func": row_mean}, "compute_loss_func=row_mean"),
    "function of tokens": (Trainer, {}, {"compute_loss_func": token_sum}, "compute_loss_func=token_sum"),
    "smoothed": (Trainer, {"label_smoothing_factor": 0.2}, {}, "Trainer with label_smoothing_factor=0.2"),
}


def run(folder, trainer_class=Trainer, arguments=None, pool=POOL, model=None, config=None, **more):
    callback = GISTDataSelectorCallback(config or GISTConfig(budget=4, warmup_steps=2), as_dataset(TARGETS))
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": []}
    trainer = trainer_class(
        model=model or lora_model(),
        args=TrainingArguments(folder, save_strategy="no", disable_tqdm=True, **settings | (arguments or {})),
        train_dataset=as_dataset(pool),
        data_collator=PaddingCollator(),
        callbacks=[callback],
        **more,
    )
    return trainer, callback


def scored_gradients(trainer, loss, rows):
    """`[B, n]`, as scoring computes them."""
    parts = []
    with scoring_mode(trainer.model):
        batch = loss.prepared(PaddingCollator()(rows))
        per_sample_backward(
            loss, batch, find_tracked(trainer.model), lambda name, values: parts.append((name, values.clone()))
        )
    return dict(parts)


def gradient_alone(trainer, row):
    """The gradient of the training loss of a batch of one row, without dropout."""
    parameters = adapter_parameters(trainer.model)
    with scoring_mode(trainer.model):
        inputs = PaddingCollator()([row])
        labelled = int((inputs["labels"][:, 1:] != -100).sum())
        loss = TrainerBatchLoss(trainer, trainer.model)(inputs, labelled)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_scored_by_the_trainers_own_loss(tmp_path, kind):
    trainer_class, arguments, more, name = KINDS[kind]
    trainer, callback = run(tmp_path, trainer_class, arguments, **more)
    trainer.train()
    assert callback.selection.manifest["loss"] == name
    loss = callback.run.inputs.loss
    found = scored_gradients(trainer, loss, POOL[:6])
    for number, row in enumerate(POOL[:6]):
        for name, expected in gradient_alone(trainer, row).items():
            torch.testing.assert_close(found[name][number], expected.flatten(), rtol=1e-4, atol=1e-6)


def test_a_branch_for_training_is_the_one_that_is_scored(tmp_path):
    trainer, _ = run(tmp_path, DiffersInEvaluation)
    row = PaddingCollator()([POOL[0]])
    trainer.model.eval()
    evaluated = float(trainer.compute_loss(trainer.model, dict(row)))
    scored = float(TrainerBatchLoss(trainer, trainer.model)(row, 1))
    assert scored == pytest.approx(evaluated**2, rel=1e-4)
    assert not trainer.model.training


def token_sum_of_row(outputs, labels, num_items_in_batch=None):
    labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    return torch.nn.functional.cross_entropy(outputs.logits.transpose(1, 2), labels, reduction="sum")


def test_the_loss_decides_the_selection(tmp_path):
    """A mean has the largest gradients for short answers, a sum for long ones."""
    config = GISTConfig(budget=4, warmup_steps=2, score="grad_norm")
    picked = []
    for number, function in enumerate((row_mean, token_sum_of_row)):
        trainer, callback = run(tmp_path / str(number), config=config, compute_loss_func=function)
        trainer.train()
        picked.append(callback.selection.indices)
    assert picked[0] != picked[1]


def test_a_loss_that_mixes_rows_is_refused_before_the_first_step(tmp_path):
    trainer, _ = run(tmp_path, Mixing)
    with pytest.raises(ValueError, match="Mixing.compute_loss mixes the rows of a batch.*hf-gist select"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_that_starts_to_mix_rows_is_refused_before_the_selection(tmp_path):
    class Once(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            outputs = model(**inputs)
            spread = outputs.logits.mean((1, 2)).var(correction=0)
            return outputs.loss + 1000 * spread * (self.state.global_step > 0)

    trainer, callback = run(tmp_path, Once)
    with pytest.raises(ValueError, match="Once.compute_loss mixes the rows of a batch"):
        trainer.train()
    assert callback.selection is None


@pytest.mark.parametrize("owner", ["instance", "class"])
def test_a_method_that_was_replaced_is_a_loss_of_its_own(tmp_path, monkeypatch, owner):
    class Patched(Trainer):
        pass

    def doubled(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 2 * model(**inputs).loss

    trainer, callback = run(tmp_path, Patched)
    if owner == "class":
        monkeypatch.setattr(Patched, "compute_loss", doubled)
    else:
        trainer.compute_loss = lambda *args, **kwargs: doubled(trainer, *args, **kwargs)
    trainer.train()
    assert callback.selection.manifest["loss"] not in ("", "token cross-entropy")
    assert callback.run.inputs.loss.weighting == "mean over labelled tokens"


def test_the_stock_loss_is_scored_by_token(tmp_path):
    trainer, callback = run(tmp_path)
    trainer.train()
    assert callback.run.inputs.loss is None
    assert callback.selection.manifest["loss"] == "token cross-entropy"


def test_a_loss_that_the_model_adds_is_a_warning_with_both_values(tmp_path):
    trainer, _ = run(tmp_path)
    base = trainer.model.get_base_model()
    stock = base.loss_function
    base.loss_function = lambda *args, **kwargs: 3 * stock(*args, **kwargs)
    with pytest.warns(LossMismatchWarning, match=r"token cross-entropy \(\d\.\d+ for one row\).*with a loss of \d+"):
        trainer.train()


@pytest.mark.parametrize(("dtype", "scored"), [("float32", torch.float32), ("auto", torch.bfloat16)])
def test_a_loss_is_computed_in_the_precision_of_scoring(tmp_path, dtype, scored):
    """accelerate wraps autocast around the model's forward, also where rows are to be scored in 32 bits."""
    seen = []

    class Notes(Unlearning):
        def compute_loss(self, model, inputs, *args, **kwargs):
            def note(module, given, output):
                seen.append((self.state.global_step, output.dtype))

            handle = model.get_base_model().lm_head.register_forward_hook(note)
            try:
                return super().compute_loss(model, inputs)
            finally:
                handle.remove()

    config = GISTConfig(budget=4, warmup_steps=2, scoring_dtype=dtype)
    trainer, callback = run(tmp_path, Notes, {"bf16": True}, config=config)
    trainer.train()
    at_the_swap = [kind for step, kind in seen if step == 2]
    # the last one is the first step on the selected rows
    assert set(at_the_swap[:-1]) == {scored} and at_the_swap[-1] == torch.bfloat16
    assert [kind for step, kind in seen if step == 1] == [torch.bfloat16]


def test_computing_a_loss_changes_nothing_of_the_trainer(tmp_path):
    trainer, _ = run(tmp_path, Counting)
    trainer.model.eval()
    before = dict(vars(trainer.accelerator))
    arguments = trainer.args.to_dict()
    TrainerBatchLoss(trainer, trainer.model)(PaddingCollator()(POOL[:2]), 9).backward()
    assert vars(trainer.accelerator) == before
    assert trainer.args.to_dict() == arguments
    assert not trainer.model.training


def test_processes_do_not_wait_for_each_other_in_a_loss(tmp_path, monkeypatch):
    """A collective call in `compute_loss` would wait for a process that has fewer batches to score."""

    class Gathers(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = model(**inputs).loss
            seen = self.accelerator.gather_for_metrics(loss.detach())
            return loss + 0 * self.accelerator.reduce(seen, "mean") + 0 * self.accelerator.gather(seen).sum()

    trainer, _ = run(tmp_path, Gathers)
    for name in ("gather", "gather_for_metrics", "reduce"):
        monkeypatch.setattr(type(trainer.accelerator), name, lambda *args, **kwargs: pytest.fail("collective call"))
    assert float(TrainerBatchLoss(trainer, trainer.model)(PaddingCollator()(POOL[:2]), 9)) > 0
