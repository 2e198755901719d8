from unittest.mock import patch

import torch
from transformers import TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import draw, gumbel_noise, kept_count, sample_scales, support_rows
from hf_gist.gast.groups import find_groups
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
        return patch("hf_gist.training.gast_support.OWN_PASS_ON", ())
    return patch("hf_gist.training.gast_support.rows_to_append", lambda trainer, run, inputs: None)


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


def reference_gradients(
    model, name, batches, support_data, config, *, items=None, first_batch=0, rank=0, own_loss=None, loss_scale=1.0
):
    """The gradients of one optimizer step from a loop over samples; also the masks and the alignments.

    `items`: the number that token sums are divided by; without it each batch's loss is a mean over its samples or
    tokens, divided by the number of batches.
    """
    model.eval()
    groups, unmasked = find_groups(model, config.group_by, config.outside_blocks)
    chosen = support_rows(config.seed, len(support_data), 0, config.support_batch_size)
    support_batch = collate([support_data[row] for row in chosen])
    parts = [sample_gradient(model, support_batch, i, own_loss) for i in range(len(chosen))]
    support = {n: sum(part[n] for part in parts) / len(parts) for n in parts[0]}
    total = {n: torch.zeros_like(g) for n, g in support.items()}
    all_masks, all_alignments = [], []
    for number, batch in enumerate(batches):
        size, counts = len(batch["labels"]), label_counts(batch, name)
        own = [sample_gradient(model, batch, i, own_loss) for i in range(size)]
        weights = counts / items if items else counts / counts.sum() / len(batches)
        noise = gumbel_noise(config.seed, rank, first_batch + number, len(groups), size)
        masks, alignments = {}, {}
        for group in groups:
            names = list(group.parameters())
            alignments[group.index] = torch.stack([sum((g[n] * support[n]).sum() for n in names) for g in own])
            valid = torch.ones(size, dtype=torch.bool)
            masks[group.index] = draw(
                alignments[group.index], noise[group.index], valid, keep=kept_count(config.keep, size),
                mode=config.mode, temperature=config.temperature,
            )  # fmt: skip
            scales = sample_scales(masks[group.index], valid, config.rescale) * weights
            for n in names:
                total[n] += loss_scale * sum(s * g[n] for s, g in zip(scales, own, strict=True))
        for n in unmasked:
            total[n] += loss_scale * sum(w * g[n] for w, g in zip(weights, own, strict=True))
        all_masks.append(masks)
        all_alignments.append(alignments)
    return total, all_masks, all_alignments


def relative_error(found, expected):
    """Largest error of any matrix, relative to that matrix's norm."""
    missing = set(expected) ^ set(found)
    if missing:
        raise AssertionError(f"gradients of different parameters: {sorted(missing)}")
    return max(float((found[n] - expected[n]).norm() / expected[n].norm().clamp(min=1e-12)) for n in expected)
