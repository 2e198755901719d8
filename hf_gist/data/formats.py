"""Tokenizing instruction rows into `input_ids` and `labels`."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_gist.data.rows import IGNORE_INDEX


# ---- Conversations ----


Chat = Callable[..., dict[str, Any]]
"""The chat template: messages to `input_ids`, with the tools and template arguments of the row."""


def _chat_of(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Chat:
    """The chat template with the row's `tools` and `chat_template_kwargs`, as `SFTTrainer` passes them."""
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    more = (row.get("chat_template_kwargs") or {}) | ({"tools": tools} if tools else {})
    chat = partial(tokenizer.apply_chat_template, tokenize=True, return_dict=True, **more)
    # with `return_dict` the result is a dict; the declared return type is a union over all flags
    return cast(Chat, chat)


def _shared_prefix(first: list[int], second: list[int]) -> int:
    """Length of the common prefix, in tokens."""
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    return shared


def _has_generation_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template marks the assistant's text with `{% generation %}`."""
    return re.search(r"{%-?\s*generation", tokenizer.chat_template or "") is not None


def _turn_span(chat: Chat, messages: list[dict[str, str]], turn: int, ids: list[int]) -> slice:
    """Position of an assistant turn in the tokens of the conversation.

    Raises:
        ValueError: if the template renders the turn differently inside the conversation than at its end.
    """
    start = 0
    if turn:
        before = chat(messages[:turn], add_generation_prompt=True)["input_ids"]
        # the last tokens of the prompt may merge with the answer, which then starts at the first different token
        start = _shared_prefix(before, ids)
    if turn == len(messages) - 1:
        return slice(start, len(ids))
    until = chat(messages[: turn + 1])["input_ids"]
    if ids[: len(until)] != until or (turn and start < len(before)):
        raise ValueError(
            "The tokenizer's chat template renders an earlier assistant turn differently from the last one (for example, "
            "it drops the reasoning), so the tokens of the answers cannot be located. Use a template with "
            "{% generation %} marks, or rows with `input_ids` and `labels`."
        )
    return slice(start, len(until))


def _assistant_labels(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], chat: Chat
) -> dict[str, list[int]]:
    """Labels on the assistant's tokens, located by the template's generation marks or by rendering growing prefixes."""
    if _has_generation_marks(tokenizer):
        encoded = chat(messages, return_assistant_tokens_mask=True)
        ids = encoded["input_ids"]
        mask = encoded["assistant_masks"]
        return {"input_ids": ids, "labels": [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]}
    ids = chat(messages)["input_ids"]
    labels = [IGNORE_INDEX] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            span = _turn_span(chat, messages, turn, ids)
            labels[span] = ids[span]
    return {"input_ids": ids, "labels": labels}


# ---- Prompts and texts ----


def _with_end_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _completion_labels(
    tokenizer: PreTrainedTokenizerBase, prompt: Any, completion: Any, chat: Chat
) -> dict[str, list[int]]:
    """Labels on the tokens of the completion."""
    if isinstance(prompt, str):
        prompt_ids = tokenizer(prompt)["input_ids"]
        ids = tokenizer(_with_end_token(prompt + completion, tokenizer))["input_ids"]
    else:
        prompt_ids = chat(prompt, add_generation_prompt=True)["input_ids"]
        ids = chat([*prompt, *completion])["input_ids"]
    start = _shared_prefix(prompt_ids, ids)
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * start + ids[start:]}


def tokenize_row(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, answers_only: bool = True, text_column: str = "text"
) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one row in the `messages`, `prompt` + `completion` or `text` format.

    Args:
        row (`dict`): the row.
        tokenizer (`PreTrainedTokenizerBase`): has a chat template if the rows are conversations.
        answers_only (`bool`): labels on assistant turns or completions only, instead of all tokens; no effect on `text`.
        text_column (`str`): name of the column of plain texts.

    Raises:
        ValueError: if the chat template renders earlier assistant turns differently and has no generation marks.
    """
    chat = _chat_of(row, tokenizer)
    if "messages" in row and answers_only:
        encoded = _assistant_labels(tokenizer, row["messages"], chat)
    elif "messages" in row:
        encoded = {"input_ids": chat(row["messages"])["input_ids"]}
    elif "prompt" in row:
        encoded = _completion_labels(tokenizer, row["prompt"], row["completion"], chat)
    else:
        ids = tokenizer(_with_end_token(row[text_column], tokenizer))["input_ids"]
        encoded = {"input_ids": ids, "labels": list(ids)}
    if not answers_only:
        encoded["labels"] = list(encoded["input_ids"])
    return encoded


# ---- Datasets ----


def check_format(columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, argument: str, text_column: str) -> None:
    """Check that the columns are those of a supported format.

    Args:
        columns (`Sequence[str]`): names of the columns of the dataset.
        tokenizer (`PreTrainedTokenizerBase`): must have a chat template for `messages`.
        argument (`str`): name of the dataset for messages.
        text_column (`str`): name of the column of plain texts.

    Raises:
        ValueError: if they are not; the message has the columns found.
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
    """A dataset with the added columns `input_ids` and `labels`; one that has them already is returned unchanged.

    Args:
        dataset (`Dataset`): rows in one of the formats of [`tokenize_row`].
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        max_length (`int`, *optional*): longer rows are cut at the end.
        argument (`str`): name of the dataset for messages.
        answers_only (`bool`): see [`tokenize_row`].
        text_column (`str`): see [`tokenize_row`].

    Raises:
        ValueError: if the columns are in no supported format, or a row has a missing or non-text value.
    """
    columns = dataset.column_names
    if "input_ids" in columns:
        if "labels" not in columns:
            raise ValueError(f"`{argument}` has `input_ids` but no `labels`; add them, -100 where no loss is wanted.")
        return dataset
    check_format(columns, tokenizer, argument, text_column)
    formats = (("messages",), ("prompt", "completion"), (text_column,))
    used = next(names for names in formats if names[0] in columns)

    def encode(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        _check_values(row, used, f"Row {number} of `{argument}`")
        encoded = tokenize_row(row, tokenizer, answers_only, text_column)
        return {name: values[:max_length] for name, values in encoded.items()}

    return dataset.map(encode, with_indices=True, desc=f"tokenizing {argument}")


def _check_values(row: dict[str, Any], columns: Sequence[str], what: str) -> None:
    """Raise ValueError for a column with a missing value or a number."""
    empty = [name for name in columns if row[name] is None]
    if empty:
        raise ValueError(f"{what} has no `{empty[0]}`; fill it or remove the row.")
    for name in columns:
        if not isinstance(row[name], str | list):
            raise ValueError(
                f"{what} has {row[name]!r} in `{name}`, which is not text: numbers in a CSV or JSON file are read as "
                "numbers. Write the file as JSON with quoted values."
            )
