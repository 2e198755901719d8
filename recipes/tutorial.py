"""A tutorial for hf_gist in notebook cells, with the small model and the generated pool of the demo.

    pip install -e ".[recipes]" && hf-gist demo      # writes the model and the rows to gist_demo/
    python recipes/tutorial.py                       # reads them from there

Runs in about three minutes on two CPU cores, without a network. `tutorial.ipynb` is the same with the output of a run;
seeds are fixed, so your output should be nearly the same.
"""

# %% The pool, the targets, the test
import copy
import textwrap
from collections import Counter
from pathlib import Path

import transformers
from datasets import disable_progress_bars, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq
from trl import SFTConfig, SFTTrainer

from hf_gist import (
    GASTConfig,
    GASTSFTTrainer,
    GISTConfig,
    GISTDataSelectorCallback,
    Selection,
    per_sample_gradients_reference,
    select,
)


DEMO = Path("gist_demo")  # the output folder of `hf-gist demo`
OUT = DEMO / "tutorial"
transformers.logging.set_verbosity_error()
disable_progress_bars()

pool, targets, test = (
    load_dataset("json", data_files=str(DEMO / f"{name}.jsonl"), split="train") for name in ("pool", "targets", "test")
)
print(len(pool), "candidates,", len(targets), "targets,", len(test), "test rows")
print(targets[0]["messages"][0]["content"], "->", targets[0]["messages"][1]["content"])

# %% A model with a LoRA
# Every training run below starts from the same adapter, so that only the rows differ.
tokenizer = AutoTokenizer.from_pretrained(DEMO / "base_model")
base = AutoModelForCausalLM.from_pretrained(DEMO / "base_model")
lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=64, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])


def fresh_model():
    """The base model with a new adapter, which has the same weights each time."""
    transformers.set_seed(0)
    return get_peft_model(copy.deepcopy(base), lora)


def trained(name, rows, callbacks=(), trainer_class=SFTTrainer, more=None, **arguments):
    """Train with the settings that all runs share and labels on the assistant's turns; returns the trainer."""
    settings = SFTConfig(
        str(OUT / name),
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        max_length=128,
        assistant_only_loss=True,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        **arguments,
    )
    trainer = trainer_class(
        fresh_model(),
        args=settings,
        train_dataset=rows,
        eval_dataset=test,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        **(more or {}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer


# %% GIST: one callback
# The first epoch is the warm-up on 5 % of the pool. Then all rows are scored by the alignment of their gradients with
# those of the targets, and each further epoch is one pass over the best 5 %.
config = GISTConfig(budget=0.05, source_column="task")
callback = GISTDataSelectorCallback(config, target_dataset=targets, train_dataset=pool)
gist = trained("gist", pool, [callback], num_train_epochs=5)
print(f"test loss {gist.evaluate()['eval_loss']:.3f} after {gist.state.global_step} steps")

# %% What was selected, and why
selection = callback.selection
best = selection.indices[0]
print("best row:", pool[best]["messages"][1]["content"], f"(score {selection.scores[best]:.3f})")
print("it matches target", selection.group_names[int(selection.best_group[best])])
print(Counter(pool[i]["task"] for i in selection.indices).most_common(3))

# %% Another selection, without scoring again
# The scores are saved in the full-rank basis: budget, rank, grouping, score and strategy can be changed later, also
# from the artifacts on disk and on the command line (`hf-gist select --from_scores`).
again = Selection.load(OUT / "gist" / "gist").reselect(strategy="round_robin", budget=0.02)
print(Counter(pool[i]["task"] for i in again.indices).most_common(3))
print(
    len(set(again.indices) & set(selection.indices)), "of", len(again.indices), "rows are also in the first selection"
)

# %% Is it better than random? The same training on random rows
# `strategy="random"` is a baseline with the same callback: same warm-up, same steps, random rows.
draw = GISTDataSelectorCallback(GISTConfig(budget=0.05, strategy="random"), target_dataset=targets)
random = trained("random", pool, [draw], num_train_epochs=5)
print(f"test loss {random.evaluate()['eval_loss']:.3f} after {random.state.global_step} steps")

# %% Cost
print(textwrap.fill(selection.costs.break_even(), 96))

# %% Check the fast path on your own model
# `per_sample_gradients_reference` is a plain loop with one backward pass per row. `select` must give the same norms.
model, collator = random.model, DataCollatorForSeq2Seq(tokenizer)
rows = random.train_dataset.select(range(6)).select_columns(["input_ids", "labels"])  # tokenised by SFTTrainer
slow = per_sample_gradients_reference(model, rows, collator)
fast = select(
    model, rows, rows, GISTConfig(budget=3, drop_target_duplicates=False), data_collator=collator, progress=False
)
slow_norms = [sum(float(g.square().sum()) for g in gradients.values()) ** 0.5 for gradients in slow]
worst = max(abs(a - b) / b for a, b in zip(fast.measurements.norms.tolist(), slow_norms, strict=True))
print("largest relative difference below 1e-4:", worst < 1e-4)

# %% GAST: masking samples by layer
# The same rows, but in every step each block is updated by 8 of 16 samples, drawn by how well their gradients align
# with the gradient of a few target rows.
masked = {"gast_config": GASTConfig(keep=8), "support_dataset": targets}
gast = trained("gast", pool.select(selection.indices), (), GASTSFTTrainer, masked, max_steps=60)
print(f"test loss {gast.evaluate()['eval_loss']:.3f} after {gast.state.global_step} steps")

# %% Output files
for folder, pattern in ((OUT / "gist" / "gist", "*"), (OUT / "gast", "gast*")):
    names = sorted(path.name for path in folder.glob(pattern))
    print(textwrap.fill(f"{folder.relative_to(OUT)}: {', '.join(names)}", 96, subsequent_indent="   "))
