"""One selection inside a running Trainer: by the model, optimizer and loss of this moment."""

import dataclasses
import warnings

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.ledger import PhaseCost
from hf_gist.errors import NoEffectWarning
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scorers.less import adam_checkpoint
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring import measure_and_choose
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gist.scoring_cost.share import check_share
from hf_gist.gist.selection import Selection
from hf_gist.gradients.partial import PartialScores
from hf_gist.training.losses.choice import verified_loss
from hf_gist.training.parts import TrainerParts


def choose_rows(
    parts: TrainerParts,
    inputs: Inputs,
    config: GISTConfig,
    partial: PartialScores,
    number: int = 1,
    warmup: PhaseCost | None = None,
) -> Selection:
    """Score the pool by the model as it is now, and select.

    Args:
        parts (`TrainerParts`): the trainer's objects.
        inputs (`Inputs`): the checked inputs.
        config (`GISTConfig`): the callback's configuration.
        partial (`PartialScores`): unfinished scores.
        number (`int`): of the selection, from 1.
        warmup (`PhaseCost`, *optional*): cost of the warm-up, for the first selection.
    """
    if scorer_of(config).needs_adam:
        checkpoint = adam_checkpoint(parts.model, parts.optimizer, 1.0)
        inputs = dataclasses.replace(inputs, checkpoints=[checkpoint])
    dataset_pass = parts.dataset_pass(config, inputs.loss)
    if inputs.loss is not None and config.strategy not in UNSCORED:
        # before the first step, rows that a loss mixes may still have parallel gradients
        loss = verified_loss(inputs.loss, dataset_pass, parts, config.seed)
        dataset_pass = parts.dataset_pass(config, loss)
    selection = measure_and_choose(dataset_pass, inputs, config, partial, warmup, number)
    if len(selection.indices) == len(inputs.pool):
        warnings.warn("GIST kept the whole pool: the selection has no effect.", NoEffectWarning, stacklevel=6)
    return selection


def check_costs(parts: TrainerParts, inputs: Inputs, config: GISTConfig, warmup: PhaseCost, selections: int) -> None:
    """Check before the warm-up that every selection has enough rows to choose from.

    Args:
        parts (`TrainerParts`): the trainer's objects.
        inputs (`Inputs`): the checked inputs.
        config (`GISTConfig`): `scoring_cost` and `reselect_share`.
        warmup (`PhaseCost`): cost of the warm-up.
        selections (`int`): number of selections that the run is planned to have.

    Raises:
        ValueError: if `scoring_cost` or `reselect_share` has too few rows for the budget, naming what is enough.
    """
    dataset_pass = parts.dataset_pass(config, inputs.loss)
    plan_scoring(dataset_pass, inputs, config, warmup)
    for share in check_share(dataset_pass, inputs, config, range(2, selections + 1)):
        plan_scoring(dataset_pass, inputs, config, share=share)
