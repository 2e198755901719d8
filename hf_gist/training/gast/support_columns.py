"""Check of the support rows before training: they must reach the model with the columns of the training rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import Trainer

from hf_gist.training.parts import prepares_rows


LABELS = ("labels", "label", "label_ids")
"""Names of the column of labels; collators take each of them."""

NOT_NEEDED = ("attention_mask", "token_type_ids")
"""Columns that collators or models fill in."""


def _preparation(trainer: Trainer) -> str:
    """How support rows get the format of the training rows, for messages."""
    if prepares_rows(trainer):
        return f"give them the format of the train dataset; {type(trainer).__name__} tokenises both"
    return (
        "tokenise them with the function that the train dataset is tokenised with; GASTSFTTrainer (TRL) takes raw rows"
    )


def check_columns(trainer: Any, rows: Any, argument: str) -> None:
    """Check that support rows have the columns that the model takes and the training rows have.

    Args:
        trainer (`Trainer`): with its train dataset.
        rows: support rows, after preparation by the trainer if it prepares rows.
        argument (`str`): its name, for messages.

    Raises:
        ValueError: naming the columns of both and what to do.
    """
    found = _columns(rows)
    training = _columns(trainer.train_dataset)
    if found is None:
        if training is not None:
            raise ValueError(
                f"The rows of `{argument}` are of the type {type(rows[0]).__name__}, and those of the train dataset are "
                f"dicts: {_preparation(trainer)}."
            )
        return
    trainer._set_signature_columns_if_needed()
    taken = [name for name in found if name in trainer._signature_columns]
    needed = [name for name in training or () if name in trainer._signature_columns and name not in NOT_NEEDED]
    missing = [name for name in needed if not _has(found, name)]
    if missing:
        raise ValueError(
            f"`{argument}` has the columns {', '.join(found)}; {', '.join(missing)}, which the train dataset has and the "
            f"model takes, {'is' if len(missing) == 1 else 'are'} missing. Make its rows as those of the train dataset: "
            f"{_preparation(trainer)}."
        )
    if not taken and trainer.args.remove_unused_columns:
        raise ValueError(
            f"`{argument}` has the columns {', '.join(found) or 'none'}, and the model takes none of them: "
            f"{_preparation(trainer)}."
        )


def _has(columns: Sequence[str], name: str) -> bool:
    return any(other in columns for other in LABELS) if name in LABELS else name in columns


def _columns(rows: Any) -> list[str] | None:
    """The columns of a dataset, or of the first of its rows; `None` where they are not known."""
    if isinstance(rows, Dataset):
        return rows.column_names
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or not len(rows):
        return None
    first = rows[0]
    return list(map(str, first)) if isinstance(first, Mapping) else None
