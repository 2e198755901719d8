"""The test sets of a command: tokenised rows, and what is measured on them beside the loss."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.commands.testing.answers import CHOICES
from hf_gist.commands.testing.choices import Choices
from hf_gist.commands.testing.loading import load_metric
from hf_gist.commands.testing.measured import Measured
from hf_gist.commands.testing.questions import Compute, Questions, greedy_answers
from hf_gist.commands.testing.tokens import choices_with_raw
from hf_gist.commands.workspace import Workspace
from hf_gist.data.preparation.templates import with_template
from hf_gist.data.reading.origins import RawRows
from hf_gist.data.rows import Collator
from hf_gist.gradients.collect import labelled_losses, row_losses
from hf_gist.gradients.models import model_device
from hf_gist.gradients.modes import scoring_mode


LOSS = "loss"
PROMPTS_PER_BATCH = 16


@dataclass(frozen=True)
class LossSet:
    """A test set whose loss alone is measured.

    Args:
        rows (`Dataset`): `input_ids` and `labels` of the test rows.
    """

    rows: Dataset

    def measure(self, model: torch.nn.Module, collator: Collator) -> dict[str, Measured]:
        """Name of a measure to what the model reaches."""
        losses = labelled_losses(*row_losses(model, self.rows, collator))
        return {LOSS: Measured.mean_of(losses.tolist())}


@dataclass(frozen=True)
class ChoiceSet(LossSet):
    """A test set whose rows have choices, which are answered by log-likelihood.

    Args:
        rows (`Dataset`): the rows with their right choices; see [`LossSet`].
        choices (`Choices`): all choices.
    """

    choices: Choices

    def measure(self, model: torch.nn.Module, collator: Collator) -> dict[str, Measured]:
        """See [`LossSet.measure`]."""
        losses, counts = row_losses(model, self.choices.rows, collator)
        return {LOSS: Measured.mean_of(losses[self.choices.right].tolist())} | self.choices.accuracies(losses, counts)


@dataclass(frozen=True)
class QuestionSet(LossSet):
    """A test set whose answers are also generated.

    Args:
        rows (`Dataset`): see [`LossSet`].
        others (`LossSet`): what is measured besides: the loss, and the choices if the rows have them.
        questions (`Questions`): questions, answers and the metric.
        prompts (`list[list[int]]`): token ids of each question.
        tokenizer (`PreTrainedTokenizerBase`): with a padding token.
    """

    others: LossSet
    questions: Questions
    prompts: list[list[int]]
    tokenizer: PreTrainedTokenizerBase

    def measure(self, model: torch.nn.Module, collator: Collator) -> dict[str, Measured]:
        """See [`LossSet.measure`]."""
        questions = self.questions
        with scoring_mode(model):
            answers = greedy_answers(
                model, self.tokenizer, self.prompts, PROMPTS_PER_BATCH, questions.max_new_tokens, model_device(model)
            )
        return self.others.measure(model, collator) | {questions.name: questions.measured(answers)}


def measure(model: torch.nn.Module, tests: LossSet, collator: Collator) -> dict[str, Measured]:
    """All measures of a model on a test set."""
    return tests.measure(model, collator)


# ---- From raw rows ----


def read_test(raw: RawRows, workspace: Workspace, metric: str | None, max_new_tokens: int, positions: int) -> LossSet:
    """A test set with what can be measured on its rows.

    Args:
        raw (`RawRows`): the rows of a test file.
        workspace (`Workspace`): tokenises them.
        metric (`str`, *optional*): see [`load_metric`]; answers are generated for it.
        max_new_tokens (`int`): longest generated answer in tokens.
        positions (`int`): of the model.

    Raises:
        ValueError: naming the rows that cannot be used, with the reasons.
    """
    others, raw = _without_answers(raw, workspace)
    if metric is None:
        return others
    questions = Questions(raw.rows, computed_by(metric), max_new_tokens, raw.where)
    tokenizer = with_template(workspace.tokenizer, workspace.preparer.chat_template)
    return QuestionSet(others.rows, others, questions, questions.prompts(tokenizer, positions), tokenizer)


def _without_answers(raw: RawRows, workspace: Workspace) -> tuple[LossSet, RawRows]:
    """A test set with what is measured without generating answers, and its raw rows without those left out."""
    if CHOICES in raw.rows.column_names:
        choices, raw = choices_with_raw(raw, workspace.preparer)
        return ChoiceSet(choices.rows.select(choices.right), choices), raw
    rows, raw = workspace.preparer.usable_with_raw(raw, "test_file")
    return LossSet(rows.select_columns(["input_ids", "labels"])), raw


def computed_by(metric: str) -> Compute:
    """The function that computes a metric."""
    module = load_metric(metric, f"--metric {metric}")
    return lambda predictions, references: module.compute(predictions=predictions, references=references)
