"""Tiny models and data for the GAST tests, and the slow reference: one forward and backward for every sample."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import draw, gumbel_noise, kept_count, sample_scales, support_rows
from hf_gist.gast.groups import find_groups
from hf_gist.trainer import GASTTrainer


VOCABULARY = 61


def _decoder(config_class, model_class):
    return model_class(
        config_class(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
        )
    )  # fmt: skip


def _t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
            dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0, eos_token_id=2,
        )
    )  # fmt: skip


MODELS = {
    "llama": (lambda: _decoder(LlamaConfig, LlamaForCausalLM), ["q_proj", "v_proj", "down_proj"], "CAUSAL_LM"),
    "qwen2": (lambda: _decoder(Qwen2Config, Qwen2ForCausalLM), ["q_proj", "k_proj", "up_proj"], "CAUSAL_LM"),
    "gpt2": (_gpt2, ["c_attn", "c_fc"], "CAUSAL_LM"),
    "bert": (_bert, ["query", "value", "dense"], "SEQ_CLS"),
    "t5": (_t5, ["q", "v", "wi"], "SEQ_2_SEQ_LM"),
}


def build_model(name="llama", *, seed=0, dropout=0.0, **lora):
    """A tiny peft model whose LoRA B matrices are not zero, so that every matrix has a gradient."""
    torch.manual_seed(seed)
    build, targets, task = MODELS[name]
    lora = {"r": 2, "lora_alpha": 4, "target_modules": targets, "task_type": task, "lora_dropout": dropout, **lora}
    model = get_peft_model(build(), LoraConfig(**lora))
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def rows(name="llama", count=16, *, seed=0, longest=14):
    """Rows of unequal lengths, with a prompt part without labels."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low, high, size):
        return torch.randint(low, high, (size,), generator=generator).tolist()

    result = []
    for index in range(count):
        length = integers(4, longest, 1)[0]
        ids = integers(3, VOCABULARY, length)
        if name == "bert":
            labels = index % 3
        elif name == "t5":
            labels = integers(3, VOCABULARY, integers(2, longest, 1)[0])
        else:
            prompt = integers(1, length - 1, 1)[0]
            labels = [-100] * prompt + ids[prompt:]
        result.append({"input_ids": ids, "labels": labels, "source": "even" if index % 2 == 0 else "odd"})
    return result


def collate(batch):
    """Right padding with an attention mask."""
    width = max(len(row["input_ids"]) for row in batch)
    out = {
        "input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        ),
    }
    if isinstance(batch[0]["labels"], int):
        out["labels"] = torch.tensor([row["labels"] for row in batch])
    else:
        width = max(len(row["labels"]) for row in batch)
        out["labels"] = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in batch])
    return out


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
    """The gradients of one optimizer step by the slow, obvious way; also the masks and the alignments.

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
