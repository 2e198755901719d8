"""Whether the labelled tokens of a row are the assistant's answers: all of them, and nothing else."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_gist.data.preparation.messages import REASONING


SHORTEST = 4
"""Characters of the shortest text of others that is looked for among the labels."""

SHOWN_CHARACTERS = 160
HEADER = re.compile("system|(?<!to=)user|human|cuttingknowledge|todaydate", re.IGNORECASE)
"""What role headers and default system prompts have and answers' markup has not."""

ASSISTANT = re.compile("assistant", re.IGNORECASE)

MARKUP = re.compile("<[^<>]{1,40}>")


def squeezed(text: str) -> str:
    """The text without white space, which templates trim and tokenizers add."""
    return "".join(text.split())


def shortened(text: str) -> str:
    """The beginning and the end of a long text, for messages."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS // 2]} ... {text[-SHOWN_CHARACTERS // 2 :]}"


def _strings(value: Any) -> Iterator[str]:
    """All keys and values of nested lists and dicts, as text."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif value is not None:
        yield str(value)


def _names_of_calls(message: dict[str, Any]) -> list[str]:
    calls = [call for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    functions = [call.get("function", call) for call in calls]
    return [str(function["name"]) for function in functions if isinstance(function, dict) and "name" in function]


class LabelCheck:
    """Looks for the answers of rows in the text of their labelled tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): decodes tokens.
        marked (`bool`): whether the template marks the answers; some put the header of the assistant inside the marks.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marked: bool) -> None:
        self.tokenizer = tokenizer
        self.marked = marked
        names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        words = sorted(map(re.escape, map(squeezed, names)), key=len, reverse=True)
        self.special = re.compile("|".join(words) or "(?!)")

    def problems(
        self,
        labelled: Sequence[list[int]],
        answers: Sequence[list[dict[str, Any]]],
        others: Sequence[list[dict[str, Any]]],
    ) -> list[str | None]:
        """What is wrong with the labels of each row; `None` where nothing is.

        Args:
            labelled (`list[list[int]]`): labelled tokens of each row, before rows are cut.
            answers (`list[list[dict]]`): the messages that should be labelled.
            others (`list[list[dict]]`): the other messages.
        """
        texts = self.tokenizer.batch_decode(list(labelled), clean_up_tokenization_spaces=False)
        return [
            self._problem(text, said, rest) if said else None
            for text, said, rest in zip(texts, answers, others, strict=True)
        ]

    def _problem(self, text: str, answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> str | None:
        shown = squeezed(text)
        missing, rest = self._without(shown, answers)
        if missing is None:
            names = [name for message in answers for name in _names_of_calls(message)]
            missing = next((name for name in names if squeezed(name) not in shown), None)
        if missing is not None:
            return f"{shortened(missing)!r} is not among its labelled tokens: {shortened(text)!r}"
        if not any(rest) or not self._is_foreign(rest, answers, others):
            return None
        return f"more than its answer is labelled: {shortened(text)!r}"

    def _without(self, shown: str, answers: list[dict[str, Any]]) -> tuple[str | None, list[str]]:
        """The first answer that is not in a text, and what is before, between and after the answers."""
        rest: list[str] = []
        at = 0
        for message in answers:
            reasoned = False
            # a reasoning often has the words of the answer that follows it; templates leave out those of earlier turns
            for words in (
                squeezed(text) for name, text in message.items() if name in REASONING and isinstance(text, str)
            ):
                found = shown.find(words, at) if words else -1
                if found >= 0 and self._find(shown, message, found + len(words)) is not None:
                    rest.append(shown[at:found])
                    at = found + len(words)
                    reasoned = True
            span = self._find(shown, message, at)
            if span is None:
                return message["content"], rest
            # a template may begin the content with a header of its own, behind the reasoning
            rest.append(ASSISTANT.sub("", shown[at : span[0]]) if reasoned else shown[at : span[0]])
            at = span[1]
        return None, [*rest, shown[at:]]

    def _find(self, shown: str, message: dict[str, Any], at: int) -> tuple[int, int] | None:
        """Where the content of an answer is in a text; `None` if it is not. One without content is anywhere."""
        content = message.get("content")
        if not isinstance(content, str):
            return at, at
        # the tokenizer may not give back what it was given
        for words in (squeezed(content), squeezed(self._decoded(content))):
            found = shown.find(words, at)
            if found >= 0:
                return found, found + len(words)
        return None

    def _decoded(self, text: str) -> str:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _is_foreign(self, rest: list[str], answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
        """Whether the labelled text around the answers holds headers or other messages."""
        strings = {text for message in answers for text in _strings(_without_content(message))}
        known = {squeezed(form) for text in strings for form in _written(text)}
        known = {text for text in known if len(text) >= 3}
        cleaned = []
        for part in rest:
            for text in sorted(known, key=len, reverse=True):
                part = part.replace(text, "")
            cleaned.append(self.special.sub("", part))
        around = "\n".join(cleaned)
        if not any(character.isalpha() for character in around):
            return False
        if HEADER.search(MARKUP.sub("", around) if self.marked else around):
            return True
        if not self.marked and any(ASSISTANT.search(part) for part in cleaned):
            return True
        said = [squeezed(message["content"]) for message in others if isinstance(message.get("content"), str)]
        if any(len(text) >= SHORTEST and text in around for text in said):
            return True
        return any(_begins_with_end_of(part, text) for part in cleaned for text in said)


def _written(text: str) -> tuple[str, str, str]:
    """A text as templates write it: as it is, or in JSON."""
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _begins_with_end_of(part: str, text: str) -> bool:
    """Whether a text begins with the last characters of another: labels that begin inside of a message end like it."""
    head = part[:SHORTEST]
    at = text.find(head) if len(head) == SHORTEST else -1
    while at >= 0:
        if part.startswith(text[at:]):
            return True
        at = text.find(head, at + 1)
    return False


def _without_content(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name not in ("content", "role")}
