"""`GISTConfig`: what GIST selects and how."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_gist.config.base import BaseConfig, fits_fraction_or_count, setting


UNSCORED = ("random", "length_matched_random")
"""Strategies that look at no score."""


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

    budget: int | float = setting("How much of the pool to keep: 0.05 is a fraction, 500 is a count.", 0.05)
    budget_unit: Literal["rows", "tokens"] = setting("Unit of the budget: rows, or labelled tokens.", "rows")
    warmup_ratio: float = setting("Share of the pool to train on before selecting.", 0.05)
    warmup_steps: int | None = setting("Warm-up length in optimizer steps; overrides the ratio.", None)
    rank: int | None = setting("Fixed rank of the subspace instead of the explained-variance rule.", None)
    explained_variance: float = setting("Share of the target gradients' squared spectrum to keep.", 0.95)
    scorer: Literal["gist", "rds_plus", "less"] = setting(
        "What stands for a row: its gradient, or a baseline.", "gist"
    )
    score: Literal["subspace_cosine", "cosine", "grad_norm"] = setting(
        "Cosine in the subspace, plain cosine, or the gradient norm (a baseline).", "subspace_cosine"
    )
    strategy: Literal["max", "mean", "round_robin", "random", "length_matched_random"] = setting(
        "How scores per target group become a choice; the random ones are baselines.", "max"
    )
    sample_from_top: float = setting(
        "Draw at random from this many times the budget, best first; 1 keeps the best.", 1.0
    )
    score_layers: int | None = setting("Score by the adapters of the last blocks only; cheaper, not exact.", None)
    sketch_dim: int | None = setting("Project each gradient to this many values at random; not exact.", None)
    prefilter: float | None = setting("Share of the pool, best by rds_plus, to score by gradients.", None)
    target_group_column: str | None = setting("Column of the target set naming each row's group.", None)
    source_column: str | None = setting("Column of the pool to report shares by.", None)
    scoring_tokens_per_batch: int = setting("Padded tokens in one scoring batch.", 4096)
    scoring_dtype: Literal["auto", "float32", "bfloat16"] = setting("Compute dtype of scoring.", "auto")
    after_selection: Literal["continue", "restart"] = setting(
        "Keep the warmed-up adapter or start afresh.", "continue"
    )
    drop_target_duplicates: bool = setting("Never select rows that are in the target or evaluation set too.", True)
    save_every: int | None = setting("Scored batches between two saves; by default about a minute.", None)
    seed: int = setting("Seed of the warm-up sample and of the order of each pass.", 42)

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
