"""`WarmupSettings`: LoRA and training settings of the warm-up of `hf-gist select`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupSettings:
    """LoRA and training settings of the warm-up; each is a flag of `hf-gist select`.

    Args:
        lora_r (`int`, defaults to `16`): LoRA rank (paper: 128).
        lora_alpha (`int`, defaults to `64`): LoRA alpha (paper: 512; the default has the same ratio to the rank).
        lora_dropout (`float`, defaults to `0.1`): LoRA dropout (paper: 0.1).
        lora_target_modules (`str`, defaults to `"q_proj,k_proj,v_proj,o_proj"`): comma-separated module names, or
            `all-linear` (paper: the q, k, v and o projections).
        learning_rate (`float`, defaults to `0.0002`): peak learning rate (paper: 2e-5 at rank 128).
        per_device_train_batch_size (`int`, defaults to `32`): batch size (paper: 32).
        less_checkpoints (`int`, defaults to `4`): number of evenly spaced warm-up checkpoints that `scorer="less"`
            scores with, one pass each (LESS: 4).
    """

    lora_r: int = 16
    lora_alpha: int = 64
    lora_dropout: float = 0.1
    lora_target_modules: str = "q_proj,k_proj,v_proj,o_proj"
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 32
    less_checkpoints: int = 4
