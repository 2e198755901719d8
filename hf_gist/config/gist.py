"""`GISTConfig`: what GIST selects and how."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_gist.config.base import BaseConfig, Rule, fits_fraction_or_count


UNSCORED = ("random", "length_matched_random")
"""Strategies that do not use scores."""


@dataclass(frozen=True, kw_only=True)
class GISTConfig(BaseConfig):
    """What GIST selects and how.

    Args:
        budget (`int` or `float`, defaults to `0.05`): how much of the pool to keep: 0.05 is a fraction, 500 is a
            number of rows. `budget_unit="tokens"` counts labelled tokens instead of rows.
        budget_unit (`str`, defaults to `"rows"`): unit of the budget: `"rows"`, or `"tokens"` for labelled tokens.
            Use `"tokens"` if the selection is mostly short answers.
        warmup_ratio (`float`, defaults to `0.05`): share of the pool to train on before selecting (paper: 5 %, one
            epoch). Rounded up to whole optimizer steps. The warm-up is part of the cost of a selection.
        warmup_steps (`int`, *optional*): length of the warm-up in optimizer steps; overrides `warmup_ratio`.
            Set it for the same warm-up on pools of different sizes.
        rank (`int`, *optional*): fixed rank of the subspace; by default the smallest rank that reaches
            `explained_variance`. Set it to compare selections of the same rank.
        explained_variance (`float`, defaults to `0.95`): share of the target gradients' squared spectrum that the
            subspace captures. A lower value leaves out weak directions of the targets; 1.0 keeps all of them.
        scorer (`str`, defaults to `"gist"`): row representation: the LoRA gradient (`"gist"`), or a baseline,
            `"rds_plus"` or `"less"`. `"rds_plus"` is the position-weighted mean of the last hidden states (forward
            pass only), `"less"` the Adam-preconditioned gradient, randomly projected to 8,192 values; both are
            compared by the plain cosine. `"rds_plus"` costs about half of `"gist"`.
        score (`str`, defaults to `"subspace_cosine"`): how a row is compared with the targets: cosine in the subspace
            (the paper's score), plain `"cosine"`, or `"grad_norm"` (a baseline without targets). `"cosine"` also
            penalises the part of a gradient outside the subspace; it replaces the subspace cosine if the subspace has
            rank 1, where the subspace cosine is always 1 or -1. Scorers other than `"gist"` use the plain cosine.
        strategy (`str`, defaults to `"max"`): how rows are ranked by their scores for each target group: the `"max"`
            over the groups (the paper's method), their `"mean"`, `"round_robin"`, or one of two baselines without
            scores, `"random"` and `"length_matched_random"`. `"round_robin"` lets each group pick a row in turn, so
            that small budgets cover all groups; `"length_matched_random"` draws rows at random whose answer lengths
            are distributed like those of the targets.
        sample_from_top (`float`, defaults to `1.0`): draw the selection at random from the best rows, this many times
            the budget; 1 keeps the best rows, as in the paper. `3.0` gives a more varied selection: the rows closest
            to a short-answer target tend to have exactly its answer.
        score_layers (`int`, *optional*): score by the adapters of the last blocks only, so that the backward pass
            stops there: cheaper, not exact. `recipes/README.md` has the measured agreement.
        sketch_dim (`int`, *optional*): project each gradient randomly to this many values: far less memory for the
            basis, not exact. `8192` is the value of LESS; `recipes/README.md` has the measured agreement.
        scoring_cost (`float`, *optional*): what selecting may cost, in training passes over the pool, warm-up
            included; by default all rows are scored, for about 1.1 passes. `0.25` scores as many rows as that pays
            for, those nearest to a target by their mean input embeddings; the others cannot be selected.
        target_group_column (`str`, *optional*): column of the target set with the name of each row's group. By default
            each target row is its own group. With a column, the gradients of a group are averaged into one direction,
            which tends to select redundant rows.
        source_column (`str`, *optional*): column of the pool that the report groups rows by. Set it to see
            which sources the selected rows come from, and for `source_shares` and `source_max`.
        source_shares (`dict[str, float]`, *optional*): source to the share of the budget reserved for its best rows,
            such as `{"code": 0.3}`. The rest of the budget goes to the best remaining rows of any source.
        source_max (`dict[str, int]`, *optional*): source to its largest number of selected rows, such as
            `{"chat": 500}`.
        scoring_tokens_per_batch (`int`, defaults to `4096`): padded tokens in one scoring batch. Raise it on a large
            GPU.
        scoring_dtype (`str`, defaults to `"auto"`): compute dtype of scoring. `"auto"` is bfloat16 inside a trainer
            with `bf16=True`, and the model's own dtype otherwise. `"bfloat16"` is faster on a GPU.
        after_selection (`str`, defaults to `"continue"`): what to train after the warm-up: `"continue"` with the warmed-up
            adapter, or `"restart"` from the initial adapter with a new optimizer and schedule (the paper's method), so
            that the final adapter has seen selected rows only.
        reselect_every (`int`, *optional*): choose rows again after every this many passes over the selection, but not
            after the last pass, by the adapter as it is then; by default rows are selected once. Only the callback does
            so. Each selection scores the pool again, for up to `scoring_cost` if it is set. With
            `after_selection="restart"`, training starts again only after the first one.
        reselect_share (`float`, defaults to `1.0`): share of the pool that is scored when rows are chosen again, drawn
            anew at random each time; the other rows cannot be selected that time. `0.25` reduces the cost of these
            scorings to a quarter. The budget stays that of the whole pool.
        drop_target_duplicates (`bool`, defaults to `True`): never select a row that is also in the target or
            evaluation set, with the same tokens or the same words. These rows are reported in either case. `False` only
            if the two sets are meant to overlap.
        drop_pool_duplicates (`bool`, defaults to `True`): select only the first of several rows of the pool with the
            same tokens or the same words. A budget given as a fraction is one of the pool as given, copies included.
            `False` if rows are repeated on purpose.
        target_holdout (`float`, defaults to `0.0`): share of the target rows that selects nothing and only measures the
            loss of the targets during training, so that this loss is not one of rows that the selection has seen. With a
            `target_group_column` a share of every group, which keeps at least one row; drawn by `seed`.
        stop_when_target_rises (`bool`, defaults to `False`): end training after a pass over the selection at whose end the
            target loss is higher than at its lowest so far, and restore the adapter with the lowest one: that of an
            earlier pass, or that from which the first pass started. Not together with `load_best_model_at_end`.
        save_every (`int`, *optional*): save unfinished scores every this many batches; by default about every minute.
            Interrupted scoring resumes after the last saved batch, so a lower value repeats less work.
        seed (`int`, defaults to `42`): seed of the warm-up sample, of random draws and of the row order of each
            pass. Run several seeds to see how much a result varies.

    Raises:
        ValueError: naming every field with a wrong type or a value out of range.
    """

    FILE: ClassVar[str] = "gist_config.json"

    budget: int | float = 0.05
    budget_unit: Literal["rows", "tokens"] = "rows"
    warmup_ratio: float = 0.05
    warmup_steps: int | None = None
    rank: int | None = None
    explained_variance: float = 0.95
    scorer: Literal["gist", "rds_plus", "less"] = "gist"
    score: Literal["subspace_cosine", "cosine", "grad_norm"] = "subspace_cosine"
    strategy: Literal["max", "mean", "round_robin", "random", "length_matched_random"] = "max"
    sample_from_top: float = 1.0
    score_layers: int | None = None
    sketch_dim: int | None = None
    scoring_cost: float | None = None
    target_group_column: str | None = None
    source_column: str | None = None
    source_shares: dict[str, float] | None = None
    source_max: dict[str, int] | None = None
    scoring_tokens_per_batch: int = 4096
    scoring_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    after_selection: Literal["continue", "restart"] = "continue"
    reselect_every: int | None = None
    reselect_share: float = 1.0
    drop_target_duplicates: bool = True
    drop_pool_duplicates: bool = True
    target_holdout: float = 0.0
    stop_when_target_rises: bool = False
    save_every: int | None = None
    seed: int = 42

    @classmethod
    def recommended(cls, budget: int | float = 0.05, **fields: Any) -> "GISTConfig":
        """The setting that was never clearly worse than random rows in our measurements: plain cosine, round robin.

        Where all rows are scored and `budget` is a share of at most 5 %, rows are drawn from three times as many of the
        best. The measurements, also of targets that it was not found on, are in `recipes/README.md`. The constructor's
        defaults are the paper's rule.

        Args:
            budget (`int` or `float`, defaults to `0.05`): as in the constructor.
            fields: further fields, which override the recommended ones.

        Raises:
            ValueError: as the constructor.
        """
        small = isinstance(budget, float) and budget <= 0.05
        top = 3.0 if small and fields.get("scoring_cost") is None else 1.0
        chosen: dict[str, Any] = {"strategy": "round_robin", "sample_from_top": top}
        if fields.get("scorer", "gist") == "gist":
            # the others have no choice: they use the plain cosine
            chosen["score"] = "cosine"
        return cls(budget=budget, **(chosen | fields))

    def rules(self) -> list[Rule]:
        """See [`BaseConfig`]."""
        amount = f"a fraction in (0, 1] or a count of at least 1 {self.budget_unit}"
        return [
            ("budget", fits_fraction_or_count(self.budget), amount),
            ("warmup_ratio", 0 < self.warmup_ratio < 1, "between 0 and 1, both excluded"),
            *self._counts(),
            ("explained_variance", 0 < self.explained_variance <= 1, "in (0, 1]"),
            ("sample_from_top", math.isfinite(self.sample_from_top) and self.sample_from_top >= 1, "1 or more"),
            ("scoring_cost", _positive(self.scoring_cost), "a number of passes over the pool above 0"),
            ("reselect_share", 0 < self.reselect_share <= 1, "in (0, 1]"),
            ("target_holdout", 0 <= self.target_holdout < 1, "0 or a share of the target rows below 1"),
            ("seed", self.seed >= 0, "0 or more"),
            *self._of_sources(),
            *self._combinations(),
            *self._of_shares(),
        ]

    def _counts(self) -> list[Rule]:
        optional = ("warmup_steps", "rank", "score_layers", "sketch_dim", "reselect_every", "save_every")
        names = [*(name for name in optional if getattr(self, name) is not None), "scoring_tokens_per_batch"]
        return [(name, getattr(self, name) >= 1, "at least 1") for name in names]

    def _of_sources(self) -> list[Rule]:
        shares = list((self.source_shares or {}).values())
        fits = all(0 <= share <= 1 for share in shares) and sum(shares) <= 1 + 1e-9
        limits = list((self.source_max or {}).values())
        return [
            ("source_shares", fits, "shares from 0 to 1 that add up to at most 1"),
            ("source_max", all(limit >= 0 for limit in limits), "0 or more rows for each source"),
        ]

    def _combinations(self) -> list[Rule]:
        """Checks of settings that exclude each other."""
        with_scorer = f"with `scorer={self.scorer!r}`, which"
        gist = self.scorer == "gist"
        return [
            (
                "score",
                gist or self.score == "subspace_cosine",
                f"left at its default {with_scorer} uses the plain cosine",
            ),
            (
                "strategy",
                self.score != "grad_norm" or self.strategy not in ("mean", "round_robin"),
                "'max' with `score='grad_norm'`, which has no groups",
            ),
            (
                "sketch_dim",
                gist or self.sketch_dim is None,
                f"left out {with_scorer} has its own projection or uses no gradients",
            ),
            (
                "scoring_cost",
                self.scoring_cost is None or self.strategy not in UNSCORED,
                f"left out with `strategy={self.strategy!r}`, which scores no row",
            ),
            (
                "scoring_cost",
                self.scoring_cost is None or self.score != "grad_norm",
                "left out with `score='grad_norm'`: it scores the rows nearest to the targets, which play no part there",
            ),
        ]

    def _of_shares(self) -> list[Rule]:
        """Where a share of the pool for later selections would have no effect."""
        whole = self.reselect_share == 1
        return [
            (
                "reselect_share",
                whole or self.reselect_every is not None,
                "left out without `reselect_every`: it is the share of the pool that is scored when rows are chosen again",
            ),
            (
                "reselect_share",
                whole or self.strategy not in UNSCORED,
                f"left out with `strategy={self.strategy!r}`, which scores no row",
            ),
        ]


def _positive(value: float | None) -> bool:
    """Whether an optional number is finite and above 0."""
    return value is None or (math.isfinite(value) and value > 0)
