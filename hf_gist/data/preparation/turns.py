"""The assistant's text in a conversation whose template does not mark it, found by rendering growing prefixes."""

from collections.abc import Callable, Sequence
from typing import Any

from hf_gist.data.preparation.messages import RowError


Render = Callable[..., str]
"""Messages to text; with `add_generation_prompt=True` up to where the answer begins."""

Span = tuple[int, int]
"""First character, and the one after the last."""


def shared_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the common prefix of two texts or lists of tokens."""
    if isinstance(first, str) and isinstance(second, str) and second.startswith(first):
        return len(first)
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def _start(render: Render, messages: list[dict[str, Any]], turn: int, text: str, after: int) -> int:
    """The first character of the answer in the text of the whole conversation.

    Raises:
        RowError: if the template renders the answer, or what is before it, differently inside the conversation.
    """
    try:
        before = render(messages[:turn], add_generation_prompt=True)
    except Exception:  # templates raise anything, for a conversation without a message too
        before = None
    if before is not None and text.startswith(before) and len(before) >= after:
        return len(before)
    content = messages[turn].get("content")
    words = content.strip() if isinstance(content, str) else ""
    found = text.find(words, after) if words else -1
    if found < 0:
        raise RowError(
            f"the chat template renders message {turn + 1} (assistant) inside the conversation differently from its end, "
            "so its tokens cannot be located; give a template with {% generation %} marks with `--chat_template FILE`"
        )
    return found


def _end(until: str, message: dict[str, Any], text: str, start: int) -> int:
    """The first character after an answer that is not the last one.

    A template may end the conversation with a token that it does not end every turn with, so the turn ends where the
    conversation and the rendering up to this turn part.

    Args:
        until (`str`): the conversation rendered up to this turn.
        message (`dict`): the turn.
        text (`str`): the whole conversation.
        start (`int`): the first character of the answer.
    """
    content = message.get("content")
    words = content.strip() if isinstance(content, str) else ""
    if not until.startswith(text[:start]) or words not in until[start:] or words not in text[start:]:
        return max(start, shared_prefix(until, text))
    last = until.index(words, start) + len(words)
    end = text.index(words, start) + len(words)
    return end + shared_prefix(until[last:], text[end:])


def assistant_spans(render: Render, messages: list[dict[str, Any]], text: str) -> list[Span]:
    """Where the answers with their end-of-turn text are in a rendered conversation.

    Args:
        render (`Callable`): renders messages with the template.
        messages (`list[dict]`): the conversation.
        text (`str`): the rendered conversation.

    Returns:
        `list[tuple[int, int]]`: the characters of each assistant turn.

    Raises:
        RowError: if a turn cannot be located.
    """
    spans: list[Span] = []
    after = 0
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        start = _start(render, messages, turn, text, after)
        if turn == len(messages) - 1:
            end = len(text)
        else:
            end = _end(render(messages[: turn + 1]), message, text, start)
        spans.append((start, end))
        after = end
    return spans


def mask_of(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token is part of a span `[T]`.

    The first token of a span may begin before it, where the prompt's last character merges with the answer. A token
    that begins in a span and ends after it belongs to the next turn.

    Args:
        offsets (`list[tuple[int, int]]`): characters of each token.
        spans (`list[tuple[int, int]]`): in order.
    """
    mask = []
    at = 0
    for first, last in offsets:
        while at < len(spans) and first >= spans[at][1]:
            at += 1
        mask.append(at < len(spans) and spans[at][0] < last <= spans[at][1])
    return mask
