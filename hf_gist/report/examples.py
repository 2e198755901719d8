"""Rows to read: the best and the worst of each target group, with their text, which no other artifact holds."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hf_gist.config.gist import UNSCORED
from hf_gist.data.rows import IGNORE_INDEX, fetch_rows
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.selection import Selection
from hf_gist.report.parts import TextSpan
from hf_gist.utils.disk import read_json, write_json


EXAMPLES = "examples.json"

GROUPS, ROWS, TARGETS = 8, 3, 2
"""Groups to show, rows of each at either end, and target rows of each."""

TOKENS, CHARACTERS, PIECES = 250, 900, 6
"""How much of a row is kept: tokens read and characters kept of each piece, and pieces."""

NO_TOKENIZER = "The rows are token numbers, and no tokenizer is known to turn them into text."
NO_TEXT = "The row holds no text that is known here: no `messages`, `prompt` and `completion`, or `text`."


@dataclass(frozen=True)
class ExampleGroup:
    """The rows of one target group that are worth reading.

    Args:
        name (`str`): of the group.
        targets (`list[int]`): target rows of it, by number in the target set.
        size (`int`): scorable rows whose best match it is.
        kept (`int`): selected ones of them.
        best (`list[int]`): those with the highest scores, selected or not.
        worst (`list[int]`): those with the lowest scores, the lowest first.
    """

    name: str
    targets: list[int]
    size: int
    kept: int
    best: list[int]
    worst: list[int]


def example_groups(selection: Selection) -> list[ExampleGroup]:
    """The target groups that most selected rows match best, with their best and worst rows.

    A row belongs to the group it matches best. A random draw knows no groups: its first rows stand in one.
    """
    if selection.config.strategy in UNSCORED:
        kept = selection.indices
        return [ExampleGroup("", [], len(selection.scores), len(kept), kept[: 2 * ROWS], [])]
    m, scores = selection.measurements, selection.scores
    of_target, names = m.groups(selection.config.target_group_column)
    # what could have been selected
    possible = torch.isfinite(scores).nonzero().flatten()
    sizes = torch.bincount(selection.best_group[possible], minlength=len(names))
    kept = torch.bincount(selection.best_group[selection.indices], minlength=len(names))
    order = sorted(range(len(names)), key=lambda group: (-int(kept[group]), -int(sizes[group]), group))
    found = []
    for group in order[:GROUPS]:
        rows = possible[selection.best_group[possible] == group]
        rows = rows[torch.sort(scores[rows], descending=True, stable=True).indices].tolist()
        targets = [number for number, own in zip(m.target_numbers, of_target, strict=True) if own == group]
        worst = rows[ROWS:][::-1][:ROWS]
        found.append(
            ExampleGroup(names[group], targets[:TARGETS], int(sizes[group]), int(kept[group]), rows[:ROWS], worst)
        )
    return found


# ---- Text of a row ----


def pieces_of(row: Any, tokenizer: Any = None) -> list[TextSpan]:
    """The text of a row, in pieces with and without a loss; empty if there is none.

    Args:
        row (`dict`): tokenised, or in the `messages`, `prompt` and `completion`, or `text` format.
        tokenizer (*optional*): for tokenised rows; anything with `decode`.
    """
    if not isinstance(row, dict):
        return []
    if "input_ids" in row:
        return _decoded(row, tokenizer) if hasattr(tokenizer, "decode") else []
    if isinstance(row.get("messages"), list):
        return _turns(row["messages"])
    if "prompt" in row and "completion" in row:
        return [*_any(row["prompt"], "prompt"), *_any(row["completion"], "answer")][:PIECES]
    return [_piece("text", row["text"])] if isinstance(row.get("text"), str) else []


def _piece(kind: str, text: str, more: bool = False) -> TextSpan:
    text = text.strip()
    return TextSpan(kind, text[:CHARACTERS], more or len(text) > CHARACTERS)


def _any(value: Any, kind: str) -> list[TextSpan]:
    return _turns(value) if isinstance(value, list) else [_piece(kind, str(value))]


def _turns(messages: Sequence[Any]) -> list[TextSpan]:
    turns = [message for message in messages if isinstance(message, dict)][:PIECES]
    return [
        _piece("answer" if turn.get("role") == "assistant" else "prompt", str(turn.get("content") or ""))
        for turn in turns
    ]


def _decoded(row: dict[str, Any], tokenizer: Any) -> list[TextSpan]:
    ids, labels = _plain(row["input_ids"]), _plain(row.get("labels"))
    learned = _learned(row, ids, labels)
    if learned is None:
        prompt = _tokens("text" if labels is None else "prompt", ids, tokenizer)
        return [prompt] if labels is None else [prompt, _own_labels(labels, tokenizer)]
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            pieces.append(_tokens("answer" if learned[start] else "prompt", ids[start:end], tokenizer))
            start = end
        if len(pieces) == PIECES:
            break
    return pieces


def _own_labels(labels: Any, tokenizer: Any) -> TextSpan:
    """Labels that are no part of the input: a sequence of their own, a class, or numbers."""
    if isinstance(labels, list) and all(isinstance(label, int) for label in labels):
        return _tokens("answer", [label for label in labels if label != IGNORE_INDEX], tokenizer)
    return _piece("answer", f"label {labels}")


def _learned(row: dict[str, Any], ids: list[int], labels: Any) -> list[bool] | None:
    """Which tokens carry a loss; `None` if the row does not say."""
    if labels is not None:
        same = isinstance(labels, list) and len(labels) == len(ids)
        same = same and all(a in (IGNORE_INDEX, b) for a, b in zip(labels, ids, strict=True))
        return [label != IGNORE_INDEX for label in labels] if same else None
    masks = [_plain(row[name]) for name in ("completion_mask", "assistant_masks") if row.get(name) is not None]
    masks = [mask for mask in masks if len(mask) == len(ids)]
    return [all(values) for values in zip(*masks, strict=True)] if masks else None


def _plain(values: Any) -> Any:
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, tuple) else values


def _tokens(kind: str, ids: list[int], tokenizer: Any) -> TextSpan:
    return _piece(kind, str(tokenizer.decode(ids[:TOKENS], skip_special_tokens=True)), len(ids) > TOKENS)


# ---- The file ----


def _digest(m: Measurements) -> str:
    """Knows the scored rows again, so that no text is shown for a row of another pool."""
    digest = hashlib.sha256()
    for tensor in (m.norms, m.label_tokens, m.target_coordinates):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Examples:
    """Texts of some rows.

    Args:
        rows (`dict[int, list[TextSpan]]`): number of a pool row to its text.
        targets (`dict[int, list[TextSpan]]`): number of a target row to its text.
        missing (`str`): why texts are missing.
    """

    rows: dict[int, list[TextSpan]]
    targets: dict[int, list[TextSpan]]
    missing: str = ""


def read_examples(folder: Path, selection: Selection) -> Examples:
    """The texts that were kept beside a selection.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        return Examples({}, {}, f"There is no {EXAMPLES} in the folder, so only row numbers are known.")
    values = read_json(path)
    try:
        if values["scores"] != _digest(selection.measurements):
            return Examples({}, {}, f"{EXAMPLES} belongs to other scores than the selection in this folder.")
        rows, targets = (
            {int(number): [TextSpan(**piece) for piece in pieces] for number, pieces in values[name].items()}
            for name in ("rows", "targets")
        )
        return Examples(rows, targets, str(values["missing"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); delete it, or select again.") from error


def save_examples(
    folder: Path,
    selection: Selection,
    pool: Any,
    targets: Any,
    tokenizer: Any = None,
    earlier: Path | None = None,
    withheld: str = "",
) -> None:
    """Write `examples.json`: the text of the rows in [`example_groups`], of which alone the pool is read.

    Args:
        folder (`Path`): the folder of the selection.
        selection (`Selection`): what was selected.
        pool: the rows it was selected from; `None` if they are not at hand.
        targets: the target rows, likewise.
        tokenizer (*optional*): for tokenised rows.
        earlier (`Path`, *optional*): folder of an earlier choice from the same scores, whose texts serve again.
        withheld (`str`): why no text may be written.
    """
    groups, before = example_groups(selection), Examples({}, {})
    if earlier is not None:
        before = read_examples(earlier, selection)
    wanted = (
        (pool, sorted({row for group in groups for row in group.best + group.worst}), before.rows),
        (targets, sorted({row for group in groups for row in group.targets}), before.targets),
    )
    texts, missing = [], withheld
    for dataset, numbers, known in wanted:
        rows = [] if dataset is None or withheld else fetch_rows(dataset, numbers)
        found = {} if withheld else {number: known.get(number, []) for number in numbers}
        found |= {n: pieces_of(row, tokenizer) or found[n] for n, row in zip(numbers, rows, strict=bool(rows))}
        missing = missing or ("" if all(found.values()) and found else _why_missing(rows, tokenizer))
        texts.append({number: [asdict(piece) for piece in pieces] for number, pieces in found.items()})
    values = {"scores": _digest(selection.measurements), "missing": missing, "rows": texts[0], "targets": texts[1]}
    write_json(folder / EXAMPLES, values)


def _why_missing(rows: Sequence[Any], tokenizer: Any) -> str:
    if not rows:
        return "The rows were chosen again from scores, and their text was not at hand."
    tokens_only = isinstance(rows[0], dict) and "input_ids" in rows[0] and not hasattr(tokenizer, "decode")
    return NO_TOKENIZER if tokens_only else NO_TEXT
