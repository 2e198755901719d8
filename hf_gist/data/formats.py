"""Reading datasets and turning instruction rows into token rows with labels."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.data.provenance import RowSource
from hf_gist.data.rows import IGNORE_INDEX


FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def check_one_of(file: str | None, dataset_name: str | None, argument: str) -> None:
    """Raise unless exactly one of a file and a Hub id is given.

    Raises:
        ValueError: naming both flags.
    """
    if (file is None) == (dataset_name is None):
        other = argument.replace("file", "dataset_name").replace("train_", "")
        raise ValueError(f"Give exactly one of `--{argument}` and `--{other}`.")


def load_rows(source: RowSource, argument: str, streaming: bool = False) -> Dataset | IterableDataset:
    """A dataset from a local file or from the Hub.

    Args:
        source (`RowSource`): where it is.
        argument (`str`): the file argument's name, for messages.
        streaming (`bool`): read row by row, without a copy on disk.

    Raises:
        ValueError: naming the argument, if the source is missing, ambiguous or of an unknown format.
    """
    file = source.file
    check_one_of(file, source.dataset_name, argument)
    if source.dataset_name is not None:
        where = {"split": source.split, "revision": source.revision, "streaming": streaming}
        return load_dataset(source.dataset_name, source.config_name, **where)
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`--{argument} {file}`: no such file.")
    if path.suffix not in FILE_FORMATS:
        raise ValueError(f"`--{argument} {file}`: unknown format; use one of {', '.join(FILE_FORMATS)}.")
    return load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train", streaming=streaming)


Chat = Callable[..., dict[str, Any]]
"""Messages to token ids, by the chat template and what the row gives it."""


def _chat_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The chat template with the row's `tools` and `chat_template_kwargs`, as `SFTTrainer` passes them."""
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    tools = json.loads(tools) if isinstance(tools, str) else tools
    more = more | ({"tools": tools} if tools else {})
    return partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True, **more)


def _shared_prefix(first: list[int], second: list[int]) -> int:
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    return shared


def _labelled_from(ids: list[int], start: int) -> dict[str, list[int]]:
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * start + ids[start:]}


def _has_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    return re.search(r"{%-?\s*generation", tokenizer.chat_template or "") is not None


def _turn(chat: Chat, messages: list[dict[str, str]], turn: int, ids: list[int]) -> slice:
    """Where an assistant turn stands in the rendered conversation.

    Raises:
        ValueError: if the template renders the turn differently inside the conversation than at its end.
    """
    start = 0
    if turn:
        before = chat(messages[:turn], add_generation_prompt=True)["input_ids"]
        # The last tokens of the prompt may merge with the answer; the answer starts where the two part.
        start = _shared_prefix(before, ids)
    if turn == len(messages) - 1:
        return slice(start, len(ids))
    until = chat(messages[: turn + 1])["input_ids"]
    if ids[: len(until)] != until or (turn and start < len(before)):
        raise ValueError(
            "The tokenizer's chat template renders an earlier assistant turn differently from the last one (it drops the "
            "reasoning, say), so the answers cannot be found in it. Use a template with {% generation %} marks, or give "
            "rows with `input_ids` and `labels`."
        )
    return slice(start, len(until))


def _assistant_labels(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], chat: Chat
) -> dict[str, list[int]]:
    """Labels on the assistant's tokens: from the template's generation marks, or else from growing prefixes."""
    if _has_marks(tokenizer):
        encoded = chat(messages, return_assistant_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
        return {"input_ids": ids, "labels": [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]}
    ids = chat(messages)["input_ids"]
    labels = [IGNORE_INDEX] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            where = _turn(chat, messages, turn, ids)
            labels[where] = ids[where]
    return {"input_ids": ids, "labels": labels}


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _completion_labels(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, chat: Chat
) -> dict[str, list[int]]:
    if isinstance(prompt, str):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(_ended(prompt + completion, tokenizer))["input_ids"]
    else:
        prompt_ids = chat(prompt, add_generation_prompt=True)["input_ids"]
        ids = chat([*prompt, *completion])["input_ids"]
    return _labelled_from(ids, _shared_prefix(prompt_ids, ids))


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
    chat = _chat_of(row, tokenizer)
    if "messages" in row and answers_only:
        encoded = _assistant_labels(tokenizer, row["messages"], chat)
    elif "messages" in row:
        encoded = {"input_ids": chat(row["messages"])["input_ids"]}
    elif "prompt" in row:
        encoded = _completion_labels(tokenizer, row["prompt"], row["completion"], chat)
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
        if "labels" not in dataset.column_names:
            raise ValueError(f"`{argument}` has `input_ids` but no `labels`; add them, -100 where no loss is wanted.")
        return dataset
    check_format(dataset.column_names, tokenizer, argument, text_column)

    used = next(
        names
        for names in (("messages",), ("prompt", "completion"), (text_column,))
        if names[0] in dataset.column_names
    )

    def encode(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        empty = [name for name in used if row[name] is None]
        if empty:
            raise ValueError(f"Row {number} of `{argument}` has no `{empty[0]}`; fill it or leave the row out.")
        for name in used:
            if not isinstance(row[name], str | list):
                raise ValueError(
                    f"Row {number} of `{argument}` has {row[name]!r} in `{name}`, which is no text: a CSV or JSON file "
                    "with numbers there is read as numbers. Write it as JSON with quoted values."
                )
        encoded = tokenize_row(row, tokenizer, answers_only, text_column)
        return {name: values[:max_length] for name, values in encoded.items()}

    return dataset.map(encode, with_indices=True, desc=f"tokenizing {argument}")
