"""What of a raw row is tokenised: its conversation, its prompt and completion, or its text."""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_gist.data.preparation.messages import (
    INSTEAD_OF_TEXT,
    RowError,
    conversation,
    from_json,
    is_sharegpt,
    parsed,
    tools_of,
    with_known_roles,
    without_nulls,
)
from hf_gist.data.preparation.templates import Template


COLUMNS = ("prompt", "completion", "messages", "conversations", "text", "tools", "chat_template_kwargs")
"""The columns that rows are prepared from."""

CHAT, COMPLETION, PLAIN, TEXT = "chat", "completion", "plain", "text"


NOTHING_TO_LEARN = "there is nothing to learn but to end the turn"


def _check_answers(answers: list[dict[str, Any]], where: str) -> None:
    """Check that one of the assistant's turns says or does something.

    Raises:
        RowError: naming the column.
    """
    if answers and all(map(_is_empty, answers)):
        raise RowError(f"every answer in {where} is empty, so {NOTHING_TO_LEARN}")


def _is_empty(turn: dict[str, Any]) -> bool:
    """Whether a turn has neither text nor what may take its place."""
    content = turn.get("content")
    blank = content is None or (isinstance(content, str) and not content.strip())
    return blank and not any(turn.get(name) for name in INSTEAD_OF_TEXT)


@dataclass
class Request:
    """One row as it will be tokenised.

    Args:
        row (`int`): number in the batch.
        kind (`str`): a conversation, a conversational prompt with its completion, the same in plain text, or a text.
        prompt: messages or text before the labels.
        whole: all messages, or the whole text.
        answers (`list[dict]`): the messages that should be labelled.
        others (`list[dict]`): the other messages.
        options (`dict`): tools and arguments of the template.
    """

    row: int
    kind: str
    prompt: Any
    whole: Any
    answers: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Requests of a group are tokenised together."""
        return self.kind + (json.dumps(self.options, sort_keys=True, default=str) if self.options else "")


@dataclass
class RequestReader:
    """Reads rows.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): its end token is added to plain text.
        template (`Template`, *optional*): for conversations.
        features (`dict`): types of the columns.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    features: dict[str, Any]

    def request(self, row: dict[str, Any], number: int) -> Request:
        """How one row is tokenised; as in TRL, a prompt with a completion is preferred to messages, and those to text.

        Args:
            row (`dict`): the row.
            number (`int`): its number in the batch.

        Raises:
            RowError: with the reason, if it cannot be used.
        """
        if row.get("prompt") is not None and "completion" in row:
            return self._completion(row, number)
        names = ("messages", "conversations")
        # TRL replaces `messages` by ShareGPT's `conversations`
        for name in reversed(names) if is_sharegpt(row.get("conversations")) else names:
            if row.get(name) is not None:
                return self._chat(row, name, number)
        if row.get("text") is None:
            missing = next(name for name in (*COLUMNS[2:5], "prompt") if name in row)
            raise RowError(f"it has no `{missing}`")
        text = self._plain(row, "text")
        if not text.strip():
            raise RowError("`text` is empty")
        return Request(number, TEXT, None, self._with_end(text))

    def _plain(self, row: dict[str, Any], name: str) -> str:
        value = row[name]
        if value is None:
            raise RowError(f"it has no `{name}`")
        if not isinstance(value, str):
            raise RowError(
                f"it has a value of the type {type(value).__name__!r} in `{name}`, not a text: numbers in a CSV or JSON file "
                "are read as numbers; write the file as JSON with quoted values"
            )
        return value

    def _with_end(self, text: str) -> str:
        end = self.tokenizer.eos_token or ""
        return text if text.endswith(end) else text + end

    def _messages(self, row: dict[str, Any], name: str) -> list[dict[str, Any]]:
        feature = self.features.get(name)
        value = without_nulls(parsed(row[name], name), feature)
        if is_sharegpt(value):
            from trl.data_utils import maybe_convert_to_chatml

            value = with_known_roles(maybe_convert_to_chatml({"messages": value})["messages"])
        roles = "" if self.template is None else self.template.roles
        return conversation(value, name, roles)

    def _options(self, row: dict[str, Any]) -> dict[str, Any]:
        options = without_nulls(row.get("chat_template_kwargs"), self.features.get("chat_template_kwargs")) or {}
        if isinstance(options, str):
            options = from_json(options, "chat_template_kwargs")
        if not isinstance(options, dict):
            raise RowError("`chat_template_kwargs` must be names with values")
        tools = tools_of(without_nulls(row.get("tools"), self.features.get("tools")))
        return ({"tools": tools} if tools else {}) | options

    def _chat(self, row: dict[str, Any], name: str, number: int) -> Request:
        messages = self._messages(row, name)
        answers = [message for message in messages if message["role"] == "assistant"]
        if not answers:
            raise RowError(f"`{name}` has no turn of the assistant, so there is nothing to learn")
        _check_answers(answers, f"`{name}`")
        others = [message for message in messages if message["role"] != "assistant"]
        return Request(number, CHAT, None, messages, answers, others, self._options(row))

    def _completion(self, row: dict[str, Any], number: int) -> Request:
        prompt, completion = row["prompt"], row["completion"]
        if not isinstance(prompt, list) and not isinstance(completion, list):
            start = self._plain(row, "prompt")
            answer = self._plain(row, "completion")
            if not answer.strip():
                raise RowError(f"`completion` is empty, so {NOTHING_TO_LEARN}")
            whole = start + answer
            text = row.get("text")
            # TRL adds one end token: to a `text` beside the completion, if there is one
            ended = isinstance(text, str) and not text.endswith(self.tokenizer.eos_token or "")
            return Request(number, PLAIN, start, whole if ended else self._with_end(whole))
        if not isinstance(prompt, list) or not isinstance(completion, list):
            kinds = ["messages" if isinstance(value, list) else "text" for value in (prompt, completion)]
            if completion is None:
                raise RowError("it has no `completion`")
            raise RowError(f"`prompt` is {kinds[0]} and `completion` is {kinds[1]}; both must be of one kind")
        before = self._messages(row, "prompt")
        after = self._messages(row, "completion")
        answers = [message for message in after if message["role"] == "assistant"]
        _check_answers(answers, "`completion`")
        return Request(number, COMPLETION, before, before + after, answers, before, self._options(row))
