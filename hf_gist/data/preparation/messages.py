"""Conversations of raw rows: parsed, checked, and without what a table format adds to them."""

import json
from collections.abc import Mapping
from typing import Any


ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython"}
"""Roles of messages; others are allowed if the chat template names them."""

SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""The roles of ShareGPT rows to those of chat templates."""

TEXT_PARTS = {None, "text", "input_text", "output_text"}
"""Values of `type` of a content part with text."""


class RowError(ValueError):
    """A row that cannot be prepared; the message is the reason, without a full stop."""


def without_nulls(value: Any, feature: Any) -> Any:
    """A value without the null keys that a table format adds to give all structs of a column the same keys.

    Args:
        value: as `datasets` returns it.
        feature: its type in `Dataset.features`. Values of type `Json` are as they were written, and are kept.
    """
    if isinstance(feature, list):
        inner = feature[0]
    else:
        inner = getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None:
        return [without_nulls(item, inner) for item in value]
    if isinstance(value, dict) and isinstance(feature, Mapping):
        return {key: without_nulls(item, feature.get(key)) for key, item in value.items() if item is not None}
    return value


def from_json(text: str, column: str) -> Any:
    """A value from its JSON text.

    Raises:
        RowError: if it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"`{column}` is text that is no JSON ({error})") from error


REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of an answer that templates write before its content."""

INSTEAD_OF_TEXT = ("tool_calls", *REASONING)
"""Fields of an assistant's turn that may take the place of its content."""


def parsed(value: Any, column: str) -> Any:
    """A list of messages or tools; text is read as JSON.

    Raises:
        RowError: if it is no list.
    """
    if isinstance(value, str):
        value = from_json(value, column)
    if not isinstance(value, list):
        raise RowError(f"`{column}` must be a list, and is {type(value).__name__}")
    return value


def text_of(content: Any, what: str) -> Any:
    """The content of a message as one text; content parts are joined.

    Args:
        content: text, or a list of content parts.
        what (`str`): the message, for the reason.

    Raises:
        RowError: for anything else.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{what} has a value of the type {type(content).__name__!r} as its content, not a text")
    return "".join(_text_of_part(part, what) for part in content)


def _text_of_part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
        raise RowError(f"{what} has a part of the type {kind!r}; only text can be scored")
    return part["text"]


def _content(message: dict[str, Any], what: str) -> Any:
    """The content of a message; `None` where tool calls or a reasoning take its place."""
    content = message.get("content")
    role = message["role"]
    if content is None and role == "assistant" and any(message.get(name) for name in INSTEAD_OF_TEXT):
        return None
    if content is None:
        raise RowError(f"{what} has no content")
    if role in ("tool", "function", "ipython") and isinstance(content, dict):
        # templates write the result of a tool as JSON
        return content
    return text_of(content, what)


def _message(message: Any, number: int, template: str) -> dict[str, Any]:
    """One message, checked."""
    if not isinstance(message, dict):
        # without the value: reasons are in manifests, which are published
        raise RowError(f"message {number} is of the type {type(message).__name__!r}, not a role with a content")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RowError(f"message {number} has no role")
    if role not in ROLES and f"'{role}'" not in template and f'"{role}"' not in template:
        raise RowError(f"message {number} has the role {role!r}, which the chat template does not know")
    content = _content(message, f"message {number} ({role})")
    cleaned = {name: value for name, value in message.items() if value is not None and name != "content"}
    return cleaned if content is None else cleaned | {"content": content}


def conversation(value: Any, column: str, template: str = "") -> list[dict[str, Any]]:
    """The checked messages of a row, with text as content.

    Args:
        value: the value of the column, a list of messages or its JSON text.
        column (`str`): its name, for the reason.
        template (`str`): the chat template; roles that it names are allowed.

    Raises:
        RowError: naming the message.
    """
    messages = parsed(value, column)
    if not messages:
        raise RowError(f"`{column}` is empty: a conversation without a message")
    return [_message(message, number + 1, template) for number, message in enumerate(messages)]


def tools_of(value: Any) -> list[Any] | None:
    """The tool schemas of a row; `None` without tools.

    Raises:
        RowError: for text that is no JSON list.
    """
    if value is None or value in ("", []):
        return None
    tools = parsed(value, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError("`tools` must be a list of schemas")
    return tools or None


# ---- ShareGPT ----


def is_sharegpt(value: Any) -> bool:
    """Whether a list of messages has `from` and `value` instead of `role` and `content`."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "from" in value[0]


def with_known_roles(messages: list[Any]) -> list[Any]:
    """ShareGPT messages with the roles of chat templates; calls of functions become tool calls.

    Args:
        messages (`list`): with `role` and `content`.
    """
    return [_with_known_role(message) if isinstance(message, dict) else message for message in messages]


def _with_known_role(message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    changed = message | {"role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role}
    if role != "function_call":
        return changed
    try:
        call = json.loads(message["content"])
    except (TypeError, ValueError):
        return changed
    calls = call if isinstance(call, list) else [call]
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": c} for c in calls]}
