"""Baselines of a comparison that are no setting of `GISTConfig`: their row scores, and what these cost.

Three baselines without gradients of the pool:

- Mean input embeddings: their cosine with each target row; the model is not run.
- BM25: the matches of each target row's text; no model.
- Normalised fall of the loss: how much of a row's loss goes away when a new LoRA is trained shortly on the targets (Yang
  et al., 2026, arXiv 2605.09404, "normalized endpoint loss drop"). It is measured here from the untrained model on; the
  code published with the paper takes the loss after the first part of the training as the first one, and trains a LoRA of
  rank 1 with a learning rate and a length that it chooses for each target set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from hf_gist.commands.bench import quiet_arguments
from hf_gist.commands.compare.arms import BM25, LOSS_DROP, NEAREST, rows_by_scores
from hf_gist.commands.workspace import Workspace, token_counts
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.accounting import Sizes, scoring_phase, times, training_cost
from hf_gist.costs.clock import RunClock
from hf_gist.costs.flops import ModelWork
from hf_gist.costs.ledger import CostLedger, PhaseCost
from hf_gist.costs.stopwatch import SCORING, TRAINING, WARMUP, peak_memory_bytes
from hf_gist.data.best_match import best_match_scores
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.scoring_cost.nearest import nearest_cosines
from hf_gist.gradients.collect import collect_losses
from hf_gist.gradients.models import model_device
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import fresh_lora
from hf_gist.utils.disk import read, write
from hf_gist.utils.step_bar import with_step_bar


ROW_SCORES = "row_scores.safetensors"

TARGET_EPOCHS = 4
"""Passes over the targets between the two measurements. The paper chooses the length for each target set, from 2 to 64
checkpoints of its training (2, 2 and 64); here it is the same for all, and short."""

SMALLEST_LOSS = 1e-8
"""Added to the loss that a fall is divided by, as in the code published with the paper, for rows without any loss."""


@dataclass(frozen=True)
class BaselineInputs:
    """What the baselines score with.

    Args:
        workspace (`Workspace`): pool and targets.
        base (`PreTrainedModel`): the base model; it gets a new LoRA for the time of the scoring.
        warmup (`WarmupSettings`): LoRA, learning rate and batch size of the training on the targets.
        config (`GISTConfig`): settings that the arms share.
        measured (`Measurements`): label counts of the pool, and the target rows to use.
        folder (`Path`): where the scores are saved.
    """

    workspace: Workspace
    base: PreTrainedModel
    warmup: WarmupSettings
    config: GISTConfig
    measured: Measurements
    folder: Path

    @property
    def trainable_targets(self) -> list[int]:
        """Row numbers of the targets with a labelled token; a batch of others has no loss to train on.

        Raises:
            ValueError: if there are none.
        """
        tokens = self.measured.target_label_tokens.tolist()
        rows = [row for row, count in zip(self.measured.target_numbers, tokens, strict=True) if count > 0]
        if not rows:
            raise ValueError(
                f"`--methods {LOSS_DROP}`: none of the {len(tokens)} target rows has a labelled token, so there is "
                "nothing to train on. Use other target rows, or leave the method out."
            )
        return rows


@dataclass(frozen=True)
class BaselineScores:
    """Row scores of a baseline.

    Args:
        scores (`Tensor`): one ranking for each target row, or one for all `[G, N]` float32; higher is better, -inf for
            rows that are not to be selected.
        costs (`CostLedger`): what they cost.
    """

    scores: Tensor
    costs: CostLedger

    def save(self, folder: Path) -> None:
        """Write scores and costs into a folder, which is created if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / ROW_SCORES, lambda path: save_file({"scores": self.scores.contiguous()}, path))
        self.costs.save(folder)


def load_row_scores(folder: Path) -> Tensor:
    """The scores `[G, N]` that [`BaselineScores.save`] wrote.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    return read(folder / ROW_SCORES, lambda path: load_file(path)["scores"])


def relative_falls(before: Tensor, after: Tensor) -> Tensor:
    """The share of each loss that is gone: `(before - after) / before`.

    Args:
        before (`Tensor`): losses `[N]` float32.
        after (`Tensor`): losses `[N]` float32.

    Returns:
        `Tensor`: `[N]` float32; -inf where a loss is not finite.
    """
    falls = (before.double() - after.double()) / (before.double() + SMALLEST_LOSS)
    finite = torch.isfinite(before) & torch.isfinite(after)
    return torch.where(finite, falls, torch.tensor(float("-inf"), dtype=torch.float64)).float()


def _by_best_match(given: BaselineInputs, model: PeftModel, clock: RunClock) -> tuple[Tensor, list[PhaseCost]]:
    """Scores `[M, N]` of all `M` target rows; the model is not run."""
    found = np.stack(list(best_match_scores(given.workspace.pool, given.workspace.targets)))
    clock.record(SCORING)
    return torch.from_numpy(found), [PhaseCost(SCORING, round(clock.seconds[SCORING], 3))]


def _by_embeddings(given: BaselineInputs, model: PeftModel, clock: RunClock) -> tuple[Tensor, list[PhaseCost]]:
    """Scores `[M, N]` of all `M` target rows; the model is not run."""
    found = nearest_cosines(model, given.workspace.pool, given.workspace.targets)
    clock.record(SCORING)
    return found, [PhaseCost(SCORING, round(clock.seconds[SCORING], 3))]


def _by_loss_drop(given: BaselineInputs, model: PeftModel, clock: RunClock) -> tuple[Tensor, list[PhaseCost]]:
    """Scores `[1, N]`: the relative fall of each row's loss from the new LoRA to the one trained on the targets."""
    config = given.config
    pool = given.workspace.pool.select_columns(["input_ids", "labels"])
    collator = given.workspace.collator
    dataset_pass = DatasetPass(model, collator, config.scoring_tokens_per_batch, config.scoring_dtype)
    targets = given.trainable_targets
    before = collect_losses(dataset_pass, pool, "losses of the untrained model").losses
    clock.record(SCORING)
    _train_on_targets(given, model, targets)
    clock.record(WARMUP)
    after = collect_losses(dataset_pass, pool, "losses after training on the targets").losses
    clock.record(SCORING)
    sizes = Sizes(token_counts(pool), int(given.measured.label_tokens.sum()))
    seconds = round(clock.seconds[SCORING], 3)
    peak = peak_memory_bytes(model_device(model))
    once = scoring_phase(ModelWork.of(model), sizes, config, 0, SCORING, seconds, True, peak_memory_bytes=peak)
    trained = clock.cost(WARMUP, model, token_counts(given.workspace.targets), targets * TARGET_EPOCHS)
    return relative_falls(before, after)[None], [trained, times(once, 2)]


def _train_on_targets(given: BaselineInputs, model: PeftModel, rows: Sequence[int]) -> None:
    """Train the LoRA on target rows for `TARGET_EPOCHS` epochs, with the settings of the warm-up."""
    arguments = quiet_arguments(
        given.folder,
        per_device_train_batch_size=given.warmup.per_device_train_batch_size,
        learning_rate=given.warmup.learning_rate,
        num_train_epochs=TARGET_EPOCHS,
        seed=given.config.seed,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=given.workspace.targets.select(rows).select_columns(["input_ids", "labels"]),
        data_collator=given.workspace.collator,
    )
    with_step_bar(trainer, "training on the targets")
    trainer.train()


@dataclass(frozen=True)
class Baseline:
    """A baseline.

    Args:
        score (`Callable`): inputs, a new LoRA and a clock to the row scores and the phases that they cost.
        of_each_target (`bool`): it has a ranking for each target row, so that its scores serve any of them; otherwise
            the scores belong to the target rows that they were made with.
    """

    score: Callable[[BaselineInputs, PeftModel, RunClock], tuple[Tensor, list[PhaseCost]]]
    of_each_target: bool


BASELINES = {
    NEAREST: Baseline(_by_embeddings, True),
    BM25: Baseline(_by_best_match, True),
    LOSS_DROP: Baseline(_by_loss_drop, False),
}


def scores_for(name: str, scores: Tensor, measured: Measurements) -> Tensor:
    """The rankings `[G, N]` of the target rows that are measured, of all that a baseline has `[M, N]`."""
    return scores[measured.target_numbers] if BASELINES[name].of_each_target else scores


def score_baseline(name: str, given: BaselineInputs) -> BaselineScores:
    """The row scores of a baseline, with their costs in a ledger.

    Args:
        name (`str`): key of `BASELINES`.
        given (`BaselineInputs`): pool, targets and settings.
    """
    model = fresh_lora(given.base, given.warmup, given.config.seed)
    scores, phases = BASELINES[name].score(given, model, RunClock())
    work = ModelWork.of(model)
    model.unload()
    pool = Sizes(token_counts(given.workspace.pool), int(given.measured.label_tokens.sum()))
    kept = rows_by_scores(scores_for(name, scores, given.measured), given.measured, given.config)
    passes = [pool, pool.take(kept, given.measured.label_tokens)]
    pool_pass, kept_pass = (training_cost(work, sizes, TRAINING, 0.0).flops for sizes in passes)
    return BaselineScores(scores, CostLedger(tuple(phases), pool_pass, kept_pass))
