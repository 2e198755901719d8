"""Warning classes of the library; scripts can filter them or turn them into errors."""


class NoEffectWarning(UserWarning):
    """A method had no effect: a mask that kept all samples, or a selection of the whole pool."""


class SelectionNotVerifiedWarning(UserWarning):
    """The check during training that only selected rows reach the model is not possible for this data."""


class UnscorableRowsWarning(UserWarning):
    """Some candidate rows have no labelled token or a non-finite gradient, and cannot be selected."""


class LeakWarning(UserWarning):
    """Rows of the target or evaluation set are in the pool, or target rows are in the evaluation set."""


class DuplicateRowsWarning(UserWarning):
    """Rows of the pool repeat other rows of the pool."""


class UnusableTargetsWarning(UserWarning):
    """Some target rows have no labelled token or a non-finite gradient, and are not used."""


class TargetFormatWarning(UserWarning):
    """The target rows have another format than the pool, so their gradients differ by the format too."""


class SourceBudgetWarning(UserWarning):
    """A source has fewer rows than its share of the budget, or the limits of the sources leave the budget unfilled."""


class ReportWarning(UserWarning):
    """The report at the end of a selection or a training run could not be written; all other files were written."""


class UnfinishedScoresWarning(UserWarning):
    """Saved scores of an interrupted run cannot be used, and the rows are scored again."""


class ResumedStepWarning(UserWarning):
    """One step of a resumed run differs from the same step of the interrupted run."""


class MislabelledRowsWarning(UserWarning):
    """The labelled tokens of some rows are not the assistant's answers."""


class LossMismatchWarning(UserWarning):
    """A trainer computes another loss for a row than the token cross-entropy that rows are scored by."""


class MaxStepsWarning(UserWarning):
    """The epochs of the Trainer end before `max_steps`, because the callback was added after the Trainer was made."""


class SamplerReplacedWarning(UserWarning):
    """The order of the Trainer's own sampler is not kept."""


class ScheduleLengthWarning(UserWarning):
    """The learning-rate schedule does not have the length of the run."""


class TargetLossWarning(UserWarning):
    """The loss of the target rows rose in training, by more than its noise."""


class TargetLossUnknownWarning(UserWarning):
    """The loss of the target rows could not be measured during training."""
