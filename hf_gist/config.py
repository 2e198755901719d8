"""Configurations: frozen dataclasses whose range checks are reported together, with a JSON and YAML round trip."""

import dataclasses
import json
import math
import os
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml


UNSCORED = ("random", "length_matched_random")
"""Strategies that look at no score."""

EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
Config = TypeVar("Config", bound="BaseConfig")


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


def fraction_or_count(text: str) -> int | float:
    """`"0.05"` and `"5e-2"` as a fraction, `"500"` as a count: the dot decides, as in `TrainingArguments`."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_yaml(text: str) -> Any:
    """YAML as people write it: `2e-4` is a number, although YAML 1.1 wants `2.0e-4`."""
    values = yaml.safe_load(text)
    if not isinstance(values, dict):
        return values
    return {name: float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for name, v in values.items()}


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML or JSON fits a field's type; an int is a float, a bool is neither."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        return any(matches_type(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(matches_type(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe_type(hint: Any) -> str:
    """A field's type in words a user can act on."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(describe_type(option) for option in get_args(hint))
    if get_origin(hint) is list:
        return f"a list, each item {describe_type(get_args(hint)[0])}"
    return "null" if hint is type(None) else hint.__name__


def fits_fraction_or_count(amount: int | float) -> bool:
    """Whether a float is a fraction in (0, 1], or an int at least 1."""
    return math.isfinite(amount) and (0 < amount <= 1 if isinstance(amount, float) else amount >= 1)


class BaseConfig:
    """What the configurations share: type checks, range checks and files. Subclasses are frozen dataclasses."""

    FILE: ClassVar[str]
    """Name of the file in a folder or a Hub repository."""

    def __post_init__(self) -> None:
        problems = []
        hints = get_type_hints(type(self))
        for name in (f.name for f in dataclasses.fields(self)):
            hint, value = hints[name], getattr(self, name)
            if not matches_type(value, hint):
                problems.append(f"`{name}` must be {describe_type(hint)}, got {value!r}")
        problems = problems or [
            f"`{name}` must be {rule}, got {getattr(self, name)!r}" for name, holds, rule in self.rules() if not holds
        ]
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems) + ".")

    def rules(self) -> list[tuple[str, bool, str]]:
        """The range of each field: its name, whether the value is inside, and the range in words.

        Called once the types are known to fit.
        """
        raise NotImplementedError

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Build from a mapping.

        Raises:
            ValueError: for an unknown key, a wrong type or a value out of range, each by name.
        """
        if not isinstance(values, dict):
            raise ValueError(
                f"{cls.__name__}: expected a mapping of field names to values, got {type(values).__name__}."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(str(key) for key in values if key not in known)
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown key(s) {', '.join(unknown)}. Known keys: {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The fields as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """Build from JSON text."""
        return cls.from_dict(json.loads(text))

    def to_yaml(self) -> str:
        """The fields as YAML text, in the order of the class."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls: type[Config], text: str) -> Config:
        """Build from YAML text."""
        return cls.from_dict(parse_yaml(text) or {})

    @classmethod
    def from_pretrained(
        cls: type[Config],
        name_or_folder: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        repo_type: str = "model",
    ) -> Config:
        """Read the configuration of a run from its folder, or from the repository it was pushed to.

        Args:
            name_or_folder (`str` or `PathLike`): a local folder, or `user/model` on the Hub.
            revision (`str`, *optional*): branch, tag or commit.
            token (`str` or `bool`, *optional*): by default that of `hf auth login`.
            cache_dir (`str` or `PathLike`, *optional*): where downloads are kept.
            local_files_only (`bool`, defaults to `False`): look in the cache only.
            repo_type (`str`, defaults to `"model"`): `"dataset"` for a pushed selection.

        Raises:
            ValueError: naming what does not exist, or what in the file does not fit.
        """
        from hf_gist.hub import load_config

        options = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return load_config(cls, name_or_folder, repo_type, revision=revision, **options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the configuration into a folder, for [`from_pretrained`] to read."""
        from hf_gist.hub import save_config

        save_config(self, folder)


@dataclass(frozen=True, kw_only=True)
class GISTConfig(BaseConfig):
    """What GIST selects and how.

    Args:
        budget (`int` or `float`, defaults to 0.05): how much of the pool to keep: a float is a fraction, an int is a
            count. The unit is `budget_unit`.
        budget_unit (`str`, defaults to `"rows"`): `"rows"`, or `"tokens"` for labelled tokens.
        warmup_ratio (`float`, defaults to 0.05): share of the pool to train on before selecting (paper: 5 %, one
            epoch), rounded up to whole optimizer steps.
        warmup_steps (`int`, *optional*): length of the warm-up in optimizer steps; overrides `warmup_ratio`.
        rank (`int`, *optional*): fixed rank `k` of the subspace. By default the smallest `k` that explains
            `explained_variance`.
        explained_variance (`float`, defaults to 0.95): share of the target gradients' squared spectrum to keep.
        scorer (`str`, defaults to `"gist"`): what stands for a row: its LoRA gradient (`"gist"`), or one of two
            baselines compared by plain cosine: `"rds_plus"`, the position-weighted mean of its last hidden states
            (forward only), and `"less"`, its Adam-preconditioned gradient, randomly projected to 8192 values.
        score (`str`, defaults to `"subspace_cosine"`): with `scorer="gist"`, the cosine inside the subspace (the
            paper's; in a subspace of one direction, where it is 1 or -1, the plain cosine takes its place), `"cosine"`
            for the plain cosine of the full gradients, or `"grad_norm"` for the norm alone.
        strategy (`str`, defaults to `"max"`): how the scores against the target groups become a choice: the `"max"`
            over groups (the paper's), their `"mean"`, or `"round_robin"`, each group picking its best row in turn.
            Two baselines look at no score: `"random"` rows, and `"length_matched_random"` rows, random with the
            answer lengths of the target set.
        sample_from_top (`float`, defaults to 1.0): draw the selection at random from the best `sample_from_top` times the
            budget. 1 keeps the best rows, as the papers do; 3 keeps their variety, which pays where answers are short:
            the rows closest to a target tend to have its very answer.
        score_layers (`int`, *optional*): score by the adapters of the last blocks only, so that the backward pass ends
            there. Cheaper and not exact; `recipes/README.md` has the measured agreement.
        sketch_dim (`int`, *optional*): project each gradient to this many values at random before everything else (LESS:
            8192), so that the basis takes next to no memory. Not exact; `recipes/README.md` has the measured agreement.
        prefilter (`float`, *optional*): share of the pool, best first by `"rds_plus"`, that is scored by gradients;
            the other rows cannot be selected. Cheaper and not exact.
        target_group_column (`str`, *optional*): column of the target set that names each row's group (sub-task). The
            target gradients of a group are averaged. By default every target row is its own group.
        source_column (`str`, *optional*): column of the candidate pool to report shares by.
        scoring_tokens_per_batch (`int`, defaults to 4096): padded tokens in one scoring batch.
        scoring_dtype (`str`, defaults to `"auto"`): `"float32"` or `"bfloat16"` compute for scoring; `"auto"` is
            bfloat16 inside a trainer with `bf16=True`, and the model's own dtype otherwise.
        after_selection (`str`, defaults to `"continue"`): go on with the warmed-up adapter, or `"restart"` from the
            initial adapter with a fresh optimizer and schedule (the paper's).
        drop_target_duplicates (`bool`, defaults to `True`): never select a row that is in the target or evaluation set
            too, token for token or in the same words. Such rows are reported either way.
        save_every (`int`, *optional*): scored batches between two saves, from which an interrupted scoring goes on. By
            default about a minute.
        seed (`int`, defaults to 42): seed of the warm-up sample and of the order of each pass.

    Raises:
        ValueError: naming every field that has a wrong type or is out of range.
    """

    FILE: ClassVar[str] = "gist_config.json"

    budget: int | float = _help("How much of the pool to keep: 0.05 is a fraction, 500 is a count.", 0.05)
    budget_unit: Literal["rows", "tokens"] = _help("Unit of the budget: rows, or labelled tokens.", "rows")
    warmup_ratio: float = _help("Share of the pool to train on before selecting.", 0.05)
    warmup_steps: int | None = _help("Warm-up length in optimizer steps; overrides the ratio.", None)
    rank: int | None = _help("Fixed rank of the subspace instead of the explained-variance rule.", None)
    explained_variance: float = _help("Share of the target gradients' squared spectrum to keep.", 0.95)
    scorer: Literal["gist", "rds_plus", "less"] = _help("What stands for a row: its gradient, or a baseline.", "gist")
    score: Literal["subspace_cosine", "cosine", "grad_norm"] = _help(
        "Cosine in the subspace, plain cosine, or the gradient norm (a baseline).", "subspace_cosine"
    )
    strategy: Literal["max", "mean", "round_robin", "random", "length_matched_random"] = _help(
        "How scores per target group become a choice; the random ones are baselines.", "max"
    )
    sample_from_top: float = _help(
        "Draw at random from this many times the budget, best first; 1 keeps the best.", 1.0
    )
    score_layers: int | None = _help("Score by the adapters of the last blocks only; cheaper, not exact.", None)
    sketch_dim: int | None = _help("Project each gradient to this many values at random; not exact.", None)
    prefilter: float | None = _help("Share of the pool, best by rds_plus, to score by gradients.", None)
    target_group_column: str | None = _help("Column of the target set naming each row's group.", None)
    source_column: str | None = _help("Column of the pool to report shares by.", None)
    scoring_tokens_per_batch: int = _help("Padded tokens in one scoring batch.", 4096)
    scoring_dtype: Literal["auto", "float32", "bfloat16"] = _help("Compute dtype of scoring.", "auto")
    after_selection: Literal["continue", "restart"] = _help("Keep the warmed-up adapter or start afresh.", "continue")
    drop_target_duplicates: bool = _help("Never select rows that are in the target or evaluation set too.", True)
    save_every: int | None = _help("Scored batches between two saves; by default about a minute.", None)
    seed: int = _help("Seed of the warm-up sample and of the order of each pass.", 42)

    def rules(self) -> list[tuple[str, bool, str]]:
        """See [`BaseConfig`]."""
        amount = f"a fraction in (0, 1] or a count of at least 1 {self.budget_unit}"
        return [
            ("budget", fits_fraction_or_count(self.budget), amount),
            ("warmup_ratio", 0 < self.warmup_ratio < 1, "between 0 and 1, both excluded"),
            ("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 1, "at least 1"),
            ("rank", self.rank is None or self.rank >= 1, "at least 1"),
            ("explained_variance", 0 < self.explained_variance <= 1, "in (0, 1]"),
            (
                "score",
                self.score == "subspace_cosine" or self.scorer == "gist",
                f"left at its default with `scorer={self.scorer!r}`, which is compared by plain cosine",
            ),
            (
                "strategy",
                self.score != "grad_norm" or self.strategy not in ("mean", "round_robin"),
                "'max' with `score='grad_norm'`, which knows no groups",
            ),
            (
                "sample_from_top",
                math.isfinite(self.sample_from_top) and self.sample_from_top >= 1,
                "1 or more",
            ),
            ("score_layers", self.score_layers is None or self.score_layers >= 1, "at least 1"),
            ("sketch_dim", self.sketch_dim is None or self.sketch_dim >= 1, "at least 1"),
            (
                "sketch_dim",
                self.sketch_dim is None or self.scorer == "gist",
                f"left out with `scorer={self.scorer!r}`, which has a projection of its own or no gradient",
            ),
            ("prefilter", self.prefilter is None or 0 < self.prefilter < 1, "between 0 and 1, both excluded"),
            (
                "prefilter",
                self.prefilter is None or self.scorer != "rds_plus",
                "left out with `scorer='rds_plus'`, which is the prefilter",
            ),
            (
                "prefilter",
                self.prefilter is None
                or self.budget_unit != "rows"
                or not isinstance(self.budget, float)
                or self.prefilter >= self.budget * self.sample_from_top,
                "at least `budget` times `sample_from_top`, or it leaves too few rows to choose from",
            ),
            ("scoring_tokens_per_batch", self.scoring_tokens_per_batch >= 1, "at least 1"),
            ("save_every", self.save_every is None or self.save_every >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ]


@dataclass(frozen=True, kw_only=True)
class GASTConfig(BaseConfig):
    """Which samples of a batch may update which layer, and by what.

    Args:
        keep (`int` or `float`, defaults to 0.5): samples `K` of a per-device batch that may update a layer: a float is
            a fraction of the batch, an int is a count (paper: 8 of 16).
        mode (`str`, defaults to `"stochastic"`): `"stochastic"` draws `K` samples without replacement from the softmax
            of the standardised alignments (the paper's); `"random"` draws uniformly (in the paper already most of the
            gain); `"topk"` takes the best aligned, which in the paper is far worse than no mask at all; `"all"`
            leaves the stock `Trainer` untouched, bit for bit.
        temperature (`float`, defaults to 1.0): divides the standardised alignments before the softmax; large values
            approach `"random"`, small ones `"topk"`.
        support (`str`, defaults to `"dataset"`): where the support gradient comes from: a small batch of the support
            set (the paper's), or `"momentum"`, the optimizer's first moment, which costs no extra pass (not in the
            paper). Until the optimizer has a first moment the draw is uniform.
        support_batch_size (`int`, defaults to 4): support samples per process in one support gradient.
        support_every (`int`, defaults to 1): optimizer steps for which a support gradient of the support set is used.
            One support gradient serves all batches of an accumulated step.
        group_by (`str`, defaults to `"block"`): matrices that share a mask: those of a transformer `"block"` (the
            paper's), or those of one adapted `"module"`.
        outside_blocks (`str`, defaults to `"unmasked"`): trainable matrices outside the repeated blocks (embeddings,
            heads, `modules_to_save`): `"unmasked"` trains them on the whole batch, `"masked"` makes them a group.
        rescale (`bool`, defaults to `True`): multiply the kept gradients by `B / K`, so that the step keeps the size
            of a mean over the batch.
        start_step (`int`, defaults to 0): first optimizer step that is masked.
        source_column (`str`, *optional*): column of the training set to report the selection by. By default the
            report is by number of labelled tokens.
        seed (`int`, defaults to 42): seed of the draws and of the order of the support set.

    Raises:
        ValueError: naming every field that has a wrong type or is out of range.
    """

    FILE: ClassVar[str] = "gast_config.json"

    keep: int | float = _help("Samples of a batch that may update a layer: 0.5 is a fraction, 8 is a count.", 0.5)
    mode: Literal["stochastic", "random", "topk", "all"] = _help(
        "How the kept samples are chosen from the alignments; `all` is the stock Trainer.", "stochastic"
    )
    temperature: float = _help("Divides the standardised alignments before the softmax.", 1.0)
    support: Literal["dataset", "momentum"] = _help(
        "Support gradient from a batch of the support set, or the optimizer's first moment.", "dataset"
    )
    support_batch_size: int = _help("Support samples per process in one support gradient.", 4)
    support_every: int = _help("Optimizer steps for which a support gradient is used.", 1)
    group_by: Literal["block", "module"] = _help("Matrices that share a mask.", "block")
    outside_blocks: Literal["unmasked", "masked"] = _help(
        "Trainable matrices outside the repeated blocks: whole batch, or a group of their own.", "unmasked"
    )
    rescale: bool = _help("Multiply the kept gradients by batch size over kept samples.", True)
    start_step: int = _help("First optimizer step that is masked.", 0)
    source_column: str | None = _help("Column of the training set to report the selection by.", None)
    seed: int = _help("Seed of the draws and of the order of the support set.", 42)

    def rules(self) -> list[tuple[str, bool, str]]:
        """See [`BaseConfig`]."""
        return [
            ("keep", fits_fraction_or_count(self.keep), "a fraction in (0, 1] or a count of at least 1"),
            ("temperature", math.isfinite(self.temperature) and self.temperature > 0, "finite and above 0"),
            ("support_batch_size", self.support_batch_size >= 1, "at least 1"),
            ("support_every", self.support_every >= 1, "at least 1"),
            ("start_step", self.start_step >= 0, "0 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
