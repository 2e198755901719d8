"""A new LoRA after its warm-up; the adapter is saved in the output folder and reused."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_gist.commands.workspace import Workspace, token_counts
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.clock import RunClock
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import WARMUP
from hf_gist.data.leaks import excluded_rows, find_leaks
from hf_gist.data.rows import content_digest
from hf_gist.gist.forecast import forecast_memory
from hf_gist.gist.inputs import Inputs, prepare
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gradients.models import weights_digest
from hf_gist.training.loading import fresh_lora, load_adapter
from hf_gist.training.warmup import warm_up, warmup_rows
from hf_gist.utils.disk import as_json, read_json, write_json


WARMUP_ADAPTER = "warmup_adapter"
MADE_WITH = "warmup.json"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Warmed:
    """A model after its warm-up.

    Args:
        model (`PeftModel`): the model.
        checkpoints (`Sequence[AdamCheckpoint]`): what `scorer="less"` needs.
        cost (`PhaseCost`): cost of the warm-up when it was run.
    """

    model: PeftModel
    checkpoints: Sequence[AdamCheckpoint]
    cost: PhaseCost


def warmed_model(
    workspace: Workspace,
    base: PreTrainedModel,
    settings: WarmupSettings,
    config: GISTConfig,
    evaluation: Dataset | None = None,
) -> Warmed:
    """A new LoRA on the base model after its warm-up, trained now or in an earlier run into the same folder.

    Args:
        workspace (`Workspace`): pool and targets.
        base (`PreTrainedModel`): the base model.
        settings (`WarmupSettings`): of the warm-up.
        config (`GISTConfig`): of the selection that follows.
        evaluation (`Dataset`, *optional*): rows that are excluded from the warm-up, like the targets.

    Raises:
        ValueError: for inputs that cannot be scored, before the warm-up.
    """
    model = fresh_lora(base, settings, config.seed)
    rows, excluded = _checked_rows(workspace, model, settings, config, evaluation)
    made_with = _warmup_key(workspace, base, settings, config, excluded)
    folder = workspace.arguments.folder / WARMUP_ADAPTER
    clock = RunClock()
    checkpoints: list[AdamCheckpoint] = []
    # LESS also needs the optimizer state of the warm-up, which is not saved
    if not scorer_of(config).needs_adam and _is_kept(folder, made_with):
        logger.warning(f"Reusing the warm-up of an earlier run: {folder}")
        clock.restore(folder)
        cost = clock.cost(WARMUP, model, token_counts(workspace.pool), rows)
        return Warmed(load_adapter(model.unload(), str(folder)), checkpoints, cost)
    (folder / MADE_WITH).unlink(missing_ok=True)
    checkpoints = warm_up(model, workspace.pool, workspace.tokenizer, config, settings, folder, rows)
    clock.record(WARMUP)
    clock.save(folder)
    write_json(folder / MADE_WITH, made_with)
    return Warmed(model, checkpoints, clock.cost(WARMUP, model, token_counts(workspace.pool), rows))


def check_warm_up(
    workspace: Workspace,
    base: PreTrainedModel,
    settings: WarmupSettings,
    config: GISTConfig,
    evaluation: Dataset | None = None,
) -> None:
    """The checks of [`warmed_model`] alone; its arguments.

    Raises:
        ValueError: for inputs that cannot be scored, or if `scoring_cost` does not pay for enough rows.
    """
    model = fresh_lora(base, settings, config.seed)
    try:
        _checked_rows(workspace, model, settings, config, evaluation)
    finally:
        model.unload()


def _checked_rows(
    workspace: Workspace, model: PeftModel, settings: WarmupSettings, config: GISTConfig, evaluation: Dataset | None
) -> tuple[list[int], torch.Tensor | None]:
    """The rows that the warm-up trains on, and `[N]` bool, those that it must not; raises for what cannot be scored."""
    inputs = _checked_inputs(workspace, model, config, evaluation)
    excluded = workspace.with_bad_rows(excluded_rows(inputs.leaks, len(inputs.pool), config))
    rows = warmup_rows(config, settings, len(workspace.pool), excluded)
    cost = RunClock().cost(WARMUP, model, token_counts(workspace.pool), rows)
    passes = scoring_passes(config, settings, len(rows))
    plan_scoring(workspace.dataset_pass(model, config), inputs, config, cost, passes)
    return rows, excluded


def _is_kept(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether the folder holds a finished warm-up with the same inputs and settings."""
    return (folder / MADE_WITH).exists() and read_json(folder / MADE_WITH) == made_with


def scoring_passes(config: GISTConfig, settings: WarmupSettings, rows: int) -> int:
    """The number of checkpoints that every row is scored at after a warm-up on `rows` rows."""
    steps = math.ceil(rows / settings.per_device_train_batch_size)
    return min(settings.less_checkpoints, steps) if scorer_of(config).needs_adam else 1


def _checked_inputs(workspace: Workspace, model: PeftModel, config: GISTConfig, evaluation: Dataset | None) -> Inputs:
    """The inputs of the scoring; raises for those that cannot be scored."""
    inputs = prepare(model, workspace.pool, workspace.targets, config, workspace.collator)
    size = len(workspace.pool)
    forecast_memory(workspace.dataset_pass(model, config), size, len(workspace.targets), config)
    leaks = find_leaks(inputs.pool, inputs.targets, evaluation, workspace.tokenizer, quiet=True)
    return replace(inputs, leaks=leaks)


def _warmup_key(
    workspace: Workspace,
    base: PreTrainedModel,
    settings: WarmupSettings,
    config: GISTConfig,
    excluded: torch.Tensor | None,
) -> dict[str, Any]:
    """Everything that a warm-up depends on."""
    key = asdict(settings)
    key |= {"warmup_ratio": config.warmup_ratio, "warmup_steps": config.warmup_steps, "seed": config.seed}
    key["barred"] = [] if excluded is None else excluded.nonzero().flatten().tolist()
    key["pool"] = content_digest(workspace.pool.select_columns(["input_ids", "labels"]))
    # only the weights of the base model, whose names have peft's prefixes
    key["base"] = weights_digest(base, False)
    return as_json(key)
