"""Batches of raw rows to tokens and labels, with the reason for every row that cannot be prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from hf_gist.data.preparation.labels import LabelCheck, shortened
from hf_gist.data.preparation.messages import RowError
from hf_gist.data.preparation.requests import CHAT, COMPLETION, PLAIN, TEXT, Request, RequestReader
from hf_gist.data.preparation.templates import Template, as_parts
from hf_gist.data.preparation.turns import assistant_spans, mask_of, shared_prefix
from hf_gist.data.rows import IGNORE_INDEX


REASON, LENGTH, LOST, PROBLEM = "hf_gist_reason", "hf_gist_length", "hf_gist_lost", "hf_gist_problem"
"""Columns about the preparation: why a row cannot be used, its tokens before it is cut, whether the cut took its last
labelled token, and what is wrong with its labels."""

Tokens = tuple[list[int], list[int]]
"""`input_ids` and `labels` of a row."""


def _labels(ids: list[int], mask: list[Any]) -> list[int]:
    return [token if labelled else IGNORE_INDEX for token, labelled in zip(ids, mask, strict=True)]


def _has_labels(labels: list[int]) -> bool:
    return any(label != IGNORE_INDEX for label in labels)


def _reason(error: Exception, kind: str) -> str:
    """Why a row cannot be prepared, in one line."""
    if isinstance(error, RowError):
        return str(error)
    what = "chat template" if kind in (CHAT, COMPLETION) else "tokenizer"
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"the {what} refuses it: {shortened(text)}"


@dataclass
class Encoder:
    """The function that `Dataset.map` calls with batches of rows.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        template (`Template`, *optional*): for conversations; not needed for plain text.
        max_length (`int`, *optional*): longer rows are cut at the end.
        features (`dict`): types of the columns.
        version (`str`): of the package, so that rows in the cache of another version are not used.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template | None
    max_length: int | None
    features: dict[str, Any]
    version: str

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokens, labels and the columns about the preparation of a batch of rows."""
        size = len(next(iter(batch.values())))
        reasons: list[str | None] = [None] * size
        requests: list[Request] = []
        reader = RequestReader(self.tokenizer, self.template, self.features)
        for number in range(size):
            try:
                requests.append(reader.request({name: values[number] for name, values in batch.items()}, number))
            except RowError as error:
                reasons[number] = str(error)
            except Exception as error:  # a value of a type that nobody thought of
                reasons[number] = f"it cannot be read: {type(error).__name__}: {error}"
        # a row that cannot be used keeps its place, without a label
        empty = [self.tokenizer.eos_token_id or 0]
        tokens: list[Tokens] = [(empty, [IGNORE_INDEX])] * size
        for number, result in self._encoded(requests).items():
            if isinstance(result, str):
                reasons[number] = result
            else:
                tokens[number] = result
        return self._columns(tokens, reasons, self._problems(requests, tokens, reasons))

    # ---- From requests to tokens ----

    def _encoded(self, requests: list[Request]) -> dict[int, Tokens | str]:
        """Row number to tokens, or to the reason why there are none."""
        groups: dict[str, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.group, []).append(request)
        results: dict[int, Tokens | str] = {}
        for group in groups.values():
            encode = self._encode_function(group[0].kind)
            try:
                encoded = encode(group)
                results |= {request.row: tokens for request, tokens in zip(group, encoded, strict=True)}
            except Exception:  # templates raise anything; the rows that do are found one by one
                results |= {request.row: self._alone(encode, request) for request in group}
        return results

    def _encode_function(self, kind: str) -> Callable[[list[Request]], list[Tokens]]:
        if kind == CHAT:
            marked = self.template is not None and self.template.marked
            return self._marked_chats if marked else self._located_chats
        return {COMPLETION: self._completions, PLAIN: self._plain_completions, TEXT: self._texts}[kind]

    def _alone(self, encode: Callable[[list[Request]], list[Tokens]], request: Request) -> Tokens | str:
        try:
            return encode([request])[0]
        except Exception as error:
            return _reason(error, request.kind)

    def _chats(self, messages: list[list[dict[str, Any]]], options: dict[str, Any], **more: Any) -> Any:
        """What the chat template makes of several conversations."""
        if self.template is not None and not self.template.takes_text:
            messages = [as_parts(conversation) for conversation in messages]
        return self.tokenizer.apply_chat_template(messages, **(more | options))

    def _marked_chats(self, group: list[Request]) -> list[Tokens]:
        # only called for a template with generation marks
        template = cast(Template, self.template)
        encoded = self._chats(
            [request.whole for request in group],
            group[0].options,
            chat_template=template.text,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        results = [(ids, _labels(ids, mask)) for ids, mask in pairs]
        for _, labels in results:
            if not _has_labels(labels):
                raise RowError("the chat template marks none of its tokens as the assistant's")
        return results

    def _located_chats(self, group: list[Request]) -> list[Tokens]:
        options = group[0].options
        texts = self._chats([request.whole for request in group], options, tokenize=False)

        def render(messages: list[dict[str, Any]], **more: Any) -> str:
            return self._chats([messages], options, tokenize=False, **more)[0]

        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        results = []
        for request, text, ids, offsets in zip(
            group, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            spans = assistant_spans(render, request.whole, text)
            results.append((ids, _labels(ids, mask_of(offsets, spans))))
        return results

    def _completions(self, group: list[Request]) -> list[Tokens]:
        options = group[0].options
        prompts = [request.prompt for request in group]
        before = self._chats(prompts, options, tokenize=True, return_dict=True, add_generation_prompt=True)
        whole = self._chats([request.whole for request in group], options, tokenize=True, return_dict=True)
        return [self._after(*pair) for pair in zip(before["input_ids"], whole["input_ids"], strict=True)]

    def _plain_completions(self, group: list[Request]) -> list[Tokens]:
        before = self.tokenizer([request.prompt for request in group])["input_ids"]
        whole = self.tokenizer([request.whole for request in group])["input_ids"]
        return [self._after(*pair) for pair in zip(before, whole, strict=True)]

    def _texts(self, group: list[Request]) -> list[Tokens]:
        return [(ids, list(ids)) for ids in self.tokenizer([request.whole for request in group])["input_ids"]]

    @staticmethod
    def _after(prompt: list[int], ids: list[int]) -> Tokens:
        """Labels from where a prompt and the whole part, which may be before the prompt's last token."""
        start = shared_prefix(prompt, ids)
        return ids, [IGNORE_INDEX] * start + ids[start:]

    # ---- Checks ----

    def _problems(
        self, requests: list[Request], tokens: list[Tokens], reasons: list[str | None]
    ) -> dict[int, str | None]:
        """What is wrong with the labels of the rows that could be prepared."""
        good = [request for request in requests if reasons[request.row] is None and request.answers]
        if not good:
            return {}
        labelled = [[label for label in tokens[request.row][1] if label != IGNORE_INDEX] for request in good]
        check = LabelCheck(self.tokenizer, self.template is not None and self.template.marked)
        found = check.problems(labelled, [request.answers for request in good], [request.others for request in good])
        return {request.row: problem for request, problem in zip(good, found, strict=True)}

    def _columns(
        self, tokens: list[Tokens], reasons: list[str | None], problems: dict[int, str | None]
    ) -> dict[str, list[Any]]:
        cut = [labels[: self.max_length] for _, labels in tokens]
        return {
            "input_ids": [ids[: self.max_length] for ids, _ in tokens],
            "labels": cut,
            REASON: reasons,
            LENGTH: [len(ids) for ids, _ in tokens],
            LOST: [_has_labels(whole) and not _has_labels(left) for (_, whole), left in zip(tokens, cut, strict=True)],
            PROBLEM: [problems.get(number) for number in range(len(tokens))],
        }
