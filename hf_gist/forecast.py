"""What a selection will need, said before it is done."""

import sys
from typing import Any

from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from hf_gist.baselines import stages_of
from hf_gist.collect import Pass
from hf_gist.config import UNSCORED, GISTConfig
from hf_gist.flops import ModelWork
from hf_gist.ledger import Sizes, expected_seconds
from hf_gist.manifest import SCORING, TARGETS, Stopwatch
from hf_gist.memory import MemoryPlan, plan_memory
from hf_gist.rows import row_lengths


def duration(seconds: float) -> str:
    """Seconds for a person."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    minutes = seconds / 60
    return f"{minutes:,.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def _say(run: Pass, text: str) -> None:
    if run.progress and PartialState().is_main_process:
        # stdout belongs to results
        tqdm.write(text, file=sys.stderr)


def forecast_memory(run: Pass, rows: int, targets: int, config: GISTConfig) -> MemoryPlan | None:
    """The memory that scoring will need, said on the main process; `None` for scorers without a large basis.

    Raises:
        ValueError: if there is no room for the basis.
    """
    if config.strategy in UNSCORED or config.scorer != "gist":
        return None
    plan = plan_memory(stages_of(run.model, config, ())[0].candidates, targets, rows, run.tokens_per_batch)
    _say(run, plan.describe())
    return plan


def forecast_scoring(
    run: Pass, targets: Any, pool: Any, label_tokens: Tensor, config: GISTConfig, watch: Stopwatch
) -> None:
    """The time that scoring will take, from what the targets took; noted in `watch` and said on the main process.

    Args:
        run (`Pass`): how rows are gone over.
        targets: tokenised target rows, done.
        pool: tokenised candidates, to be done.
        label_tokens (`Tensor`): labelled tokens of the usable targets `[M]`.
        config (`GISTConfig`): how they are scored.
        watch (`Stopwatch`): knows the seconds of the targets.
    """
    wanted, lengths = row_lengths(targets), row_lengths(pool)
    if wanted is None or lengths is None:
        return
    labelled = int(label_tokens.sum())
    # as many of the candidates' tokens carry a label, as far as can be known before they are collated
    share = labelled / max(1, int(wanted.sum()))
    done, todo = Sizes(wanted, labelled), Sizes(lengths, int(share * int(lengths.sum())))
    seconds = expected_seconds(ModelWork.of(run.model), config, done, todo, watch.seconds[TARGETS])
    watch.forecasts[SCORING] = round(seconds, 1)
    _say(run, f"scoring {len(lengths):,} rows of {int(lengths.sum()):,} tokens will take about {duration(seconds)}")
