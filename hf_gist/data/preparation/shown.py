"""Rows as the model sees them, with the labelled part marked."""

from itertools import groupby

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.data.rows import IGNORE_INDEX


OPEN, CLOSE = "⟦", "⟧"


def marked_text(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a row, the labelled parts in ⟦ ⟧.

    Args:
        ids (`list[int]`): tokens `[T]`.
        labels (`list[int]`): labels `[T]`.
        tokenizer (`PreTrainedTokenizerBase`): decodes them.
    """
    parts = []
    pairs = zip(ids, labels, strict=True)
    for labelled, group in groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX):
        # for the tokens of one text, this is a text
        text = str(tokenizer.decode([token for token, _ in group], clean_up_tokenization_spaces=False))
        parts.append(f"{OPEN}{text}{CLOSE}" if labelled else text)
    return "".join(parts)


def marked_rows(rows: Dataset, count: int, tokenizer: PreTrainedTokenizerBase, argument: str) -> list[str]:
    """The first rows of a tokenised dataset, each with a heading.

    Args:
        rows (`Dataset`): with `input_ids` and `labels`.
        count (`int`): number of rows.
        tokenizer (`PreTrainedTokenizerBase`): decodes them.
        argument (`str`): name of the dataset.
    """
    first = rows.select(range(min(count, len(rows))))
    return [
        f"---- {argument}, row {number + 1}: {len(row['input_ids']):,} tokens, labelled {OPEN} {CLOSE} ----\n"
        + marked_text(row["input_ids"], row["labels"], tokenizer)
        for number, row in enumerate(first)
    ]
