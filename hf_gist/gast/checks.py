"""Checks that raise a ValueError for setups that GAST does not support."""

from collections.abc import Sequence
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import kept_count
from hf_gist.gradients.models import device_problem, unwrapped
from hf_gist.gradients.modes import checkpointed_blocks


UNSUPPORTED_DISTRIBUTION = {
    DistributedType.DEEPSPEED: "DeepSpeed, which collects gradients in its own hooks; use DDP or FSDP2",
    DistributedType.MEGATRON_LM: "Megatron-LM; use DDP or FSDP2",
    DistributedType.XLA: "XLA, which would recompile for every mask; use another backend",
}


def _argument_problems(args: TrainingArguments) -> list[str]:
    problems = []
    if args.per_device_train_batch_size < 2:
        problems.append(
            "GAST cannot choose among the samples of a batch of one; set `per_device_train_batch_size` to 2 or more"
        )
    if args.n_gpu > 1:
        problems.append(
            "`nn.DataParallel` splits the batch inside the model's forward call; start with `accelerate launch`"
        )
    if args.torch_compile:
        problems.append("`torch_compile=True` skips the hooks; turn it off")
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        problems.append(
            "packed or padding-free rows hold several samples; set `packing=False` and `padding_free=False`"
        )
    return problems


def _distribution_problems(accelerator: Any) -> list[str]:
    problems = []
    kind = accelerator.distributed_type
    if kind in UNSUPPORTED_DISTRIBUTION:
        problems.append(UNSUPPORTED_DISTRIBUTION[kind])
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        problems.append("FSDP version 1 flattens the parameters; set `fsdp_config={'version': 2}`")
    parallelism = getattr(accelerator, "parallelism_config", None)
    for name, size in (("tensor", "tp_size"), ("context", "cp_size"), ("sequence", "sp_size")):
        if parallelism is not None and (getattr(parallelism, size, 1) or 1) > 1:
            problems.append(f"{name} parallelism splits samples over processes; set `{size}=1`")
    return problems


def _model_problems(model: nn.Module) -> list[str]:
    spread = device_problem(model)
    problems = [] if spread is None else [spread]
    config = getattr(unwrapped(model), "config", None)
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if getattr(config, name, 0):
            problems.append(f"`{name}` skips whole layers at random; set it to 0 in the model's config")
    if config is not None and getattr(config.get_text_config(), "output_router_logits", False):
        problems.append(
            "the router loss mixes the samples of a batch; set `output_router_logits=False` in the model's config, and "
            "with TRL `router_aux_loss_coef=0` in `SFTConfig`, which otherwise turns it on"
        )
    return problems


def _is_reentrant(checkpoint: Any) -> bool:
    """Whether a checkpointing function, or one that it wraps, has `use_reentrant=True`."""
    while checkpoint is not None:
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            return True
        checkpoint = getattr(checkpoint, "__wrapped__", None) or getattr(checkpoint, "func", None)
    return False


REENTRANT = {
    DistributedType.FSDP: "FSDP2 does not work with reentrant activation checkpointing",
    "model": "`group_by='model'` does not work with reentrant activation checkpointing, which runs a backward pass in "
    "each block",
}


def _checkpointing_problems(args: TrainingArguments, accelerator: Any, model: nn.Module, group_by: str) -> list[str]:
    """Under FSDP2 reentrant checkpointing recomputes a block after its parameters were sharded again."""
    problem = REENTRANT.get(accelerator.distributed_type) or REENTRANT.get(group_by)
    if problem is None:
        return []
    functions = [getattr(block, "_gradient_checkpointing_func", None) for block in checkpointed_blocks(model)]
    options = args.gradient_checkpointing_kwargs
    wanted = args.gradient_checkpointing and isinstance(options, dict) and options.get("use_reentrant")
    if wanted or any(_is_reentrant(function) for function in functions):
        return [f"{problem}; set `gradient_checkpointing_kwargs={{'use_reentrant': False}}`"]
    return []


def check_supported(args: TrainingArguments, accelerator: Any, model: nn.Module, group_by: str = "block") -> None:
    """Check the whole setup of a run.

    Args:
        args (`TrainingArguments`): the trainer's arguments.
        accelerator (`Accelerator`): the trainer's accelerator.
        model (`nn.Module`): without the trainer's wrappers.
        group_by (`str`): the matrices that share a mask.

    Raises:
        ValueError: naming every problem and what to change.
    """
    problems = [*_argument_problems(args), *_distribution_problems(accelerator), *_model_problems(model)]
    problems += _checkpointing_problems(args, accelerator, model, group_by)
    if group_by == "model" and accelerator.distributed_type == DistributedType.FSDP:
        problems.append(
            "under FSDP2 a block's parameters are whole only while it computes, and `group_by='model'` masks all blocks "
            "at the end; use DDP, or set `group_by='block'`"
        )
    if problems:
        raise ValueError("GAST cannot mask this run: " + "; ".join(dict.fromkeys(problems)) + ".")


def check_keep(config: GASTConfig, batch_size: int, rows: int | None = None) -> None:
    """Check that the largest batch has more samples than `keep` keeps; otherwise no sample is ever masked.

    Args:
        config (`GASTConfig`): the configuration.
        batch_size (`int`): samples of a full per-device batch.
        rows (`int`, *optional*): rows of the training set, if no batch can have more.

    Raises:
        ValueError: naming both and what to set.
    """
    largest = min(rows, batch_size) if rows else batch_size
    few = largest < batch_size
    if config.mode in ("all", "positive") or kept_count(config.keep, largest) < largest:
        return
    whole = f" of {largest} rows, the whole training set" if few else f" of `per_device_train_batch_size={batch_size}`"
    ways = ["train on more rows" if few else "raise `per_device_train_batch_size`"]
    if largest > 1:
        smaller = "a smaller fraction" if isinstance(config.keep, float) else f"at most {largest - 1}"
        ways.insert(0, f"set `keep` to {smaller} (half of the batch is the default, `keep=0.5`)")
    raise ValueError(
        f"`keep={config.keep!r}` keeps every sample of a batch{whole}, so GAST would mask nothing: {', or '.join(ways)}; "
        "`mode='all'` trains without masks."
    )


def check_unmasked(accelerator: Any, unmasked: Sequence[str], support: str) -> None:
    """Check that under FSDP2 no parameter without a hook would get a gradient in the support pass.

    Raises:
        ValueError: naming the parameters and what to change.
    """
    if unmasked and support == "dataset" and accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError(
            f"Under FSDP2 the support pass would add to the gradients of {', '.join(unmasked[:5])}, which are outside "
            "the blocks. Set `outside_blocks='masked'` or `support='momentum'`, or freeze them."
        )
