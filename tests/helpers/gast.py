from unittest.mock import patch

import torch
from transformers import TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import draw, gumbel_noise, kept_count, sample_scales, support_rows
from hf_gist.gast.groups import find_groups
from hf_gist.gradients.modes import PACKS_IN_EVAL_MODE
from hf_gist.trainer import GASTTrainer
from tests.helpers.tiny import VOCABULARY, PaddingCollator, lora_model, token_rows


__all__ = ["VOCABULARY"]
BASES = {
    "llama": {"num_hidden_layers": 3},
    "qwen2": {"num_hidden_layers": 3},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
}
"""Without dropout: the reference takes the gradients of a training step sample by sample."""
MODELS = list(BASES)
TARGET_MODULES = {"qwen2": ["q_proj", "k_proj", "up_proj"], "gpt2": ["c_attn", "c_fc"]}
"""Where they differ from those of `tests.helpers.tiny`."""


def build_model(name="llama", *, seed=0, dropout=0.0, **lora):
    """A tiny peft model whose LoRA matrices are all away from zero, so that every matrix has a gradient."""
    if name in TARGET_MODULES:
        lora = {"target_modules": TARGET_MODULES[name], **lora}
    return lora_model(name, seed, BASES[name], **{"r": 2, "lora_alpha": 4, "lora_dropout": dropout, **lora})


def rows(name="llama", count=16, *, seed=0):
    """Rows of unequal lengths, with a prompt part without labels and two sources in turn."""
    made = token_rows(count, seed, name, low=4, high=13)
    return [{**row, "source": "even" if index % 2 == 0 else "odd"} for index, row in enumerate(made)]


collate = PaddingCollator()


class Recorder:
    """Keeps the accumulated gradients of each optimizer step, and the masks of each batch."""

    def __init__(self):
        self.gradients, self.masks, self.alignments, self.batches = [], [], [], []

    def attach(self, trainer):
        step, training_step = trainer.accelerator.clip_grad_norm_, trainer.training_step

        def recorded_step(model, inputs, num_items_in_batch=None):
            self.batches.append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
            loss = training_step(model, inputs, num_items_in_batch)
            if getattr(trainer, "gast", None) is not None:
                self.masks.append(dict(trainer.gast.last.masks))
                self.alignments.append(dict(trainer.gast.last.alignments))
            return loss

        def recorded_clip(parameters, *args, **kwargs):
            self.gradients.append(gradients_of(trainer.model))
            return step(parameters, *args, **kwargs)

        trainer.training_step, trainer.accelerator.clip_grad_norm_ = recorded_step, recorded_clip
        return self


def support_rows_in(where):
    """`"batch"`, where the support rows are on a GPU if the model and the loss allow it, or `"pass"` of their own."""
    if where == "batch":
        return patch("hf_gist.training.gast.support.OWN_PASS_ON", ())
    return patch("hf_gist.training.gast.support.rows_to_append", lambda trainer, run, inputs: None)


def gradients_of(model):
    return {
        name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).clone()
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }


def arguments(folder, **changes):
    values = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 1e-3,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "remove_unused_columns": True, "max_grad_norm": 1e9, "seed": 3, **changes,
    }  # fmt: skip
    return TrainingArguments(**values)


def train(
    model, folder, data, *, config=None, trainer_class=GASTTrainer, support=None, trainer_kwargs=None, **changes
):
    """Train, and return the trainer and what was recorded."""
    kwargs = dict(trainer_kwargs or {})
    if issubclass(trainer_class, GASTTrainer):
        kwargs.update(gast_config=config or GASTConfig(), support_dataset=support)
    trainer = trainer_class(
        model=model, args=arguments(folder, **changes), train_dataset=data, data_collator=collate, **kwargs
    )
    recorder = Recorder().attach(trainer)
    trainer.train()
    return trainer, recorder


# ---- The reference ----


def sample_gradient(model, batch, index, own_loss=None):
    """The gradient of one sample's own mean loss, from a batch of one."""
    single = {name: value[index : index + 1] for name, value in batch.items()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = own_loss(model, single) if own_loss else model(**single).loss
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }


def label_counts(batch, name):
    labels = batch["labels"]
    if name == "bert":
        return torch.ones(len(labels))
    return ((labels if name == "t5" else labels[:, 1:]) != -100).sum(1).float()


def slow_mask(own, support, group, noise, config, keep, lr=None):
    """The samples that update a group `[B]`, from each sample's gradient of its own mean loss, one by one."""
    names = list(group.parameters())
    dots = [sum(float((g[n].double() * support[n].double()).sum()) for n in names) for g in own]
    if config.mode == "positive":
        norms = [sum(float(g[n].double().square().sum()) for n in names) ** 0.5 for g in [*own, support]]
        return torch.tensor(
            [dot > config.threshold * norm * norms[-1] for dot, norm in zip(dots, norms, strict=False)]
        )
    keep = min(keep, len(own))
    if config.redundancy:
        chosen = []
        for _ in range(keep):
            gains = {}
            for i in set(range(len(own))) - set(chosen):
                overlap = sum(float((own[i][n].double() * own[j][n].double()).sum()) for j in chosen for n in names)
                gains[i] = lr * dots[i] - lr**2 * overlap
            chosen.append(max(gains, key=gains.get))
        return torch.tensor([i in chosen for i in range(len(own))])
    return draw(
        torch.tensor(dots), noise, torch.ones(len(own), dtype=torch.bool), keep=keep, mode=config.mode,
        temperature=config.temperature,
    )  # fmt: skip


def reference_support(model, support_data, config, own_loss=None):
    """The mean of the gradients of the support samples; of all rows for a saved gradient."""
    if config.support == "dataset":
        chosen = support_rows(config.seed, len(support_data), 0, config.support_batch_size)
        support_data = [support_data[row] for row in chosen]
    support_batch = collate(support_data)
    parts = [sample_gradient(model, support_batch, i, own_loss) for i in range(len(support_data))]
    return mean_of(parts)


def mean_of(parts):
    return {n: sum(part[n] for part in parts) / len(parts) for n in parts[0]}


def reference_gradients(
    model, name, batches, support_data, config, *, items=None, first_batch=0, rank=0, own_loss=None, loss_scale=1.0,
    lr=None,
):  # fmt: skip
    """The gradients of one optimizer step from a loop over samples; also the masks and the alignments.

    `items`: the number that token sums are divided by; without it each batch's loss is a mean over its samples or
    tokens, divided by the number of batches. `lr`: the learning rate, for `redundancy`.
    """
    model.eval()
    for module in model.modules():
        if hasattr(module, PACKS_IN_EVAL_MODE):
            setattr(module, PACKS_IN_EVAL_MODE, False)
    groups, unmasked = find_groups(model, config.group_by, config.outside_blocks)
    support = None if config.support == "batch" else reference_support(model, support_data, config, own_loss)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}
    all_masks, all_alignments = [], []
    for number, batch in enumerate(batches):
        size, counts = len(batch["labels"]), label_counts(batch, name)
        zeros = {n: torch.zeros_like(p) for n, p in total.items()}
        own = [sample_gradient(model, batch, i, own_loss) if counts[i] else zeros for i in range(size)]
        valid = counts > 0
        weights = counts / items if items else counts / counts.sum() / len(batches)
        noise = gumbel_noise(config.seed, rank, first_batch + number, len(groups), size)
        labelled = [g for g, has_loss in zip(own, valid, strict=True) if has_loss]
        aligned = mean_of(labelled) if config.support == "batch" else support
        keep, masks, alignments = kept_count(config.keep, size), {}, {}
        for group in groups:
            names = list(group.parameters())
            alignments[group.index] = torch.stack([sum((g[n] * aligned[n]).sum() for n in names) for g in own])
            masks[group.index] = torch.zeros(size, dtype=torch.bool)
            masks[group.index][valid] = slow_mask(
                labelled, aligned, group, noise[group.index][valid], config, keep, lr
            )
            scales = sample_scales(masks[group.index], valid, config.rescale) * weights
            for n in names:
                total[n] += loss_scale * sum(s * g[n] for s, g in zip(scales, own, strict=True))
        for n in unmasked:
            total[n] += loss_scale * sum(w * g[n] for w, g in zip(weights, own, strict=True))
        all_masks.append(masks)
        all_alignments.append(alignments)
    return {n: g.detach() for n, g in total.items()}, all_masks, all_alignments


def relative_error(found, expected):
    """Largest error of any matrix, relative to that matrix's norm."""
    missing = set(expected) ^ set(found)
    if missing:
        raise AssertionError(f"gradients of different parameters: {sorted(missing)}")
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-12)) for n in expected)


def same_masks(left, right):
    """Whether two recordings of masks have the same groups and masks in every step."""
    return len(left) == len(right) and all(
        one.keys() == other.keys() and all(torch.equal(one[group], other[group]) for group in one)
        for one, other in zip(left, right, strict=True)
    )
