"""Reading datasets and turning instruction rows into token rows with labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.collect import IGNORE_INDEX


FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_rows(file: str | None, dataset_name: str | None, split: str, argument: str) -> Dataset:
    """A dataset from a local file or from the Hub.

    Args:
        file (`str`, *optional*): JSONL, JSON, Parquet or CSV.
        dataset_name (`str`, *optional*): Hub id; exactly one of the two must be given.
        split (`str`): split of the Hub dataset.
        argument (`str`): the file argument's name, for messages.

    Raises:
        ValueError: naming the argument, if the source is missing, ambiguous or of an unknown format.
    """
    if (file is None) == (dataset_name is None):
        other = argument.replace("file", "dataset_name").replace("train_", "")
        raise ValueError(f"Give exactly one of `--{argument}` and `--{other}`.")
    if dataset_name is not None:
        return load_dataset(dataset_name, split=split)
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`--{argument} {file}`: no such file.")
    if path.suffix not in FILE_FORMATS:
        raise ValueError(f"`--{argument} {file}`: unknown format; use one of {', '.join(FILE_FORMATS)}.")
    return load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train")


def _chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **kwargs: Any) -> dict[str, Any]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)


def _assistant_labels(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Labels on the assistant's tokens: from the template's generation marks, or else from growing prefixes."""
    if "{% generation" in (tokenizer.chat_template or "") or "{%- generation" in (tokenizer.chat_template or ""):
        encoded = _chat_ids(tokenizer, messages, return_assistant_tokens_mask=True)
        mask = encoded["assistant_masks"]
    else:
        encoded = _chat_ids(tokenizer, messages)
        mask = [0] * len(encoded["input_ids"])
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(_chat_ids(tokenizer, messages[:turn], add_generation_prompt=True)["input_ids"])
                end = len(_chat_ids(tokenizer, messages[: turn + 1])["input_ids"])
                mask[start:end] = [1] * (end - start)
    ids = encoded["input_ids"]
    return {"input_ids": ids, "labels": [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]}


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _completion_labels(tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any) -> dict[str, list[int]]:
    if not isinstance(prompt, str):
        return _assistant_labels(tokenizer, [*prompt, *completion])
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = tokenizer(_ended(prompt + completion, tokenizer))["input_ids"]
    shared = 0
    while shared < min(len(prompt_ids), len(ids)) and prompt_ids[shared] == ids[shared]:
        shared += 1
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * shared + ids[shared:]}


def tokenize_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, answers_only: bool = True, text_column: str = "text"
) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one row in the `messages`, `prompt` + `completion` or `text` format.

    Args:
        row (`dict`): the row.
        tokenizer (`PreTrainedTokenizerBase`): with a chat template for conversations.
        answers_only (`bool`): labels on assistant turns or completions only; `text` always has labels everywhere.
        text_column (`str`): name of the plain text column.
    """
    if "messages" in row:
        encoded = _assistant_labels(tokenizer, row["messages"])
    elif "prompt" in row:
        encoded = _completion_labels(tokenizer, row["prompt"], row["completion"])
    else:
        ids = tokenizer(_ended(row[text_column], tokenizer))["input_ids"]
        encoded = {"input_ids": ids, "labels": list(ids)}
    if not answers_only:
        encoded["labels"] = list(encoded["input_ids"])
    return encoded


def check_format(columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, argument: str, text_column: str) -> None:
    """Raise unless the columns are one of the supported formats.

    Raises:
        ValueError: naming the argument and the columns found.
    """
    if "messages" in columns:
        if not tokenizer.chat_template:
            raise ValueError(f"`{argument}` holds conversations, but the tokenizer has no chat template; set one.")
    elif not ({"prompt", "completion"} <= set(columns) or text_column in columns):
        raise ValueError(
            f"`{argument}` has the columns {', '.join(columns)}; expected `input_ids` (with `labels`), `messages`, "
            f"`prompt` and `completion`, or `{text_column}`."
        )


def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    argument: str,
    answers_only: bool = True,
    text_column: str = "text",
) -> Dataset:
    """A dataset with `input_ids` and `labels` beside its own columns; one that is tokenised already is returned as is.

    Args:
        dataset (`Dataset`): rows in one of the formats of [`tokenize_row`].
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        max_length (`int`, *optional*): longer rows are cut at the end.
        argument (`str`): name of the dataset for messages.
        answers_only (`bool`): see [`tokenize_row`].
        text_column (`str`): see [`tokenize_row`].

    Raises:
        ValueError: if the columns are in no supported format.
    """
    if "input_ids" in dataset.column_names:
        return dataset
    check_format(dataset.column_names, tokenizer, argument, text_column)

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        encoded = tokenize_row(row, tokenizer, answers_only, text_column)
        return {name: values[:max_length] for name, values in encoded.items()}

    return dataset.map(encode, desc=f"tokenizing {argument}")
