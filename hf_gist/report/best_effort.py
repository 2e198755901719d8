"""Writing the report at the end of a selection or training run: an error becomes a warning and does not stop it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from hf_gist.config.files import FOLDER
from hf_gist.errors import ReportWarning
from hf_gist.gist.artifacts import withhold_target_columns
from hf_gist.gist.selection import Selection
from hf_gist.report.examples import EXAMPLES_FILE, save_examples
from hf_gist.report.page import REPORT, write_report
from hf_gist.utils.disk import read_json, write_json


NO_TEXT_IN_UPLOADS = (
    "No text of the data was written, because `push_to_hub` uploads this folder. `hf-gist select --from_scores FOLDER "
    "--train_file POOL --output_dir OTHER` writes a report with text to another folder."
)


@contextmanager
def not_fatal(what: str, hint: str) -> Iterator[None]:
    """Turn any error into a [`ReportWarning`]: a failed report must not lose the selection or stop the training.

    Args:
        what (`str`): subject and verb of the message, such as `"The report was"`.
        hint (`str`): its last sentence: what was written nevertheless, or how to write the page later.
    """
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what} not written ({type(error).__name__}: {error}). {hint}", ReportWarning, stacklevel=4)


def keep_examples(folder: str | Path, selection: Selection, pool: Any, targets: Any, **options: Any) -> None:
    """[`save_examples`], best effort: an error becomes a [`ReportWarning`].

    Args:
        folder (`str` or `Path`): the folder of the selection.
        selection (`Selection`): saved there.
        pool: see [`save_examples`].
        targets: see [`save_examples`].
        options: `tokenizer`, `earlier` and `withheld` of [`save_examples`].
    """
    with not_fatal("The example rows were", "The selection itself is saved."):
        save_examples(Path(folder), selection, pool, targets, **options)


def report_training(args: TrainingArguments, selection: Selection, pool: Any, targets: Any, tokenizer: Any) -> None:
    """Write the example rows and the report of a selection during training, best effort.

    Args:
        args (`TrainingArguments`): arguments of the training; with `push_to_hub`, no text of the data is written.
        selection (`Selection`): saved in the training output folder.
        pool: the train dataset.
        targets: the target rows, tokenised.
        tokenizer (*optional*): decodes tokenised rows.
    """
    withheld = NO_TEXT_IN_UPLOADS if args.push_to_hub else ""
    # typed as optional, but never None in an instance
    folder = Path(cast(str, args.output_dir))
    keep_examples(folder / FOLDER, selection, pool, targets, tokenizer=tokenizer, withheld=withheld)
    report_at_end(folder, selection)


def withhold_text(folder: str | Path) -> None:
    """Delete the text of the data from a training output folder before an upload.

    Raises:
        OSError: if a file cannot be rewritten.
    """
    folder = Path(folder)
    withhold_target_columns(folder / FOLDER)
    path = folder / FOLDER / EXAMPLES_FILE
    if not path.is_file():
        return
    values = read_json(path)
    if any(any(values[name].values()) for name in ("rows", "targets")):
        (folder / REPORT).unlink(missing_ok=True)
        write_json(path, values | {"missing": NO_TEXT_IN_UPLOADS, "rows": {}, "targets": {}})
        report_at_end(folder)


def report_at_end(folder: str | Path, selection: Selection | None = None) -> Path | None:
    """[`write_report`], best effort: an error becomes a [`ReportWarning`].

    Returns:
        `Path`, *optional*: the page; `None` if it could not be written.
    """
    with not_fatal("The report was", f"To write it once the cause is fixed: hf-gist report {folder}"):
        return write_report(folder, selection=selection)
    return None
