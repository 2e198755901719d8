"""The flags that only `hf-gist compare` has, and the settings that two runs into one folder must have in common."""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gist.commands.compare.arms import ARMS, IN_DOMAIN, PLANNED, UNTRAINED
from hf_gist.commands.testing.loading import metric_file
from hf_gist.commands.workspace import SourceArguments, check_source, flag
from hf_gist.config.gist import GISTConfig
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.provenance import describe_source, digest, digests_of
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.selection.budget import rows_in_budget
from hf_gist.gist.checks import warn_selects_once
from hf_gist.gist.inputs import read_columns
from hf_gist.utils.disk import as_json


SET_BY_METHODS = ("scorer", "score", "strategy", "sample_from_top")
"""Settings of [`GISTConfig`] that define a method, so that they cannot be shared by all."""


@dataclass(frozen=True)
class CompareArguments(SourceArguments):
    """Data, methods and training length of `hf-gist compare`."""

    test_file: list[str] | None = flag(
        "Held-out rows: FILE, or NAME=FILE for several. Their loss is measured; rows with `choices` (texts) and `answer` "
        "(number of the right one, from 0) are also answered by log-likelihood."
    )
    metric: dict[str, str] | None = flag(
        "Test sets whose answers are generated: the NAME of a test file, and the folder of an `evaluate` module (in a "
        "checkout, also a name in recipes/metrics). Its first value counts, and higher is better."
    )
    max_new_tokens: int = flag("Longest generated answer, in tokens.", 256)
    methods: list[str] | None = flag(
        f"Any of: {', '.join(ARMS)}. Default: all except `less` (and `{IN_DOMAIN}` without "
        f"--oracle_source, `{PLANNED}` without --scoring_cost). `untrained` is always there."
    )
    seeds: list[int] | None = flag("Seeds of LoRA, order and random rows. Default: 0 1 2.")
    oracle_source: list[str] | None = flag("Value(s) of --source_column that in_domain_random draws from.")
    num_train_epochs: float = flag("Passes over each method's rows.", 3.0)
    max_steps: int = flag("Optimizer steps instead of passes, the same for all methods.", -1)
    whole_pool_epochs: float = flag("Passes over the pool for the method whole_pool.", 1.0)
    target_column: str | None = flag("Column of the targets: with --target_value, only those rows are the target set.")
    target_value: str | None = flag(
        "Value in --target_column. All target rows are scored once, so several target sets can share the scores."
    )
    scores_dir: str | None = flag("Folder where scores are saved and reused. Default: `scores` in the output folder.")

    @property
    def test_files(self) -> dict[str, str]:
        """The files of `--test_file` by name; the name of a file without one is its stem."""
        pairs = [text.rpartition("=") for text in self.test_file or []]
        return {name or Path(file).stem: file for name, _, file in pairs}

    @property
    def target(self) -> tuple[str, str] | None:
        """Column and value of the target rows to keep; `None` for all target rows."""
        if self.target_column is None or self.target_value is None:
            return None
        return self.target_column, self.target_value


def check_comparison(arguments: CompareArguments) -> None:
    """Check the flags before any file is read.

    Raises:
        ValueError: naming the flag that is missing or wrong.
    """
    check_source(arguments)
    if not arguments.test_file:
        raise ValueError("`--test_file` is missing: held-out rows to measure the loss on.")
    if len(arguments.test_files) < len(arguments.test_file):
        given = " ".join(arguments.test_file)
        raise ValueError(f"`--test_file {given}`: two test sets have the same name; give each one with NAME=FILE.")
    for file in arguments.test_files.values():
        if not Path(file).is_file():
            raise ValueError(f"`--test_file {file}`: no such file.")
    check_metrics(arguments)
    if (arguments.target_column is None) != (arguments.target_value is None):
        raise ValueError("`--target_column` and `--target_value` must be given together.")


def check_metrics(arguments: CompareArguments) -> None:
    """Check the test sets and metrics of `--metric`.

    Raises:
        ValueError: naming the flag that is wrong.
    """
    if arguments.max_new_tokens < 1:
        raise ValueError(f"`--max_new_tokens {arguments.max_new_tokens}` must be at least 1.")
    for name, metric in (arguments.metric or {}).items():
        if name not in arguments.test_files:
            known = ", ".join(arguments.test_files)
            raise ValueError(f"`--metric {name}={metric}`: no test set is called {name!r}. The test sets are {known}.")
        metric_file(metric, f"--metric {name}={metric}")


def shared_settings(config: GISTConfig) -> GISTConfig:
    """The configuration without what each method sets itself, and without selecting again.

    Warns:
        NoEffectWarning: naming such a setting that was given.
    """
    warn_selects_once(config, "`hf-gist compare`")
    defaults = GISTConfig()
    own = {name: getattr(defaults, name) for name in SET_BY_METHODS}
    given = [f"--{name} {getattr(config, name)}" for name, default in own.items() if getattr(config, name) != default]
    if given:
        warnings.warn(
            f"{', '.join(f'`{one}`' for one in given)}: no effect in `hf-gist compare`, where each method has its own; choose "
            "by `--methods`.",
            NoEffectWarning,
            stacklevel=2,
        )
    return dataclasses.replace(config, reselect_every=None, reselect_share=1.0, **own)


def check_rows(arguments: CompareArguments, config: GISTConfig, pool: Any, targets: Any) -> None:
    """Check that the settings fit the rows, before anything is written.

    Args:
        arguments (`CompareArguments`): sources of the oracle.
        config (`GISTConfig`): settings that the methods share.
        pool: tokenised rows, with their sources.
        targets: tokenised rows, with their groups.

    Raises:
        ValueError: naming the setting, and the sources or groups that there are.
    """
    rows_in_budget(config.budget, config.budget_unit, len(pool))
    sources, _ = read_columns(pool, targets, config)
    known = sorted(set(sources or ()))
    unknown = [name for name in arguments.oracle_source or () if sources is not None and name not in known]
    if unknown:
        raise ValueError(
            f"`--oracle_source {' '.join(unknown)}`: no row of the pool has this value in {config.source_column!r}. "
            f"Values: {', '.join(known)}."
        )


def chosen_methods(arguments: CompareArguments, config: GISTConfig) -> list[str]:
    """The methods to compare, the untrained model first.

    Raises:
        ValueError: for a method that does not exist or lacks its input.
    """
    oracle = arguments.oracle_source is not None
    priced = config.scoring_cost is not None
    unasked = {"less", *(() if oracle else (IN_DOMAIN,)), *(() if priced else (PLANNED,))}
    methods = arguments.methods or [m for m in ARMS if m not in unasked]
    unknown = [m for m in methods if m not in ARMS]
    if unknown:
        raise ValueError(f"`--methods {' '.join(unknown)}`: no such method. The methods are {', '.join(ARMS)}.")
    if IN_DOMAIN in methods and (not oracle or config.source_column is None):
        raise ValueError(f"`--methods {IN_DOMAIN}` needs `--source_column` and `--oracle_source`.")
    if priced != (PLANNED in methods):
        raise ValueError(
            f"`--scoring_cost` and the method `{PLANNED}` belong together: it scores as many rows as that pays for, and "
            "the other methods score all rows. Give both or neither."
        )
    return list(dict.fromkeys([UNTRAINED, *methods]))


def comparison_settings(arguments: CompareArguments, warmup: WarmupSettings, config: GISTConfig) -> dict[str, Any]:
    """The settings that two runs into one folder must have in common; methods and seeds may be added later."""
    free = {"output_dir", "methods", "seeds", "scores_dir", "show_labels"}
    values = {k: v for k, v in dataclasses.asdict(arguments).items() if k not in free}
    sources = {"train_file": arguments.pool_source, "target_file": arguments.target_source}
    files: dict[str, Any] = {name: digests_of(describe_source(source, {}, name)) for name, source in sources.items()}
    files["chat_template"] = digest(arguments.chat_template)
    tests = {name: digest(file) for name, file in arguments.test_files.items()}
    metrics = {
        name: digest(str(metric_file(m, f"--metric {name}={m}"))) for name, m in (arguments.metric or {}).items()
    }
    digests = {"sha256": files, "sha256 of the test files": tests, "sha256 of the metrics": metrics}
    return as_json(values | dataclasses.asdict(warmup) | config.to_dict() | digests)


def scoring_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of [`comparison_settings`] that change the scores: neither the budget nor the training of an arm.

    Args:
        settings (`dict`): all settings of a comparison.
    """
    names = {f.name for f in dataclasses.fields(SourceArguments)} - {"output_dir"}
    names |= {f.name for f in dataclasses.fields(WarmupSettings)} | {"sha256", "seed", "source_column"}
    names |= {"warmup_ratio", "warmup_steps", "score_layers", "sketch_dim", "scoring_dtype"}
    return {name: value for name, value in settings.items() if name in names}
