"""Tokens of every choice of every row, prepared like the other rows, with the checks that make them comparable."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from datasets import Dataset

from hf_gist.commands.preparing import Preparer
from hf_gist.commands.testing.answers import ANSWER, CHOICES, check_rows, choices_as_rows
from hf_gist.commands.testing.choices import Choices
from hf_gist.commands.workspace import say_skipped
from hf_gist.data.bad_rows import BadRows
from hf_gist.data.preparation.labels import LabelCheck, shortened, squeezed
from hf_gist.data.preparation.run import Prepared, prepare
from hf_gist.data.reading.origins import RawRows
from hf_gist.data.rows import IGNORE_INDEX


def read_choices(raw: RawRows, preparer: Preparer) -> Choices:
    """The choices of [`choices_with_raw`] alone."""
    return choices_with_raw(raw, preparer)[0]


def choices_with_raw(raw: RawRows, preparer: Preparer) -> tuple[Choices, RawRows]:
    """The choices of the rows of a test file, tokenised as the answers of the other rows are, and the rows that have them.

    Args:
        raw (`RawRows`): rows with `choices` and `answer`.
        preparer (`Preparer`): tokenises rows, and says whether bad rows are left out.

    Raises:
        ValueError: naming the rows that cannot be answered, with the reasons.
    """
    bad = BadRows(len(raw), raw.where)
    check_rows(raw.rows, bad)
    raw = _without(raw, bad, preparer)
    sizes = _sizes(raw)
    starts = [0, *accumulate(sizes)]
    prepared = _prepared(raw, sizes, preparer)
    tokens = prepared.rows.select_columns(["input_ids", "labels"]).map(_only_last_answer, desc="choices")
    bad = BadRows(len(raw), raw.where)
    check = ChoiceCheck(preparer, raw)
    for row, start in enumerate(starts[:-1]):
        own = range(start, starts[row + 1])
        unusable = [f"choice {at - start}: {prepared.bad.reasons[at]}" for at in own if at in prepared.bad.reasons]
        reason = unusable[0] if unusable else check.problem(row, tokens.select(own).to_list())
        if reason is not None:
            bad.add(row, reason)
    kept = [at for row in bad.kept() for at in range(starts[row], starts[row + 1])]
    raw = _without(raw, bad, preparer)
    return Choices(tokens.select(kept), _sizes(raw), list(raw.rows.with_format(None)[ANSWER])), raw


def _sizes(raw: RawRows) -> list[int]:
    """Number of choices of every row."""
    return [len(choices) for choices in raw.rows.with_format(None)[CHOICES]]


def _without(raw: RawRows, bad: BadRows, preparer: Preparer) -> RawRows:
    """The rows without the bad ones, which are an error unless the preparer leaves bad rows out."""
    if not bad.reasons:
        return raw
    if not preparer.skip_bad_rows or not bad.kept():
        bad.refuse()
    say_skipped(bad.report(), "test_file")
    return raw.select(bad.kept())


def _prepared(raw: RawRows, sizes: Sequence[int], preparer: Preparer) -> Prepared:
    """Every choice as a tokenised row, whole.

    Raises:
        ValueError: if the labels of a choice are not the choice, unless the preparer accepts all wrong labels.
    """
    places = [(row, number) for row, size in enumerate(sizes) for number in range(size)]

    def where(at: int) -> str:
        row, number = places[at]
        return f"{raw.where(row)}, choice {number}"

    prepared = prepare(
        choices_as_rows(raw.rows),
        preparer.tokenizer,
        None,
        "test_file",
        chat_template=preparer.chat_template,
        where=where,
        skip_bad_rows=True,
    )
    # one wrong choice decides a row, so a small share of them is not accepted as it is among training rows
    prepared.mislabelled.check("test_file", 1.0 if preparer.max_mislabelled >= 1 else 0.0)
    return prepared


def _only_last_answer(row: dict[str, Any]) -> dict[str, list[int]]:
    """The labels of the last answer; those of earlier turns are the same for all choices."""
    labels = row["labels"]
    end = max((at + 1 for at, label in enumerate(labels) if label != IGNORE_INDEX), default=0)
    before = [at for at, label in enumerate(labels[:end]) if label == IGNORE_INDEX]
    start = before[-1] + 1 if before else 0
    return {"labels": [IGNORE_INDEX] * start + labels[start:]}


class ChoiceCheck:
    """Checks that the log-likelihoods of the choices of a row can be compared.

    Args:
        preparer (`Preparer`): that tokenised them.
        raw (`RawRows`): the rows.
    """

    def __init__(self, preparer: Preparer, raw: RawRows) -> None:
        self.tokenizer = preparer.tokenizer
        self.max_length = preparer.max_length
        self.rows: Dataset = raw.rows.with_format(None)
        self.special = LabelCheck(preparer.tokenizer, False).special

    def problem(self, row: int, tokens: Sequence[dict[str, list[int]]]) -> str | None:
        """Why the choices of a row cannot be compared; `None` if they can.

        Args:
            row (`int`): its number.
            tokens (`Sequence[dict]`): `input_ids` and `labels` of each of its choices.
        """
        longest = max(len(choice["input_ids"]) for choice in tokens)
        if longest > self.max_length:
            return (
                f"the question and a choice have {longest:,} tokens, more than --max_length, which is "
                f"{self.max_length:,}; a choice that is cut cannot be compared"
            )
        said = [[label for label in choice["labels"] if label != IGNORE_INDEX] for choice in tokens]
        before = [choice["input_ids"][: _start(choice["labels"])] for choice in tokens]
        changed = next((number for number, ids in enumerate(before) if ids != before[0]), None)
        if changed is not None:
            return f"the tokens of the question are others with choice {changed} than with choice 0"
        if not before[0]:
            return "no token is before its choices, so the model cannot predict their first one"
        same = next((number for number, ids in enumerate(said) if ids in said[:number]), None)
        if same is not None:
            return f"choices {said.index(said[same])} and {same} have the same tokens"
        return self._plain_problem(row, said)

    def _plain_problem(self, row: int, said: Sequence[list[int]]) -> str | None:
        """What is wrong with the labels of text without a template; those of conversations are checked already."""
        if not isinstance(self.rows[row].get("completion"), str):
            return None
        for number, (text, ids) in enumerate(zip(self.rows[row][CHOICES], said, strict=True)):
            shown = self._decoded(ids)
            again = self._decoded(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if self._bare(shown) not in (self._bare(text), self._bare(again)):
                return (
                    f"the tokens of choice {number} are {shortened(shown)!r}, but the choice is {shortened(text)!r}: it "
                    "changes the tokens of the question; end `prompt` where a token ends, or begin `completion` with a "
                    "space"
                )
        return None

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _bare(self, text: str) -> str:
        """The text without special tokens and white space."""
        return self.special.sub("", squeezed(text))


def _start(labels: Sequence[int]) -> int:
    """The first labelled token."""
    return next((at for at, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
