"""Example rows: the rows with the highest and lowest scores of each target group, and their text."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED
from hf_gist.data.rows import IGNORE_INDEX, fetch_rows, token_columns
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.selection import Selection
from hf_gist.report.parts import TextSpan
from hf_gist.utils.disk import read_json, write_json


EXAMPLES_FILE = "examples.json"

GROUPS_SHOWN = 8
ROWS_PER_END = 3
"""Rows shown of each group with the highest scores, and as many with the lowest."""

TARGETS_PER_GROUP = 2
"""Target rows shown of each group."""

TOKENS_DECODED = 250
"""Tokens of a text span that are decoded at most."""

CHARACTERS_KEPT = 900
"""Characters of a text span that are written at most."""

SPANS_PER_ROW = 6

NO_TOKENIZER = "The rows contain token ids, and there is no tokenizer to decode them."
NO_TEXT = "The rows have no text in a known format: `messages`, `prompt` and `completion`, or `text`."
NO_ROWS = "The selection was made from saved scores without the rows, so their text is not available."


@dataclass(frozen=True)
class ExampleGroup:
    """The rows of one target group to show.

    Args:
        name (`str`): name of the group.
        targets (`list[int]`): its first target rows, by number in the target set.
        size (`int`): scorable rows that match this group best.
        kept (`int`): how many of them were selected.
        best (`list[int]`): pool rows with the highest scores, selected or not.
        worst (`list[int]`): pool rows with the lowest scores, the lowest first.
    """

    name: str
    targets: list[int]
    size: int
    kept: int
    best: list[int]
    worst: list[int]


def example_groups(selection: Selection) -> list[ExampleGroup]:
    """The target groups that most selected rows match best, with their best and worst rows.

    A row belongs to the group it matches best. A random draw has no groups: its first rows are returned as one group.
    """
    if selection.config.strategy in UNSCORED:
        kept = selection.indices
        return [ExampleGroup("", [], len(selection.scores), len(kept), kept[: 2 * ROWS_PER_END], [])]
    number = len(selection.group_names)
    sizes = torch.bincount(selection.best_group[_selectable(selection)], minlength=number).tolist()
    kept = torch.bincount(selection.best_group[selection.indices], minlength=number).tolist()
    order = sorted(range(number), key=lambda group: (-kept[group], -sizes[group], group))
    return [_example_group(selection, group, sizes[group], kept[group]) for group in order[:GROUPS_SHOWN]]


def _selectable(selection: Selection) -> torch.Tensor:
    """Numbers of the rows that could have been selected: those with a finite score."""
    return torch.isfinite(selection.scores).nonzero().flatten()


def _example_group(selection: Selection, group: int, size: int, kept: int) -> ExampleGroup:
    m = selection.measurements
    of_target, names = m.groups(selection.config.target_group_column)
    targets = [number for number, own in zip(m.target_numbers, of_target, strict=True) if own == group]
    rows = _selectable(selection)
    rows = rows[selection.best_group[rows] == group]
    by_score = rows[torch.sort(selection.scores[rows], descending=True, stable=True).indices].tolist()
    best = by_score[:ROWS_PER_END]
    worst = by_score[ROWS_PER_END:][::-1][:ROWS_PER_END]
    return ExampleGroup(names[group], targets[:TARGETS_PER_GROUP], size, kept, best, worst)


# ---- Text of a row ----


def text_spans(row: Any, tokenizer: Any = None) -> list[TextSpan]:
    """The text of a row, split into spans with and without a loss; empty if the row has no text.

    Args:
        row (`dict`): tokenised, or in the `messages`, `prompt` and `completion`, or `text` format.
        tokenizer (*optional*): for tokenised rows; anything with `decode`.
    """
    if not isinstance(row, dict):
        return []
    if token_columns(row):
        if not hasattr(tokenizer, "decode"):
            return []
        return _decoded_spans(row, tokenizer) if "input_ids" in row else _decoded_pair(row, tokenizer)
    if isinstance(row.get("messages"), list):
        return _message_spans(row["messages"])
    if "prompt" in row and "completion" in row:
        spans = [*_raw_spans(row["prompt"], "prompt"), *_raw_spans(row["completion"], "answer")]
        return spans[:SPANS_PER_ROW]
    return [_span("text", row["text"])] if isinstance(row.get("text"), str) else []


def _span(kind: str, text: str, more: bool = False) -> TextSpan:
    text = text.strip()
    return TextSpan(kind, text[:CHARACTERS_KEPT], more or len(text) > CHARACTERS_KEPT)


def _raw_spans(value: Any, kind: str) -> list[TextSpan]:
    """Spans of a prompt or a completion: a text, or a list of messages."""
    return _message_spans(value) if isinstance(value, list) else [_span(kind, str(value))]


def _message_spans(messages: Sequence[Any]) -> list[TextSpan]:
    messages = [message for message in messages if isinstance(message, dict)][:SPANS_PER_ROW]
    return [
        _span("answer" if message.get("role") == "assistant" else "prompt", str(message.get("content") or ""))
        for message in messages
    ]


def _decoded_pair(row: dict[str, Any], tokenizer: Any) -> list[TextSpan]:
    """Spans of a preference pair: its prompt, and both answers."""
    kinds = {"prompt_ids": "prompt", "chosen_ids": "answer", "rejected_ids": "text"}
    return [_decoded_span(kinds[name], _as_list(row[name]), tokenizer) for name in token_columns(row)]


def _decoded_spans(row: dict[str, Any], tokenizer: Any) -> list[TextSpan]:
    """Spans of a tokenised row: consecutive tokens with a loss, or without."""
    ids = _as_list(row["input_ids"])
    labels = _as_list(row.get("labels"))
    has_loss = _loss_mask(row, ids, labels)
    if has_loss is None:
        if labels is None:
            return [_decoded_span("text", ids, tokenizer)]
        return [_decoded_span("prompt", ids, tokenizer), _separate_labels(labels, tokenizer)]
    spans = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or has_loss[end] != has_loss[start]:
            spans.append(_decoded_span("answer" if has_loss[start] else "prompt", ids[start:end], tokenizer))
            start = end
        if len(spans) == SPANS_PER_ROW:
            break
    return spans


def _separate_labels(labels: Any, tokenizer: Any) -> TextSpan:
    """Labels that are not tokens of the input: another sequence (encoder-decoder), a class, or numbers."""
    if isinstance(labels, list) and all(isinstance(label, int) for label in labels):
        return _decoded_span("answer", [label for label in labels if label != IGNORE_INDEX], tokenizer)
    return _span("answer", f"label {labels}")


def _loss_mask(row: dict[str, Any], ids: list[int], labels: Any) -> list[bool] | None:
    """Which tokens have a loss, from `labels` or from the masks of TRL; `None` if neither covers each token."""
    if labels is not None:
        same = isinstance(labels, list) and len(labels) == len(ids)
        same = same and all(a in (IGNORE_INDEX, b) for a, b in zip(labels, ids, strict=True))
        return [label != IGNORE_INDEX for label in labels] if same else None
    masks = [_as_list(row[name]) for name in ("completion_mask", "assistant_masks") if row.get(name) is not None]
    masks = [mask for mask in masks if len(mask) == len(ids)]
    return [all(values) for values in zip(*masks, strict=True)] if masks else None


def _as_list(values: Any) -> Any:
    """A tensor, an array or a tuple as a list; anything else unchanged."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, tuple) else values


def _decoded_span(kind: str, ids: list[int], tokenizer: Any) -> TextSpan:
    text = str(tokenizer.decode(ids[:TOKENS_DECODED], skip_special_tokens=True))
    return _span(kind, text, len(ids) > TOKENS_DECODED)


# ---- Reading the file ----


@dataclass
class Examples:
    """Texts of some rows.

    Args:
        rows (`dict[int, list[TextSpan]]`): number of a pool row to its text.
        targets (`dict[int, list[TextSpan]]`): number of a target row to its text.
        missing (`str`): why texts are missing.
    """

    rows: dict[int, list[TextSpan]] = field(default_factory=dict)
    targets: dict[int, list[TextSpan]] = field(default_factory=dict)
    missing: str = ""


def _fingerprint(m: Measurements) -> str:
    """Fingerprint of the scored rows, so that no text is shown for rows of another pool."""
    digest = hashlib.sha256()
    for tensor in (m.norms, m.label_tokens, m.target_coordinates):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_examples(folder: Path, selection: Selection) -> Examples:
    """The row texts in `examples.json`.

    Args:
        folder (`Path`): the folder of the selection.
        selection (`Selection`): texts that belong to other scores than these are not returned.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / EXAMPLES_FILE
    if not path.is_file():
        return Examples(missing=f"There is no {EXAMPLES_FILE} in the folder, so only row numbers are shown.")
    values = read_json(path)
    try:
        if values["scores"] != _fingerprint(selection.measurements):
            return Examples(missing=f"{EXAMPLES_FILE} belongs to other scores than the selection in this folder.")
        return Examples(_texts(values["rows"]), _texts(values["targets"]), str(values["missing"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); delete it, or select again.") from error


def _texts(values: dict[str, Any]) -> dict[int, list[TextSpan]]:
    return {int(number): [TextSpan(**span) for span in spans] for number, spans in values.items()}


# ---- Writing the file ----


def save_examples(
    folder: Path,
    selection: Selection,
    pool: Any,
    targets: Any,
    tokenizer: Any = None,
    earlier: Path | None = None,
    withheld: str = "",
) -> None:
    """Write `examples.json`: the text of the rows in [`example_groups`]. No other row is read.

    Args:
        folder (`Path`): the folder of the selection.
        selection (`Selection`): what was selected.
        pool: the rows it was selected from; `None` if they are not loaded.
        targets: the target rows; `None` if they are not loaded.
        tokenizer (*optional*): for tokenised rows.
        earlier (`Path`, *optional*): folder of an earlier selection from the same scores, whose texts are reused.
        withheld (`str`): the reason why no text may be written, if there is one.
    """
    examples = Examples(missing=withheld)
    if not withheld:
        groups = example_groups(selection)
        before = Examples() if earlier is None else read_examples(earlier, selection)
        numbers = sorted({row for group in groups for row in group.best + group.worst})
        examples.rows, missing = _collect_texts(pool, numbers, before.rows, tokenizer)
        numbers = sorted({row for group in groups for row in group.targets})
        examples.targets, targets_missing = _collect_texts(targets, numbers, before.targets, tokenizer)
        examples.missing = missing or targets_missing
    write_json(folder / EXAMPLES_FILE, {"scores": _fingerprint(selection.measurements)} | asdict(examples))


def _collect_texts(
    dataset: Any, numbers: list[int], known: dict[int, list[TextSpan]], tokenizer: Any
) -> tuple[dict[int, list[TextSpan]], str]:
    """Texts of the rows `numbers`, read from `dataset` or taken from `known`, and why some are missing."""
    rows = [] if dataset is None else fetch_rows(dataset, numbers)
    texts = {number: known.get(number, []) for number in numbers}
    for number, row in zip(numbers, rows, strict=bool(rows)):
        texts[number] = text_spans(row, tokenizer) or texts[number]
    complete = bool(texts) and all(texts.values())
    return texts, "" if complete else _why_missing(rows, tokenizer)


def _why_missing(rows: Sequence[Any], tokenizer: Any) -> str:
    if not rows:
        return NO_ROWS
    tokens_only = isinstance(rows[0], dict) and token_columns(rows[0]) and not hasattr(tokenizer, "decode")
    return NO_TOKENIZER if tokens_only else NO_TEXT
