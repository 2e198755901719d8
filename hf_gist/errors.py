"""Named warnings of the library, so that a script can turn any of them into an error."""


class NoEffectWarning(UserWarning):
    """A method ran but changed nothing: a mask that kept everything, a swap that selected the whole pool."""


class SelectionNotVerifiedWarning(UserWarning):
    """The run-time check that only selected rows are trained on could not be made for this data."""


class UnscorableRowsWarning(UserWarning):
    """Some candidate rows have no labelled token, or a gradient that is not finite, and cannot be selected."""


class LeakWarning(UserWarning):
    """Rows of the target or evaluation set are in the pool, or target rows in the evaluation set."""


class ReportWarning(UserWarning):
    """The report at the end of a selection or a training could not be written; everything else was."""


class ResumedStepWarning(UserWarning):
    """One step of a resumed run differs from that of the run that was interrupted."""
