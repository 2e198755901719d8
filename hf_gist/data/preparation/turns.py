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
    words = _words(messages[turn])
    found = text.find(words, _after_question(messages, turn, text, after)) if words else -1
    if found < 0:
        raise RowError(
            f"the chat template renders message {turn + 1} (assistant) inside the conversation differently from its end, "
            "so its tokens cannot be located; give a template with {% generation %} marks with `--chat_template FILE`"
        )
    return found


def _words(message: dict[str, Any]) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def _after_question(messages: list[dict[str, Any]], turn: int, text: str, after: int) -> int:
    """The first character behind what is said between an answer and the one before it, which may have the answer's words.

    Args:
        messages (`list[dict]`): the conversation.
        turn (`int`): of the answer.
        text (`str`): the whole conversation.
        after (`int`): the end of the answer before it.
    """
    for message in messages[_turn_after_answer(messages, turn) : turn]:
        words = _words(message)
        # a template may render the system's message in any place
        found = text.find(words, after) if words and message["role"] not in ("system", "developer") else -1
        if found >= 0:
            after = found + len(words)
    return after


def _turn_after_answer(messages: list[dict[str, Any]], turn: int) -> int:
    """The first message after the last answer before a turn."""
    answers = [at for at in range(turn) if messages[at]["role"] == "assistant"]
    return answers[-1] + 1 if answers else 0


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
    words = _words(message)
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
