"""Time and peak memory of one training step: stock LoRA, GAST, plain implementations of the paper's two modes, dattri-llm.

All variants alternate in one process, so that other load on the machine slows all of them down; ratios are medians,
over groups of four rounds, of the time of a variant over that of the stock steps of the same rounds. On a CPU the
processor time is reported as well as the wall time: with one thread it depends little on other load.

`dattri-llm` drops as many samples of every LoRA matrix as GAST does of a block, with a support pass every step; it is
left out where it is not installed (`pip install --no-deps dattri-llm==0.1.0`).

    python recipes/benchmarks/gast_step.py --output gast_step.json
    python recipes/benchmarks/gast_step.py --device cuda --hidden_size 2048 --layers 16 --dtype bfloat16
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from memory import peak_bytes
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import draw, gumbel_noise, kept_count
from hf_gist.functional.per_sample import weight_gradients
from hf_gist.gast.groups import find_groups
from hf_gist.gradients.hooks import reporting
from hf_gist.gradients.lora import find_tracked
from hf_gist.trainer import GASTTrainer


TARGETS = {
    "stock": 1.0,
    "every 1": 1.33,
    "every 4": 1.12,
    "momentum": 1.05,
    "batch": 1.05,
    "positive, batch": 1.05,
    "model, every 1": 1.30,
    "redundancy, every 1": 1.30,
}
DATTRI = "dattri-llm"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the frozen model")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--support_batch_size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12, help="steps of every variant; a multiple of 4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of the variants to run in addition to stock")
    parser.add_argument("--output", help="JSON file to write")
    return parser.parse_args()


def build_model(options):
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.hidden_size, num_hidden_layers=options.layers,
        intermediate_size=int(2.75 * options.hidden_size), num_attention_heads=options.hidden_size // 64,
        num_key_value_heads=options.hidden_size // 64, max_position_embeddings=options.tokens,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    lora = LoraConfig(
        r=options.lora_rank, lora_alpha=2 * options.lora_rank, lora_dropout=0.05, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config).to(getattr(torch, options.dtype)), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return model.to(options.device)


# ---- The paper's two modes, plain implementation ----


class ReferenceTrainer(GASTTrainer):
    """Stock passes, with the masks computed outside of them and the support gradient in a separate backward pass."""

    def support_gradients(self, model):
        gradients = defaultdict(float)
        batch = self._prepare_inputs(self._gast_support_set.batch(self.steps, 0, 1))

        def add(tracked, a, d):
            gradients[tracked.name] = weight_gradients(a, d).sum(0)

        with reporting(self.tracked, add):
            model(**batch).loss.backward()
        self.steps += 1
        return gradients

    def prepare_reference(self):
        self.tracked = find_tracked(self.model)
        self.steps = 0
        self.groups, _ = find_groups(self.model, "block", "unmasked")

    def loss_of(self, model, inputs, num_items_in_batch):
        with self.compute_loss_context_manager():
            return self.compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)

    def masks(self, alignments):
        size = len(next(iter(alignments.values())))
        config = self.gast_config
        noise = gumbel_noise(config.seed, 0, self.steps, len(self.groups), size).to(self.args.device)
        valid = torch.ones(size, dtype=torch.bool, device=self.args.device)
        keep = kept_count(config.keep, size)
        return {
            group.name: draw(
                alignments[group.name], noise[group.index], valid, keep=keep, mode="stochastic", temperature=1.0
            ).float() * (size / keep)
            for group in self.groups
        }  # fmt: skip


class CachedTrainer(ReferenceTrainer):
    """The paper's "compute-efficient" mode: all per-sample gradients are kept until the last one is computed."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        support = self.support_gradients(model)
        cache = {}
        with reporting(self.tracked, lambda tracked, a, d: cache.update({tracked.name: weight_gradients(a, d)})):
            loss = self.loss_of(model, inputs, num_items_in_batch)
            loss.backward()
        alignments = defaultdict(float)
        for tracked in self.tracked:
            alignments[tracked.block] = alignments[tracked.block] + (
                cache[tracked.name].flatten(1) @ support[tracked.name].flatten()
            )
        masks = self.masks(alignments)
        for tracked in self.tracked:
            weight = tracked.module.weight
            mask = masks[tracked.block].to(cache[tracked.name].dtype)
            weight.grad = torch.einsum("b,boi->oi", mask, cache[tracked.name]).to(weight.dtype)
        return loss.detach()


class TwoPassTrainer(ReferenceTrainer):
    """The paper's "memory-efficient" mode: one pass for the alignments, a second one with the masks."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        support = self.support_gradients(model)
        alignments = defaultdict(float)

        def align(tracked, a, d):
            dots = weight_gradients(a, d).flatten(1) @ support[tracked.name].flatten()
            alignments[tracked.block] = alignments[tracked.block] + dots

        with reporting(self.tracked, align):
            self.loss_of(model, inputs, num_items_in_batch).backward()
        masks = self.masks(alignments)

        def masked(tracked, a, d):
            scaled = d * masks[tracked.block].to(d.dtype)[:, None, None]
            weight = tracked.module.weight
            weight.grad = (scaled.flatten(0, 1).T @ a.to(d.dtype).flatten(0, 1)).to(weight.dtype)

        with reporting(self.tracked, masked):
            loss = self.loss_of(model, inputs, num_items_in_batch)
            loss.backward()
        return loss.detach()


class OwnPassTrainer(GASTTrainer):
    """The support rows get a forward and backward pass of their own, as for a trainer with a loss of its own."""

    def sample_weights(self, inputs):
        return super().sample_weights(inputs)


class DattriTrainer(Trainer):
    """The same step with `dattri-llm`'s callback, which subtracts the worst aligned half of the samples of each matrix."""

    def prepare(self, options):
        from dattri_llm.gradient.callbacks.data_selection_callback import DataSelectionCallback
        from dattri_llm.gradient.hooks import HookManager, HookManagerConfig

        size = options.support_batch_size
        rows = [self.data_collator(self.train_dataset[i : i + size]) for i in range(0, len(self.train_dataset), size)]
        callback = DataSelectionCallback(
            self.model, target="val_loader", val_loader=[self._prepare_inputs(batch) for batch in rows],
            val_loss_fn=lambda model, batch: model(**batch).loss,
            selection_kwargs={"threshold": 0.5, "threshold_mode": "bottom_fraction", "layer_wise": True},
        )  # fmt: skip
        config = HookManagerConfig(hook_types={tracked.name: "linear_io" for tracked in find_tracked(self.model)})
        self.manager = HookManager(self.model, config=config, callbacks=[callback])

    def training_step(self, model, inputs, num_items_in_batch=None):
        with self.manager.collect():
            return super().training_step(model, inputs, num_items_in_batch)


VARIANTS = {
    "stock": (Trainer, None),
    "random": (GASTTrainer, {"mode": "random"}),
    "every 1": (GASTTrainer, {"support_every": 1}),
    "every 1, own pass": (OwnPassTrainer, {"support_every": 1}),
    "every 4": (GASTTrainer, {"support_every": 4}),
    "momentum": (GASTTrainer, {"support": "momentum"}),
    "batch": (GASTTrainer, {"support": "batch"}),
    "positive, batch": (GASTTrainer, {"mode": "positive", "support": "batch"}),
    "positive, every 1": (GASTTrainer, {"mode": "positive"}),
    "model, every 1": (GASTTrainer, {"group_by": "model"}),
    "model, batch": (GASTTrainer, {"group_by": "model", "support": "batch"}),
    "redundancy, every 1": (GASTTrainer, {"group_by": "model", "mode": "topk", "redundancy": True}),
    "cached (paper)": (CachedTrainer, {}),
    "two-pass (paper)": (TwoPassTrainer, {}),
    DATTRI: (DattriTrainer, None),
}


# ---- Measuring ----


class Variant:
    """A trainer whose steps are run individually."""

    def __init__(self, name, options, folder, model):
        self.name = name
        self.options = options
        trainer_class, config = VARIANTS[name]
        generator = torch.Generator().manual_seed(options.seed)
        ids = torch.randint(0, options.vocabulary, (64, options.tokens), generator=generator)
        data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=options.batch_size, report_to=[], save_strategy="no",
            use_cpu=options.device == "cpu", bf16=options.bf16, learning_rate=1e-4, disable_tqdm=True,
            max_grad_norm=1.0,
        )  # fmt: skip
        extra = {}
        if config is not None:
            # a support without rows has no size
            rows = config.get("support", "dataset") == "dataset"
            size = {"support_batch_size": options.support_batch_size} if rows else {}
            extra = {"gast_config": GASTConfig(seed=options.seed, **size, **config)}
        self.trainer = trainer_class(model=model, args=arguments, train_dataset=data, **extra)
        if isinstance(self.trainer, ReferenceTrainer):
            self.trainer.prepare_reference()
        if isinstance(self.trainer, DattriTrainer):
            self.trainer.prepare(options)
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        batch = ids[: options.batch_size].to(options.device)
        self.inputs = {"input_ids": batch, "labels": batch, "attention_mask": torch.ones_like(batch)}
        self.items = torch.tensor(batch.numel() - len(batch), device=options.device)

    def step(self):
        trainer = self.trainer
        loss = trainer.training_step(trainer.model, dict(self.inputs), self.items)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        return loss

    def timed(self):
        """Wall and processor seconds of one step."""
        self.synchronise()
        start = time.perf_counter(), time.process_time()
        self.step()
        self.synchronise()
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def synchronise(self):
        if self.options.device == "cuda":
            torch.cuda.synchronize()

    def resident(self):
        """Bytes held between steps: the model, the optimizer's state, the support gradient."""
        tensors = [*self.trainer.model.parameters(), *self.trainer.model.buffers()]
        tensors += [v for state in self.trainer.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        run = getattr(self.trainer, "gast", None)
        if run is not None and run.support is not None:
            tensors += run.support.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in {t.data_ptr(): t for t in tensors}.values())

    def peak(self):
        """Peak bytes of one step with a support pass, by the allocator, including the resident bytes."""
        if getattr(self.trainer, "gast", None) is not None:
            self.trainer.gast.support_step = None
        return self.resident() + peak_bytes(self.step, self.options.device)


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "q1": low, "q3": high}


def ratios(steps, stock_steps, clock):
    """Quartiles of the ratio to stock; four rounds are averaged, so that `every 4` counts its support pass once."""

    def by_four(values):
        return [statistics.mean(value[clock] for value in values[i : i + 4]) for i in range(0, len(values), 4)]

    found = [mine / stock for mine, stock in zip(by_four(steps), by_four(stock_steps), strict=True)]
    return quartiles(found if len(found) > 1 else found * 2)


def summarise(name, steps, stock_steps, peak, stock_peak):
    return {
        "name": name,
        "wall_seconds": quartiles([wall for wall, _ in steps]),
        "processor_seconds": quartiles([processor for _, processor in steps]),
        "wall_ratio": ratios(steps, stock_steps, 0),
        "processor_ratio": ratios(steps, stock_steps, 1),
        "time_target": TARGETS.get(name),
        "peak_bytes": peak,
        "memory_ratio": peak / stock_peak,
    }


def table(results, clocks):
    head = "".join(f" {clock} s/step | {clock} time / stock |" for clock in clocks)
    lines = [f"| variant |{head} target | peak MB | peak / stock |", "| --- |" + " --- |" * (2 * len(clocks) + 3)]

    def cell(values):
        return f"{values['median']:.3f} ({values['q1']:.3f}-{values['q3']:.3f})"

    for row in results:
        times = "".join(f" {cell(row[f'{c}_seconds'])} | {cell(row[f'{c}_ratio'])} |" for c in clocks)
        target = "" if row["time_target"] is None else row["time_target"]
        lines.append(
            f"| {row['name']} |{times} {target} | {row['peak_bytes'] / 2**20:.0f} | {row['memory_ratio']:.3f} |"
        )
    return "\n".join(lines) + "\n\nMedians, with quartiles in parentheses."


def main():
    options = parse()
    if options.rounds % 4:
        raise SystemExit("--rounds must be a multiple of 4, so that `every 4` is measured over whole periods")
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    names = [n for n in VARIANTS if n == "stock" or not options.only or n in options.only]
    if DATTRI in names and find_spec("dattri_llm") is None:
        print(f"{DATTRI} is not installed, and left out", file=sys.stderr)
        names.remove(DATTRI)
    seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(options)
        # the hooks of dattri-llm stay on its model
        models = {name: build_model(options) if name == DATTRI else model for name in names}
        variants = [Variant(name, options, folder, models[name]) for name in names]
        for variant in variants:
            for _ in range(4):
                # a whole period of `every 4`; the optimizer's state exists afterwards
                variant.step()
        for turn in range(options.rounds):
            for variant in variants[turn % len(variants) :] + variants[: turn % len(variants)]:
                seconds[variant.name].append(variant.timed())
            print(f"round {turn + 1}/{options.rounds}", file=sys.stderr, flush=True)
        peaks = {variant.name: variant.peak() for variant in variants}
    results = [summarise(n, seconds[n], seconds["stock"], peaks[n], peaks["stock"]) for n in names]
    print(table(results, ["wall", "processor"] if options.device == "cpu" else ["wall"]))
    if options.output:
        about = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), **vars(options)}
        Path(options.output).write_text(json.dumps({"settings": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
