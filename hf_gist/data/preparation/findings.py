"""What the preparation of rows found: rows that were cut, and rows that are labelled wrongly."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from hf_gist.data.bad_rows import SHOWN, Where
from hf_gist.errors import MislabelledRowsWarning
from hf_gist.utils.guides import guide


MISLABELLED_SHARE = 0.01
"""Share of the rows above which wrong labels are an error."""


@dataclass
class Cuts:
    """Rows that were cut to a limit.

    Args:
        max_length (`int`, *optional*): the limit in tokens.
        rows (`int`): all rows.
        cut (`int`): the longer ones.
        lost (`int`): rows that lost all their labelled tokens.
    """

    max_length: int | None = None
    rows: int = 0
    cut: int = 0
    lost: int = 0

    def add(self, other: "Cuts") -> None:
        """Add the counts of further rows."""
        self.rows += other.rows
        self.cut += other.cut
        self.lost += other.lost

    def describe(self, what: str) -> str | None:
        """One line, or `None` if nothing was cut.

        Args:
            what (`str`): name of the dataset.
        """
        if not self.cut:
            return None
        lost = f"; {self.lost:,} of them lost the whole answer" if self.lost else ""
        return f"{what}: {self.cut:,} of {self.rows:,} rows were cut to {self.max_length:,} tokens{lost}"

    def to_dict(self) -> dict[str, Any]:
        """The entry in the manifest."""
        return {"rows": self.rows, "cut": self.cut, "answers_cut_off": self.lost}


def cut_sentences(manifest: dict[str, Any]) -> list[str]:
    """What the report and the cards say of rows that were cut; nothing if none was, or if it is not known.

    Args:
        manifest (`dict`): of a selection, with the entries of [`Cuts.to_dict`] by name of the dataset.
    """
    entries = manifest.get("cut_rows")
    limit = manifest.get("max_length")
    if not isinstance(entries, dict) or not isinstance(limit, int):
        return []
    found = [
        Cuts(limit, entry["rows"], entry["cut"], entry["answers_cut_off"]).describe(name)
        for name, entry in entries.items()
    ]
    return [sentence for sentence in found if sentence]


@dataclass
class Mislabelled:
    """Rows whose labels are not their answers.

    Args:
        rows (`int`): all rows.
        found (`int`): the wrong ones.
        examples (`list[str]`): the place and the labels of the first ones.
    """

    rows: int = 0
    found: int = 0
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, problems: dict[int, str], rows: int, where: Where) -> "Mislabelled":
        """The findings of one dataset.

        Args:
            problems (`dict[int, str]`): row number to what is wrong with its labels.
            rows (`int`): all rows.
            where (`Where`): place of a row.
        """
        first = sorted(problems.items())[:SHOWN]
        return cls(rows, len(problems), [f"  {where(row)}: {problem}" for row, problem in first])

    def add(self, other: "Mislabelled") -> None:
        """Add the findings of further rows."""
        self.rows += other.rows
        self.found += other.found
        self.examples = [*self.examples, *other.examples][:SHOWN]

    def check(self, what: str, share: float = MISLABELLED_SHARE) -> None:
        """Raise if the share of wrong rows is too large, and warn if there is one.

        Args:
            what (`str`): name of the dataset.
            share (`float`): the largest accepted share.

        Raises:
            ValueError: with the first three rows and the ways out.
        """
        if not self.found:
            return
        shown = "\n".join(self.examples)
        text = (
            f"`{what}`: the labels of {self.found:,} of {self.rows:,} rows are not the assistant's answers.\n{shown}\n"
        )
        if self.found > share * self.rows:
            raise ValueError(
                f"{text}The chat template drops the answer or labels other text. Give one that does not with "
                "`--chat_template FILE`, look at rows with `--show_labels 3`, or accept them with `--max_mislabelled 1`. "
                f"See {guide('data', 'checks')}."
            )
        warnings.warn(text + "Look at rows with `--show_labels 3`.", MislabelledRowsWarning, stacklevel=2)
