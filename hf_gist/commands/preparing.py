"""Tokenises the rows of a command, and keeps what was found on the way for the screen and the manifest."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_gist.data.bad_rows import Where
from hf_gist.data.preparation.findings import MISLABELLED_SHARE, Cuts, Mislabelled
from hf_gist.data.preparation.run import Prepared, prepare
from hf_gist.data.preparation.shown import marked_rows
from hf_gist.data.preparation.templates import read_template
from hf_gist.data.reading.origins import RawRows
from hf_gist.training.loading import load_tokenizer, positions, tokenizer_source
from hf_gist.utils.terminal import say, say_wrapped


LONGEST_ROW = 1024

KEEP_NUMBERS = "; they keep their row numbers, so numbers of rows of the pool include them"
"""Of bad rows of the pool, for messages."""


@dataclass
class Preparer:
    """Tokenises rows with the settings of a command.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the model or of the adapter.
        max_length (`int`): longest row in tokens.
        chat_template (`str`, *optional*): Jinja text instead of the tokenizer's template.
        skip_bad_rows (`bool`): leave out rows that cannot be tokenised.
        max_mislabelled (`float`): largest accepted share of rows whose labels are not their answers.
        cuts_tokens (`bool`): also cut rows that are tokenised already; `new_preparer` does so only with `--max_length`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    chat_template: str | None = None
    skip_bad_rows: bool = False
    max_mislabelled: float = MISLABELLED_SHARE
    cuts_tokens: bool = True
    cuts: dict[str, Cuts] = field(default_factory=dict)
    mislabelled: dict[str, Mislabelled] = field(default_factory=dict)
    bad: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def rows(self, rows: Dataset, argument: str, where: Where | None = None, quiet: bool = False) -> Dataset:
        """Tokenised rows; those that cannot be used keep their place, without a label, and are never selected.

        Args:
            rows (`Dataset`): raw rows.
            argument (`str`): the flag they come from, for messages.
            where (`Where`, *optional*): place of a row.
            quiet (`bool`): do not print what was cut; for chunks of a stream.

        Raises:
            ValueError: see [`prepare`].
        """
        return self._prepared(rows, argument, where, quiet, KEEP_NUMBERS).rows

    def usable(self, rows: Dataset, argument: str, where: Where | None = None) -> Dataset:
        """[`Preparer.rows`] without those that cannot be used."""
        return self._prepared(rows, argument, where, False).usable

    def usable_with_raw(self, raw: RawRows, argument: str) -> tuple[Dataset, RawRows]:
        """[`Preparer.usable`], and the raw rows that they are.

        Args:
            raw (`RawRows`): raw rows.
            argument (`str`): the flag they come from, for messages.
        """
        prepared = self._prepared(raw.rows, argument, raw.where, False)
        return prepared.usable, raw.select(prepared.bad.kept()) if prepared.bad.reasons else raw

    def _prepared(
        self, rows: Dataset, argument: str, where: Where | None, quiet: bool, numbered: str = ""
    ) -> Prepared:
        whole = "input_ids" in rows.column_names and not self.cuts_tokens
        prepared = prepare(
            rows,
            self.tokenizer,
            None if whole else self.max_length,
            argument,
            chat_template=self.chat_template,
            where=where,
            skip_bad_rows=self.skip_bad_rows,
        )
        self.cuts.setdefault(argument, Cuts(self.max_length)).add(prepared.cuts)
        found = self.mislabelled.setdefault(argument, Mislabelled())
        found.add(prepared.mislabelled)
        if prepared.bad.reasons:
            self.left_out.setdefault(argument, []).extend(sorted(prepared.bad.reasons))
            self.bad.setdefault(argument, []).extend(prepared.bad.report())
            if not quiet:
                say_wrapped(f"{argument}: {len(prepared.bad.reasons):,} of {len(rows):,} rows were left out{numbered}")
        if prepared.mislabelled.found:
            # the chunks of a stream are one file; of several files, each must be right
            (found if quiet else prepared.mislabelled).check(argument, self.max_mislabelled)
        if not quiet:
            _say_cuts(prepared.cuts, argument)
        return prepared

    def say_cuts(self, argument: str) -> None:
        """Print how many rows of all chunks of a stream were cut, if any were."""
        if argument in self.cuts:
            _say_cuts(self.cuts[argument], argument)

    def show(self, rows: Dataset, argument: str, count: int) -> None:
        """Print the first rows with the labelled parts marked.

        Args:
            rows (`Dataset`): tokenised rows.
            argument (`str`): the flag they come from.
            count (`int`): number of rows.
        """
        for text in marked_rows(rows, count, self.tokenizer, argument) if count else []:
            say(text)

    def facts(self) -> dict[str, Any]:
        """The manifest's entries: the limit, and the rows that were cut, left out or labelled wrongly."""
        facts: dict[str, Any] = {"max_length": self.max_length}
        facts["cut_rows"] = {name: cuts.to_dict() for name, cuts in self.cuts.items()}
        wrong = {name: found.found for name, found in self.mislabelled.items() if found.found}
        return facts | ({"mislabelled_rows": wrong} if wrong else {}) | ({"bad_rows": self.bad} if self.bad else {})


def _say_cuts(cuts: Cuts, argument: str) -> None:
    line = cuts.describe(argument)
    if line:
        say_wrapped(line)


def new_preparer(arguments: Any, base: PreTrainedModel) -> Preparer:
    """The tokenizer and the settings that the flags of a command name.

    Args:
        arguments (`SourceArguments`): the flags.
        base (`PreTrainedModel`): the base model; its number of positions limits the rows.
    """
    adapter = getattr(arguments, "adapter_name_or_path", None)
    name, revision = tokenizer_source(
        arguments.model_name, arguments.model_revision, adapter, arguments.tokenizer_name_or_path
    )
    tokenizer, limit = load_tokenizer(name, revision, arguments.trust_remote_code)
    return Preparer(
        tokenizer,
        arguments.max_length or min(limit, positions(base), LONGEST_ROW),
        read_template(arguments.chat_template),
        getattr(arguments, "skip_bad_rows", False),
        arguments.max_mislabelled,
        arguments.max_length is not None,
    )
