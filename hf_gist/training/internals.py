"""List of the private names of other packages that this library uses.

`tests/training/test_internals.py` fails with the reason of an entry when a release of its owner drops the name, and
when the package uses a private name that has no entry.
"""

from dataclasses import dataclass

from tqdm.auto import tqdm


@dataclass(frozen=True)
class Internal:
    """A name that may change without notice.

    Args:
        owner (`str`): dotted path of the class or module with the attribute.
        name (`str`): the attribute.
        why (`str`): what breaks without it.
        set_by (`str`): how it is defined: `"class"` (an attribute of the owner), or `"source"` (an attribute of
            instances, found in the source of the owner or of a base class).
    """

    owner: str
    name: str
    why: str
    set_by: str = "class"


TRAINER = "transformers.Trainer"
SFT = "trl.SFTTrainer"

INTERNALS = (
    Internal(TRAINER, "_get_output_dir", "the checkpoint folder of a hyperparameter trial differs"),
    Internal(TRAINER, "_load_optimizer_and_scheduler", "names the checkpoint, also if a resumed run has no step left"),
    Internal(TRAINER, "_save_checkpoint", "GAST's state must be in the checkpoint before it is pushed"),
    Internal(TRAINER, "_prepare_inputs", "the support batch must be on the device, as the training batch is"),
    Internal(TRAINER, "_remove_unused_columns", "support rows must have the columns that training rows have"),
    Internal(TRAINER, "_get_collator_with_removed_columns", "the same for support rows that are not a `Dataset`"),
    Internal(TRAINER, "_set_signature_columns_if_needed", "the column of the sources must survive the removal"),
    Internal(
        TRAINER,
        "_signature_columns",
        "the columns of support rows; that of the sources must survive the removal",
        "source",
    ),
    Internal(TRAINER, "_train_batch_size", "`auto_find_batch_size` restarts with a smaller batch", "source"),
    Internal(TRAINER, "set_initial_training_values", "patched, so that `max_steps` has enough epochs for the passes"),
    Internal(SFT, "_prepare_dataset", "target, evaluation and support rows are prepared as the training rows"),
    Internal(SFT, "_skip_prepare_dataset", "rows that SFTTrainer does not prepare are not prepared here", "source"),
    Internal(
        SFT, "_formatting_func", "target, evaluation and support rows are formatted as the training rows", "source"
    ),
    Internal("trl.DPOTrainer", "_is_vision_dataset", "pairs with images are refused", "source"),
    Internal(SFT, "_metrics", "the support pass must not count in SFTTrainer's running metrics", "source"),
    Internal(SFT, "_total_train_tokens", "the support pass must not count in SFTTrainer's token total", "source"),
    Internal(
        "peft.tuners.lora.LoraLayer", "cast_input_dtype_enabled", "16-bit inputs are kept without a copy", "source"
    ),
    Internal("peft.tuners.lora.LoraLayer", "lora_variant", "distinguishes plain LoRA from DoRA and others", "source"),
    Internal("peft.tuners.lora.LoraLayer", "adapter_layer_names", "finds adapters that are loaded and not active"),
    Internal("peft.tuners.lora.dora", "DoraLinearLayer", "the magnitude of DoRA on linear layers"),
    Internal("peft.tuners.lora.dora.DoraLinearLayer", "get_weight_norm", "the derivative for DoRA's magnitude"),
    Internal("peft.tuners.lora.layer", "ParamWrapper", "its modules are not called, so hooks do not run"),
    Internal("peft.utils.integrations", "dequantize_module_weight", "the base weights of a quantised DoRA layer"),
    Internal("peft.utils.other", "transpose", "the base weights of a DoRA layer on `Conv1D`"),
    Internal(
        "transformers.modeling_layers.GradientCheckpointingLayer",
        "_gradient_checkpointing_func",
        "checkpointing without dropout in the support pass; reentrant checkpointing is refused under FSDP2",
        "source",
    ),
    Internal("transformers.PreTrainedConfig", "_name_or_path", "the id of the base model, for the manifest", "source"),
    Internal("transformers.PreTrainedConfig", "_commit_hash", "the revision of the base model", "source"),
    Internal("transformers.tokenization_utils_base", "VERY_LARGE_INTEGER", "a tokenizer without a length limit"),
    Internal("accelerate.Accelerator", "_original_forward", "rows are scored without accelerate's autocast", "source"),
    Internal("accelerate.utils.memory", "should_reduce_batch_size", "distinguishes out-of-memory from other errors"),
    Internal("datasets.Dataset", "_fingerprint", "identifies a dataset in the manifest", "source"),
    Internal(
        "datasets.Dataset", "_indices", "columns of exact JSON are put into a table whose rows were selected", "source"
    ),
    Internal("torch.optim.lr_scheduler.LRScheduler", "_last_lr", "the rate that is logged after a change", "source"),
    Internal("torch.nn.Module", "_parameters", "hides DoRA's magnitude from the graph without changing it", "source"),
    Internal("tqdm.auto.tqdm", "_instances", "Trainer's progress bar shows the correct number of steps", "source"),
)
"""Sorted by owner."""


def resize_progress_bars(before: int, after: int) -> None:
    """Set the total of open progress bars from `before` to `after` steps.

    A callback added with `add_callback` runs after Trainer has created its progress bar.
    """
    if before == after:
        return
    for bar in list(getattr(tqdm, "_instances", ())):
        if bar.total == before:
            bar.total = after
            bar.refresh()
