"""What each of two processes runs in `test_gast.py`: `python -m tests.distributed.run_gast FOLDER KIND/CONFIG ...`."""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from hf_gist.config.gast import GASTConfig
from hf_gist.trainer import GASTTrainer
from tests.helpers.fsdp import FSDP2, ShardsOnCPU
from tests.helpers.gast import build_model, rows, train


KINDS = {
    "ddp": {},
    # stock DDP needs the third setting too: it marks a parameter as unused before the block is computed again
    "ddp_reentrant": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "ddp_find_unused_parameters": False,
    },
    "fsdp2": FSDP2,
}
CONFIGS = {
    "paper": GASTConfig(keep=2, support_batch_size=2, seed=5),
    "model": GASTConfig(keep=2, support_batch_size=2, seed=5, group_by="model"),
    "greedy": GASTConfig(keep=2, support_batch_size=2, seed=5, group_by="model", mode="topk", redundancy=True),
    "batch": GASTConfig(mode="positive", support="batch", threshold=0.2),
}
LR = 30.0
"""Large enough that the overlaps change what is chosen greedily; the gradients of one step do not depend on it."""


class ShardedGAST(ShardsOnCPU, GASTTrainer):
    """GAST under FSDP2."""


def run(kind: str, name: str, folder: Path) -> None:
    """Train one step, and write its gradients, batches, masks and alignments to `rankN.safetensors`."""
    trainer, recorder = train(
        build_model("llama"), folder / "run", rows("llama", 48), config=CONFIGS[name],
        per_device_train_batch_size=4, gradient_accumulation_steps=2, ddp_backend="gloo", learning_rate=LR,
        trainer_class=ShardedGAST if kind == "fsdp2" else GASTTrainer, **KINDS[kind],
    )  # fmt: skip
    tensors = {f"gradient/{name}": value for name, value in recorder.gradients[0].items()}
    for number, (batch, masks) in enumerate(zip(recorder.batches, recorder.masks, strict=True)):
        tensors |= {f"batch/{number}/{name}": value for name, value in batch.items()}
        tensors |= {f"mask/{number}/{group}": value for group, value in masks.items()}
        tensors |= {f"alignment/{number}/{g}": v for g, v in recorder.alignments[number].items()}
    wrapper = type(trainer.model_wrapped).__mro__[0].__name__
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        folder / f"rank{trainer.args.process_index}.safetensors",
        {"wrapper": wrapper},
    )


def main(folder: str, *cases: str) -> None:
    """Run the cases one after another, each in its own folder; what a case is refused with is its file `refused`."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for case in cases:
        own = Path(folder) / case
        own.mkdir(parents=True, exist_ok=True)
        try:
            run(*case.split("/"), own)
        except ValueError as error:
            (own / "refused").write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
