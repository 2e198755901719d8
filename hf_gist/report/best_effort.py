"""The report that is written by itself at the end of a selection or a training, and must never be what ends it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_gist.config.files import FOLDER
from hf_gist.errors import ReportWarning
from hf_gist.gist.artifacts import withhold_target_columns
from hf_gist.gist.selection import Selection
from hf_gist.report.examples import EXAMPLES, save_examples
from hf_gist.report.page import REPORT, write_report
from hf_gist.utils.disk import read_json, write_json


PUSHED = (
    "No text of the data was kept, because `push_to_hub` uploads this folder. `hf-gist select --from_scores FOLDER "
    "--train_file POOL --output_dir OTHER` writes a report with text elsewhere."
)


@contextmanager
def not_fatal(what: str, again: str) -> Iterator[None]:
    """Turn any error into a warning: what was computed before is worth more than a page about it."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what} not written ({type(error).__name__}: {error}). {again}", ReportWarning, stacklevel=4)


def keep_examples(folder: str | Path, selection: Selection, pool: Any, targets: Any, **how: Any) -> None:
    """[`save_examples`] on the way; an error is a [`ReportWarning`].

    Args:
        folder (`str` or `Path`): the folder of the selection.
        selection (`Selection`): just saved there.
        pool: see [`save_examples`].
        targets: see [`save_examples`].
        how: `tokenizer`, `earlier` and `withheld` of [`save_examples`].
    """
    with not_fatal("The rows to read were", "The selection itself is on disk."):
        save_examples(Path(folder), selection, pool, targets, **how)


def report_training(args: TrainingArguments, selection: Selection, pool: Any, targets: Any, tokenizer: Any) -> None:
    """The rows to read and the report of a selection inside a training, which goes on whatever becomes of them.

    Args:
        args (`TrainingArguments`): of the training; with `push_to_hub`, no text of the data is written.
        selection (`Selection`): just saved in its output folder.
        pool: the train dataset.
        targets: the target rows, tokenised.
        tokenizer (*optional*): turns them into text.
    """
    withheld = PUSHED if args.push_to_hub else ""
    keep_examples(Path(args.output_dir) / FOLDER, selection, pool, targets, tokenizer=tokenizer, withheld=withheld)
    report_at_end(args.output_dir, selection)


def withhold_text(folder: str | Path) -> None:
    """Take the text of the data out of a training's output folder that is about to be uploaded.

    Raises:
        OSError: if it cannot be taken out.
    """
    folder = Path(folder)
    withhold_target_columns(folder / FOLDER)
    path = folder / FOLDER / EXAMPLES
    if not path.is_file():
        return
    values = read_json(path)
    if any(any(values[name].values()) for name in ("rows", "targets")):
        (folder / REPORT).unlink(missing_ok=True)
        write_json(path, values | {"missing": PUSHED, "rows": {}, "targets": {}})
        report_at_end(folder)


def report_at_end(folder: str | Path, selection: Selection | None = None) -> Path | None:
    """[`write_report`] on the way; an error is a [`ReportWarning`].

    Returns:
        `Path`, *optional*: the page.
    """
    with not_fatal("The report was", f"Once that is put right: hf-gist report {folder}"):
        return write_report(folder, selection=selection)
    return None
