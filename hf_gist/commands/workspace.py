"""What the commands work on: model, tokenizer, pool and targets, read and tokenised as the flags say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.clock import RunClock
from hf_gist.costs.ledger import PhaseCost
from hf_gist.costs.stopwatch import WARMUP
from hf_gist.data.formats import check_one_of, load_rows, tokenize
from hf_gist.data.leaks import excluded_rows, find_leaks
from hf_gist.data.provenance import RowSource, describe_source
from hf_gist.data.rows import Collator, content_digest, row_lengths
from hf_gist.gist.forecast import forecast_memory
from hf_gist.gist.inputs import prepare
from hf_gist.gist.scorers.less import AdamCheckpoint
from hf_gist.gradients.models import weights_digest
from hf_gist.gradients.passes import DatasetPass
from hf_gist.training.loading import fresh_lora, load_adapter, load_base, load_tokenizer, padding_collator, positions
from hf_gist.training.warmup import warm_up, warmup_rows
from hf_gist.utils.disk import as_json, read_json, write_json


LONGEST_ROW = 1024
USAGE = "--model_name_or_path MODEL --train_file POOL --target_file TARGETS --output_dir DIR"
WARMUP_ADAPTER, MADE_WITH = "warmup_adapter", "warmup.json"

logger = logging.get_logger(__name__)


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
    train_file: str | None = flag("Candidate pool: JSONL, JSON, Parquet or CSV.")
    dataset_name: str | None = flag("Candidate pool on the Hub, instead of a file.")
    dataset_split: str = flag("Its split.", "train")
    dataset_config_name: str | None = flag("Its configuration, if it has several.")
    dataset_revision: str | None = flag("Its branch, tag or commit.")
    target_file: str | None = flag("Target set: a few rows of what the model should become good at.")
    target_dataset_name: str | None = flag("Target set on the Hub, instead of a file.")
    target_dataset_split: str = flag("Its split.", "train")
    target_dataset_config_name: str | None = flag("Its configuration, if it has several.")
    target_dataset_revision: str | None = flag("Its branch, tag or commit.")
    max_length: int | None = flag(
        f"Longest row in tokens; longer ones are cut at the end. Default: the tokenizer's own limit, or {LONGEST_ROW}."
    )
    output_dir: str | None = flag("Folder for everything that is written.")

    @property
    def pool_source(self) -> RowSource:
        """Where the pool is."""
        return RowSource(
            self.train_file, self.dataset_name, self.dataset_split, self.dataset_config_name, self.dataset_revision
        )

    @property
    def target_source(self) -> RowSource:
        """Where the targets are."""
        return RowSource(
            self.target_file,
            self.target_dataset_name,
            self.target_dataset_split,
            self.target_dataset_config_name,
            self.target_dataset_revision,
        )

    def load_pool(self) -> Dataset:
        """The rows of the pool."""
        return load_rows(self.pool_source, "train_file")

    def provenance(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest's entries on pool and targets, with the names that the flags give them, and how they were read."""
        return {
            "train_dataset": describe_source(self.pool_source, manifest["train_dataset"]),
            "target_dataset": describe_source(self.target_source, manifest["target_dataset"]),
            "max_length": self.max_length,
            "dtype": self.dtype,
        }

    def load_model(self) -> torch.nn.Module:
        """The base model."""
        return load_base(self.model_name_or_path, self.model_revision, self.dtype, self.trust_remote_code)


@dataclass(frozen=True)
class Workspace:
    """Everything read and tokenised.

    Args:
        arguments (`SourceArguments`): where it came from.
        tokenizer (`PreTrainedTokenizerBase`): of the model.
        max_length (`int`): longest row in tokens.
        pool (`Dataset`): candidates with `input_ids`, `labels` and their own columns.
        targets (`Dataset`): target rows likewise.
    """

    arguments: SourceArguments
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    pool: Dataset
    targets: Dataset

    @property
    def collator(self) -> Collator:
        """Rows to a padded batch."""
        return padding_collator(self.tokenizer)

    def tokenized(self, rows: Dataset, argument: str) -> Dataset:
        """More rows, tokenised as the pool is."""
        return tokenize(rows, self.tokenizer, self.max_length, argument)


def open_targets(arguments: SourceArguments, base: torch.nn.Module) -> tuple[Dataset, PreTrainedTokenizerBase, int]:
    """The tokenised targets, the tokenizer, and the longest row in tokens.

    Args:
        arguments (`SourceArguments`): the flags.
        base (`nn.Module`): the base model, which knows its number of positions.

    Raises:
        ValueError: naming the flag that is missing or wrong.
    """
    targets = load_rows(arguments.target_source, "target_file")
    tokenizer, limit = load_tokenizer(
        arguments.model_name_or_path, arguments.model_revision, arguments.trust_remote_code
    )
    max_length = arguments.max_length or min(limit, positions(base), LONGEST_ROW)
    return tokenize(targets, tokenizer, max_length, "target_file"), tokenizer, max_length


def open_workspace(arguments: SourceArguments, rows: Dataset, base: torch.nn.Module) -> Workspace:
    """Read the targets, and tokenise them and the pool; see [`open_targets`]."""
    targets, tokenizer, max_length = open_targets(arguments, base)
    pool = tokenize(rows, tokenizer, max_length, "train_file")
    return Workspace(arguments, tokenizer, max_length, pool, targets)


def check_source(arguments: SourceArguments) -> None:
    """What can be known to be wrong before anything is read.

    Raises:
        ValueError: naming the flag.
    """
    if arguments.output_dir is None:
        raise ValueError("`--output_dir` is missing: it receives everything that is written.")
    check_one_of(arguments.train_file, arguments.dataset_name, "train_file")
    if arguments.model_name_or_path is None:
        raise ValueError("`--model_name_or_path` is missing.")
    if arguments.max_length is not None and arguments.max_length < 1:
        raise ValueError(f"`--max_length {arguments.max_length}` must be at least 1.")
    check_one_of(arguments.target_file, arguments.target_dataset_name, "target_file")


@dataclass(frozen=True)
class Warmed:
    """A model after its warm-up.

    Args:
        model (`PeftModel`): the model.
        checkpoints (`list[AdamCheckpoint]`): what `scorer="less"` needs.
        cost (`PhaseCost`): what the warm-up took when it was made.
    """

    model: PeftModel
    checkpoints: list[AdamCheckpoint]
    cost: PhaseCost


def warmed_model(
    workspace: Workspace,
    base: torch.nn.Module,
    settings: WarmupSettings,
    config: GISTConfig,
    evaluation: Dataset | None = None,
) -> Warmed:
    """A fresh LoRA on the base model after its own warm-up, which is kept in the output folder and used again.

    Args:
        workspace (`Workspace`): pool and targets.
        base (`nn.Module`): the base model.
        settings (`WarmupSettings`): of the warm-up.
        config (`GISTConfig`): of the selection that follows.
        evaluation (`Dataset`, *optional*): rows that are not to be trained on, as the targets are not.
    """
    model = fresh_lora(base, settings, config.seed)
    # what is wrong should show before the warm-up
    inputs = prepare(model, workspace.pool, workspace.targets, config, workspace.collator)
    size, tokens = len(workspace.pool), config.scoring_tokens_per_batch
    dataset_pass = DatasetPass(model, workspace.collator, tokens, config.scoring_dtype, progress=False)
    forecast_memory(dataset_pass, size, len(workspace.targets), config)
    leaks = find_leaks(inputs.pool, inputs.targets, evaluation, workspace.tokenizer, quiet=True)
    excluded = excluded_rows(leaks, size, config)
    folder = Path(workspace.arguments.output_dir) / WARMUP_ADAPTER
    made_with = _warmup_key(workspace, base, settings, config, excluded)
    path, clock, rows = folder / MADE_WITH, RunClock(), warmup_rows(config, settings, size, excluded)
    lengths = row_lengths(workspace.pool)
    # LESS needs the optimizer of the warm-up too, which is not kept
    if config.scorer != "less" and path.exists() and read_json(path) == made_with:
        logger.warning(f"The warm-up of an earlier run is used: {folder}")
        clock.restore(folder)
        cost = clock.cost(WARMUP, model, lengths, rows)
        return Warmed(load_adapter(model.unload(), str(folder)), [], cost)
    path.unlink(missing_ok=True)
    checkpoints = warm_up(model, workspace.pool, workspace.tokenizer, config, settings, folder, rows)
    clock.record(WARMUP)
    clock.save(folder)
    write_json(path, made_with)
    return Warmed(model, checkpoints, clock.cost(WARMUP, model, lengths, rows))


def _warmup_key(
    workspace: Workspace,
    base: torch.nn.Module,
    settings: WarmupSettings,
    config: GISTConfig,
    excluded: torch.Tensor | None,
) -> dict[str, Any]:
    """All that a warm-up depends on."""
    steps = {"warmup_ratio": config.warmup_ratio, "warmup_steps": config.warmup_steps, "seed": config.seed}
    steps["barred"] = [] if excluded is None else excluded.nonzero().flatten().tolist()
    data = workspace.pool.select_columns(["input_ids", "labels"])
    # of the weights around the fresh adapter, whose names carry peft's prefixes
    return as_json(asdict(settings) | steps | {"pool": content_digest(data), "base": weights_digest(base, False)})


def token_columns(sets: Sequence[Dataset]) -> Dataset | None:
    """Several tokenised sets as one."""
    return concatenate_datasets([rows.select_columns(["input_ids", "labels"]) for rows in sets]) if sets else None
