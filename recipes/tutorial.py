"""A tutorial for hf_gist in notebook cells, with the small model and the generated pool of the demo.

    pip install -e ".[recipes]" && hf-gist demo      # writes the model and the rows to gist_demo/
    python recipes/tutorial.py gist_demo

Runs in about three minutes on two CPU cores, without a network. The cells (`# %%`) open as a notebook in most editors.
The output of a run is quoted under each cell (`# >`); seeds are fixed, so your output should be nearly the same.
"""

# %% The pool, the targets, the test
import copy
import sys
from collections import Counter
from pathlib import Path

import transformers
from datasets import load_dataset
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


DEMO = Path(sys.argv[1] if len(sys.argv) > 1 else "gist_demo")
OUT = Path(sys.argv[2] if len(sys.argv) > 2 else "gist_demo/tutorial")
transformers.logging.set_verbosity_error()

pool, targets, test = (
    load_dataset("json", data_files=str(DEMO / f"{name}.jsonl"), split="train") for name in ("pool", "targets", "test")
)
print(len(pool), "candidates,", len(targets), "targets,", len(test), "test rows")
print(targets[0]["messages"][0]["content"], "->", targets[0]["messages"][1]["content"])

# > 4800 candidates, 64 targets, 200 test rows
# > 6 rugs cost 11 coins each. Ada has 88 coins and buys them all. What is left? -> The rugs cost 6 * 11 = 66 coins. 88 - 66 = 22 coins. The answer is 22.

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

# > GIST: kept 240 of 4,800 rows (5.00%) with 64 target group(s), rank 26 of 64 (95.2% of the target gradients' variance); training on them for 60 steps.
# > kept rows                            240 of 4,800
# > kept labelled tokens               8,788 of 122,959
# > rank                                  26 of 64
# > target variance explained          95.2%
# > energy in the subspace             85.0% median of the kept rows, 14.6% of all scored rows
# >
# > source                        kept   of kept   of pool
# > change                         194     80.8%      5.0%
# > units                           26     10.8%      8.6%
# > total                           16      6.7%      8.6%
# > travel                           3      1.2%      8.6%
# > lookup                           1      0.4%      8.6%
# > (and seven tasks with no kept row)
# > test loss 1.268 after 75 steps

# %% What was selected, and why
selection = callback.selection
best = selection.indices[0]
print("best row:", pool[best]["messages"][1]["content"], f"(score {selection.scores[best]:.3f})")
print("it matches target", selection.group_names[int(selection.best_group[best])])
print(Counter(pool[i]["task"] for i in selection.indices).most_common(3))

# > best row: The bowls cost 9 * 12 = 108 coins. 137 - 108 = 29 coins. The answer is 29. (score 0.996)
# > it matches target 21
# > [('change', 194), ('units', 26), ('total', 16)]

# %% Another selection, without scoring again
# The scores are saved in the full-rank basis: budget, rank, grouping, score and strategy can be changed later, also
# from the artifacts on disk and on the command line (`hf-gist select --from_scores`).
again = Selection.load(OUT / "gist" / "gist").reselect(strategy="round_robin", budget=0.02)
print(Counter(pool[i]["task"] for i in again.indices).most_common(3))
print(
    len(set(again.indices) & set(selection.indices)), "of", len(again.indices), "rows are also in the first selection"
)

# > [('change', 95), ('total', 1)]
# > 91 of 96 rows are also in the first selection

# %% Is it better than random? The same training on random rows
# `strategy="random"` is a baseline with the same callback: same warm-up, same steps, random rows.
draw = GISTDataSelectorCallback(GISTConfig(budget=0.05, strategy="random"), target_dataset=targets)
random = trained("random", pool, [draw], num_train_epochs=5)
print(f"test loss {random.evaluate()['eval_loss']:.3f} after {random.state.global_step} steps")

# > random draw: kept 240 of 4,800 rows (5.00%); training on them for 60 steps.
# > kept rows                            240 of 4,800
# > kept labelled tokens               6,004 of 122,959
# > test loss 1.613 after 75 steps

# %% Cost
print(selection.costs.break_even())

# > Selecting cost 1.07 training passes over the whole pool, and a pass over the selected rows costs 0.064 of one over the pool: cheaper than training on everything from 2 epoch(s) on (1.20 against 2.00 passes).

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

# > largest relative difference below 1e-4: True

# %% GAST: masking samples by layer
# The same rows, but in every step each block is updated by 8 of 16 samples, drawn by how well their gradients align
# with the gradient of a few target rows.
masked = {"gast_config": GASTConfig(keep=8), "support_dataset": targets}
gast = trained("gast", pool.select(selection.indices), (), GASTSFTTrainer, masked, max_steps=60)
print(f"test loss {gast.evaluate()['eval_loss']:.3f} after {gast.state.global_step} steps")

# > test loss 1.275 after 60 steps

# %% Output files
print(sorted(path.name for path in (OUT / "gist" / "gist").iterdir()))
print(sorted(path.name for path in (OUT / "gast").iterdir() if path.name.startswith("gast")))

# > ['coordinates.safetensors', 'costs.json', 'energy.png', 'examples.json', 'gist_config.json', 'lengths.png', 'manifest.json', 'scores.parquet', 'scores.png', 'sources.png', 'spectrum.png', 'subspace.safetensors', 'targets.parquet']
# > ['gast_config.json', 'gast_history.parquet', 'gast_history.png', 'gast_manifest.json', 'gast_run.json', 'gast_selection.parquet', 'gast_selection.png']
