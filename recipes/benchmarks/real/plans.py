"""The rows that the library would score for `scoring_cost`, where exact scores of all rows exist."""

import dataclasses

import torch
from frontier_parts.flags import lora_of

from hf_gist.costs.clock import RunClock
from hf_gist.costs.stopwatch import WARMUP
from hf_gist.data.leaks import find_leaks
from hf_gist.data.rows import row_lengths
from hf_gist.gist.inputs import Inputs
from hf_gist.gist.scoring_cost.plan import plan_scoring
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import fresh_lora


TOKENS = ["input_ids", "labels"]


def plan_for(cost, scores, target, config, warmup_rows):
    """The library's own plan.

    Args:
        cost (`float`): `scoring_cost`.
        scores (`Scores`): of the model that selects.
        target (`str`): name of the target.
        config (`GISTConfig`): of the selection.
        warmup_rows (`list[int]`): rows of the pool that the warm-up trains on.

    Returns:
        `ScoringPlan`: its rows and costs.
    """
    model = fresh_lora(scores.base, lora_of(scores.options), config.seed)
    try:
        pool = scores.data.pool.select_columns(TOKENS)
        targets = scores.data.of_target(target).select_columns(TOKENS)
        leaks = find_leaks(pool, targets, None, scores.data.tokenizer, quiet=True)
        spent = RunClock().cost(WARMUP, model, row_lengths(pool), warmup_rows)
        dataset_pass = DatasetPass(
            model, scores.collator, config.scoring_tokens_per_batch, config.scoring_dtype, progress=False
        )
        within = dataclasses.replace(config, scoring_cost=cost)
        return plan_scoring(dataset_pass, Inputs(pool, targets, {}, leaks=leaks), within, spent)
    finally:
        model.unload()


def scored_only(measurements, plan):
    """The measurements as if only the rows of a plan had been scored."""
    if plan.rows is None:
        return measurements
    mask = torch.zeros(len(measurements.norms), dtype=torch.bool)
    mask[plan.rows] = True
    return dataclasses.replace(measurements, scored=mask)
