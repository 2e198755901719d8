"""Model, tokenizer, pool and targets of a command, read and tokenised according to the flags."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_gist.commands.preparing import LONGEST_ROW, Preparer, new_preparer
from hf_gist.config.gist import GISTConfig
from hf_gist.data.preparation.findings import MISLABELLED_SHARE
from hf_gist.data.preparation.formats import warn_other_format
from hf_gist.data.preparation.templates import read_template
from hf_gist.data.provenance import RowSource, describe_source, public_name
from hf_gist.data.reading.load import check_one_of, read_rows
from hf_gist.data.reading.origins import RawRows
from hf_gist.data.rows import Collator, row_lengths
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import (
    check_vocabulary,
    load_adapter,
    load_base,
    padding_collator,
    tokenizer_source,
)
from hf_gist.utils.terminal import say_wrapped


USAGE = "--model_name_or_path MODEL --train_file POOL --target_file TARGETS --output_dir DIR"


def flag(text: str, default: Any = None) -> Any:
    """A field that is a command-line flag, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class SourceArguments:
    """The model and the data of a command."""

    model_name_or_path: str | None = flag("Model folder or Hub id.")
    model_revision: str | None = flag("Branch, tag or commit of the model.")
    dtype: str = flag("Dtype the model is loaded in: auto, float32 or bfloat16.", "auto")
    trust_remote_code: bool = flag("Run code that comes with the model.", False)
    train_file: list[str] | str | None = flag(
        "Candidate pool: files, folders or patterns; JSONL, JSON, CSV (all also .gz, .bz2, .xz, .zst), Parquet, or "
        "what save_to_disk wrote."
    )
    dataset_name: list[str] | str | None = flag("Candidate pool on the Hub, one dataset or several, instead of files.")
    dataset_split: str = flag("Split of --dataset_name.", "train")
    dataset_config_name: str | None = flag("Configuration of --dataset_name, if it has several.")
    dataset_revision: str | None = flag("Branch, tag or commit of --dataset_name.")
    target_file: list[str] | str | None = flag("Target set: a few example rows of the target task.")
    target_dataset_name: list[str] | str | None = flag("Target set on the Hub, instead of a file.")
    target_dataset_split: str = flag("Split of --target_dataset_name.", "train")
    target_dataset_config_name: str | None = flag("Configuration of --target_dataset_name, if it has several.")
    target_dataset_revision: str | None = flag("Branch, tag or commit of --target_dataset_name.")
    columns: dict[str, str] | None = flag(
        "Columns with other names: prompt=question completion=answer, or messages=body.messages for the value inside "
        "an object. Applied to every set that has these columns."
    )
    skip_bad_rows: bool = flag(
        "Leave out rows that cannot be used, instead of an error; the manifest lists them.", False
    )
    max_length: int | None = flag(
        "Longest row in tokens; longer rows are truncated at the end. Default: the smallest of the tokenizer's limit, "
        f"the model's positions and {LONGEST_ROW}."
    )
    tokenizer_name_or_path: str | None = flag(
        "Tokenizer and chat template. Default: those in the adapter's folder if it has any, otherwise the model's."
    )
    chat_template: str | None = flag("File with a Jinja chat template, instead of the tokenizer's.")
    max_mislabelled: float = flag(
        "Largest accepted share of rows whose labels are not the assistant's answers.", MISLABELLED_SHARE
    )
    show_labels: int = flag(
        "Print this many rows of the pool and of the targets as the model sees them, the labelled parts in ⟦ ⟧, and go on "
        "(with --dry_run, nothing is scored).",
        0,
    )
    output_dir: str | None = flag("Output folder.")

    @property
    def folder(self) -> Path:
        """The output folder.

        Raises:
            ValueError: if the flag is missing.
        """
        if self.output_dir is None:
            raise ValueError("`--output_dir` is missing: the output folder.")
        return Path(self.output_dir)

    @property
    def model_name(self) -> str:
        """The model's folder or Hub id.

        Raises:
            ValueError: if the flag is missing.
        """
        if self.model_name_or_path is None:
            raise ValueError("`--model_name_or_path` is missing.")
        return self.model_name_or_path

    @property
    def pool_source(self) -> RowSource:
        """File or Hub dataset of the pool."""
        return RowSource(
            self.train_file, self.dataset_name, self.dataset_split, self.dataset_config_name, self.dataset_revision
        )

    @property
    def target_source(self) -> RowSource:
        """File or Hub dataset of the targets."""
        return RowSource(
            self.target_file,
            self.target_dataset_name,
            self.target_dataset_split,
            self.target_dataset_config_name,
            self.target_dataset_revision,
        )

    def load_pool(self) -> RawRows:
        """The rows of the pool."""
        return self.read(self.pool_source, "train_file")

    def load_targets(self) -> RawRows:
        """The target rows."""
        return self.read(self.target_source, "target_file")

    def read(self, source: RowSource, argument: str) -> RawRows:
        """Read rows, and print what was done with their columns and how many were left out.

        Args:
            source (`RowSource`): where to read.
            argument (`str`): the flag of the files, for messages.
        """
        raw = read_rows(source, argument, self.columns, self.skip_bad_rows)
        for note in raw.notes:
            say_wrapped(note)
        say_skipped(raw.skipped, argument)
        return raw

    def provenance(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest's entries on pool and targets, with their names from the flags, and how they were read.

        Args:
            manifest (`dict`): of a selection from them.
        """
        return {
            "train_dataset": describe_source(self.pool_source, manifest["train_dataset"]),
            "target_dataset": describe_source(self.target_source, manifest["target_dataset"], "target_file"),
            **({"columns": self.columns} if self.columns else {}),
            "max_length": self.max_length,
            "dtype": self.dtype,
            "chat_template": public_name(self.chat_template),
            "tokenizer_name_or_path": public_name(self.tokenizer_name_or_path),
        }

    def load_model(self) -> PreTrainedModel:
        """The base model."""
        return load_base(self.model_name, self.model_revision, self.dtype, self.trust_remote_code)

    def with_adapter(self, base: PreTrainedModel, adapter: str, tokenizer: PreTrainedTokenizerBase) -> PeftModel:
        """The base model with a trained adapter.

        Args:
            base (`PreTrainedModel`): the base model.
            adapter (`str`): folder or Hub id.
            tokenizer (`PreTrainedTokenizerBase`): of the rows.

        Raises:
            ValueError: if the model lacks tokens of a tokenizer that is not its own.
        """
        model = load_adapter(base, adapter)
        if tokenizer_source(self.model_name, None, adapter, self.tokenizer_name_or_path)[0] != self.model_name:
            check_vocabulary(model, tokenizer)
        return model


def say_skipped(skipped: Sequence[dict[str, Any]], argument: str) -> None:
    """Print how many rows were left out, if there are any, and the first of them.

    Args:
        skipped (`Sequence[dict]`): place and reason of each.
        argument (`str`): the flag, without dashes.
    """
    if skipped:
        first = f"{skipped[0]['row']}: {skipped[0]['reason']}"
        say_wrapped(f"{argument}: {len(skipped):,} row(s) cannot be used and are skipped; the first is {first}")


@dataclass(frozen=True)
class Workspace:
    """The inputs of a command, read and tokenised.

    Args:
        arguments (`SourceArguments`): the flags that name the sources.
        preparer (`Preparer`): tokenises rows.
        pool (`Dataset`): candidates with `input_ids`, `labels` and their own columns.
        targets (`Dataset`): target rows likewise.
        raw_pool (`RawRows`): the candidates as they were read, with the place of each.
        raw_targets (`RawRows`): the target rows likewise.
    """

    arguments: SourceArguments
    preparer: Preparer
    pool: Dataset
    targets: Dataset
    raw_pool: RawRows
    raw_targets: RawRows

    @property
    def skipped_rows(self) -> list[dict[str, Any]]:
        """Place and reason of every row of pool and targets that was left out."""
        return [*self.raw_pool.skipped, *self.raw_targets.skipped]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""
        return self.preparer.tokenizer

    @property
    def max_length(self) -> int:
        """Longest row in tokens."""
        return self.preparer.max_length

    @property
    def collator(self) -> Collator:
        """Rows to a padded batch."""
        return padding_collator(self.tokenizer)

    def tokenized(self, rows: Dataset, argument: str) -> Dataset:
        """Further rows, tokenised like the pool.

        Args:
            rows (`Dataset`): raw rows.
            argument (`str`): the flag they come from, for messages.
        """
        return self.preparer.usable(rows, argument)

    def with_bad_rows(self, excluded: torch.Tensor | None) -> torch.Tensor | None:
        """Rows that must not be trained on `[N]` bool: those excluded already, and those that were left out.

        Args:
            excluded (`Tensor`, *optional*): `[N]` bool.
        """
        rows = self.preparer.left_out.get("train_file", [])
        if not rows:
            return excluded
        mask = torch.zeros(len(self.pool), dtype=torch.bool) if excluded is None else excluded.clone()
        mask[rows] = True
        return mask

    def dataset_pass(self, model: torch.nn.Module, config: GISTConfig) -> DatasetPass:
        """A pass without a progress bar, for forecasts."""
        tokens = config.scoring_tokens_per_batch
        return DatasetPass(model, self.collator, tokens, config.scoring_dtype, progress=False)


def open_targets(arguments: SourceArguments, base: PreTrainedModel, raw: RawRows) -> tuple[Dataset, Preparer]:
    """The tokenised targets, and what tokenises further rows.

    Args:
        arguments (`SourceArguments`): the flags.
        base (`PreTrainedModel`): the base model; its number of positions limits the rows.
        raw (`RawRows`): the target rows.

    Raises:
        ValueError: naming the flag that is missing or wrong.
    """
    preparer = new_preparer(arguments, base)
    targets = preparer.usable(raw.rows, "target_file", raw.where)
    preparer.show(targets, "target_file", arguments.show_labels)
    return targets, preparer


def open_workspace(arguments: SourceArguments, pool: RawRows, base: PreTrainedModel) -> Workspace:
    """Read the targets, and tokenise them and the pool; see [`open_targets`]."""
    raw = arguments.load_targets()
    check_columns(arguments, [pool, raw])
    warn_other_format(raw.rows, pool.rows, ("target_file", "train_file"))
    targets, preparer = open_targets(arguments, base, raw)
    tokenized = preparer.rows(pool.rows, "train_file", pool.where)
    preparer.show(tokenized, "train_file", arguments.show_labels)
    return Workspace(arguments, preparer, tokenized, targets, pool, raw)


def check_columns(arguments: SourceArguments, sets: Sequence[RawRows]) -> None:
    """Check that `--columns` was of use.

    Raises:
        ValueError: if no set has its columns.
    """
    if arguments.columns and not any(raw.renamed for raw in sets):
        given = " ".join(f"{name}={source}" for name, source in arguments.columns.items())
        found = "; ".join(f"{raw.argument} has {', '.join(raw.rows.column_names)}" for raw in sets)
        raise ValueError(f"`--columns {given}`: no set has these columns: {found}.")


def check_source(arguments: SourceArguments) -> None:
    """Check the flags before any file is read.

    Raises:
        ValueError: naming the flag.
    """
    # `folder` and `model_name` raise if their flag is missing
    _ = arguments.folder
    check_one_of(arguments.pool_source, "train_file")
    _ = arguments.model_name
    if arguments.max_length is not None and arguments.max_length < 1:
        raise ValueError(f"`--max_length {arguments.max_length}` must be at least 1.")
    # raises if there is no such file
    read_template(arguments.chat_template)
    check_one_of(arguments.target_source, "target_file")


def token_columns(sets: Sequence[Dataset]) -> Dataset | None:
    """Several tokenised sets as one."""
    return concatenate_datasets([rows.select_columns(["input_ids", "labels"]) for rows in sets]) if sets else None


def token_counts(rows: Dataset) -> np.ndarray:
    """Tokens of every tokenised row `[N]` int32.

    Raises:
        ValueError: if the rows have no `input_ids`.
    """
    lengths = row_lengths(rows)
    if lengths is None:
        raise ValueError("The rows are not tokenised: they have no `input_ids`.")
    return lengths
