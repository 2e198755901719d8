"""`Selection`: which rows of the pool to train on, and why."""

import dataclasses
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet
from torch import Tensor

from hf_gist.config.gist import UNSCORED, GISTConfig
from hf_gist.costs.ledger import COSTS, CostLedger
from hf_gist.errors import NoEffectWarning
from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.budget import sampled_from_top
from hf_gist.functional.selection.choice import ComparisonSpace, order_candidates
from hf_gist.functional.selection.draws import seed_of_selection
from hf_gist.functional.selection.ranking import energy_inside
from hf_gist.functional.subspace import captured_variance, choose_rank
from hf_gist.gist.artifacts import (
    ARTIFACTS,
    CONFIG,
    COORDINATES,
    MANIFEST,
    SCORES,
    load_measurements,
    save_measurements,
)
from hf_gist.gist.checks import check_selectable
from hf_gist.gist.scorers.table import scorer_of
from hf_gist.gist.scoring_cost.looked_at import check_all_rows_known, check_looked_at
from hf_gist.gist.sources import SourceUse, check_quotas, quotas_of, source_uses, warn_quotas
from hf_gist.gist.wording import method_title
from hf_gist.utils.disk import read, read_json, write, write_json


RESELECTABLE = (
    "budget",
    "budget_unit",
    "rank",
    "explained_variance",
    "score",
    "strategy",
    "sample_from_top",
    "source_shares",
    "source_max",
    "drop_target_duplicates",
    "drop_pool_duplicates",
    "target_group_column",
)


def _check_scored(m: Measurements, config: GISTConfig) -> None:
    if config.strategy not in UNSCORED and len(m.singular_values) == 0:
        raise ValueError(
            f"`strategy={config.strategy!r}` needs scores, but these rows were drawn without scoring. "
            "Select again with this strategy."
        )


def _warn_one_direction(config: GISTConfig) -> None:
    in_subspace = scorer_of(config).in_subspace and config.score == "subspace_cosine"
    if in_subspace and config.strategy not in UNSCORED:
        warnings.warn(
            "The subspace has rank 1, so every subspace cosine is 1 or -1 and cannot rank rows: "
            "the rows are scored by the plain cosine instead. More varied targets give a higher rank.",
            NoEffectWarning,
            stacklevel=3,
        )


def _energy(m: Measurements, rank: int) -> Tensor:
    """Energy share `[N]` of all rows with a gradient, including rows that may not be selected."""
    coordinates = torch.where(m.scorable.unsqueeze(1), m.coordinates[:, :rank], torch.zeros(()))
    return energy_inside(coordinates, torch.where(m.scorable, m.norms, torch.zeros(())))


@dataclass(frozen=True)
class Selection:
    """The result of GIST: which rows of the pool to train on, and why.

    Attributes:
        indices (`list[int]`): selected rows, best first.
        scores (`Tensor`): `[N]` float32; unscorable rows are `-inf`, never NaN.
        rank (`int`): rank `k` of the subspace used.
        explained_variance (`float`): share of the target gradients' squared spectrum inside it.
        energy (`Tensor`): `[N]` float32, share of each candidate's squared gradient norm inside it.
        best_group (`Tensor`): `[N]` int64, the best-matching target group of each candidate.
        group_names (`list[str]`): names of the target groups.
        config (`GISTConfig`): the configuration.
        measurements (`Measurements`): the results of scoring.
        manifest (`dict`): versions, fingerprints, counts and seconds of the scoring run.
        costs (`CostLedger`, *optional*): cost of each phase.
        number (`int`): of the selection in a run that chooses rows again, from 1; its random draws depend on it.
    """

    indices: list[int]
    scores: Tensor
    rank: int
    explained_variance: float
    energy: Tensor
    best_group: Tensor
    group_names: list[str]
    config: GISTConfig
    measurements: Measurements
    manifest: dict[str, Any] = field(default_factory=dict)
    costs: CostLedger | None = None
    number: int = 1

    def __repr__(self) -> str:
        """One line: the whole fields would be pages of numbers."""
        first = ", ".join(map(str, self.indices[:5]))
        rest = ", ..." if len(self.indices) > 5 else ""
        count = f"{len(self.indices):,} of {len(self.scores):,} rows"
        return f"Selection({count} by {self.method}, rank {self.rank}, best first: [{first}{rest}])"

    @property
    def singular_values(self) -> Tensor:
        """Singular values of the target gradients `[q]`, descending; empty if nothing was scored."""
        return self.measurements.singular_values

    @property
    def method(self) -> str:
        """Name of the method that selected the rows."""
        return method_title(self.config)

    @property
    def source_uses(self) -> list[SourceUse]:
        """What each source got of the budget; empty without `source_shares` and `source_max`."""
        return source_uses(self.measurements, self.config, self.indices)

    @property
    def copies_dropped(self) -> int:
        """Number of rows that could have been selected, but repeat an earlier row."""
        if not self.config.drop_pool_duplicates:
            return 0
        with_copies, without = (
            self.measurements.eligible(self.config.drop_target_duplicates, drop_copies)
            for drop_copies in (False, True)
        )
        return int(with_copies.sum()) - int(without.sum())

    @classmethod
    def choose(
        cls,
        measurements: Measurements,
        config: GISTConfig,
        manifest: dict[str, Any] | None = None,
        number: int = 1,
    ) -> "Selection":
        """Choose rows from measurements: rank, group directions, scores, strategy, budget (paper Eq. 15-17).

        Args:
            measurements (`Measurements`): results of scoring.
            config (`GISTConfig`): how to choose.
            manifest (`dict`, *optional*): of the scoring run.
            number (`int`): of the selection in a run that chooses rows again, from 1.

        Raises:
            ValueError: if the group column is missing, no row can be selected, or the budget selects nothing.
        """
        m = measurements
        _check_scored(m, config)
        quotas = quotas_of(config, m.sources)
        eligible = m.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
        check_selectable(m, eligible)
        groups, names = m.groups(config.target_group_column)
        rank = choose_rank(m.singular_values, config.explained_variance, config.rank)
        scorer = scorer_of(config)
        compared = None if config.score == "cosine" or not scorer.in_subspace or rank == 1 else rank
        if rank == 1:
            _warn_one_direction(config)
        space = ComparisonSpace.of(m, eligible, groups, compared, scorer.unit_directions)
        seed = seed_of_selection(config.seed, number)
        scores, order, best = order_candidates(m, space, eligible, dataclasses.replace(config, seed=seed))
        return cls(
            indices=sampled_from_top(
                order,
                config.budget,
                config.budget_unit,
                m.label_tokens,
                config.sample_from_top,
                seed,
                quotas,
            ),
            scores=scores,
            rank=rank,
            explained_variance=float(captured_variance(m.singular_values)[rank - 1]) if rank else 0.0,
            energy=_energy(m, rank),
            best_group=best,
            group_names=names,
            config=config,
            measurements=m,
            manifest=manifest or {},
            number=number,
        )

    def reselect(self, **changes: Any) -> "Selection":
        """Choose again from the same measurements, without rescoring.

        Args:
            changes: new values for `budget`, `budget_unit`, `rank`, `explained_variance`, `score`, `strategy`,
                `sample_from_top`, `source_shares`, `source_max`, `drop_target_duplicates`, `drop_pool_duplicates` or
                `target_group_column`. Giving only `explained_variance` removes a fixed `rank`.

        Raises:
            ValueError: for any other field, which needs scoring again; for a selection that needs rows which were not
                looked at within `scoring_cost`.
        """
        unknown = sorted(set(changes) - set(RESELECTABLE))
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} cannot be changed without scoring again; reselect() takes "
                f"{', '.join(RESELECTABLE)}."
            )
        if "explained_variance" in changes:
            changes.setdefault("rank", None)
        check_all_rows_known(self.measurements, changes)
        config = dataclasses.replace(self.config, **changes)
        check_quotas(config, self.measurements.sources)
        check_looked_at(self.measurements, self.config, config, self.number)
        again = Selection.choose(self.measurements, config, self.manifest, self.number)
        warn_quotas(again.measurements, config, again.indices)
        return dataclasses.replace(again, costs=None if self.costs is None else self.costs.of_scoring())

    def save(self, folder: str | os.PathLike) -> None:
        """Write all artifacts into `folder`, which is created if needed. The manifest is written last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / SCORES, self.write_scores)
        save_measurements(self.measurements, folder)
        write(folder / CONFIG, lambda path: Path(path).write_text(self.config.to_json(), encoding="utf-8"))
        if self.costs is not None:
            self.costs.with_bytes(folder, ARTIFACTS).save(folder)
        else:
            # of an earlier selection in this folder
            (folder / COSTS).unlink(missing_ok=True)
        self.write_manifest(folder / MANIFEST)

    def write_manifest(self, path: Path) -> None:
        """Write the manifest with the counts of the selection as JSON."""
        write_json(path, {**self.manifest, **self._counts()})

    def write_scores(self, path: str | Path) -> None:
        """Write the table of all rows of the pool as Parquet: source, score, energy, position in the selection."""
        parquet.write_table(pyarrow.table(self._scores_table()), path)

    def _scores_table(self) -> dict[str, list[Any]]:
        m = self.measurements
        position = {row: at for at, row in enumerate(self.indices)}
        rows = range(len(m.norms))
        columns: dict[str, list[Any]] = {"row": list(rows)}
        if m.sources is not None:
            columns["source"] = m.sources
        columns |= {
            "best_group": [self.group_names[i] for i in self.best_group.tolist()],
            "score": self.scores.tolist(),
            "gradient_norm": m.norms.tolist(),
            "energy": self.energy.tolist(),
            "label_tokens": m.label_tokens.tolist(),
            "scored": m.looked_at.tolist(),
            "selected": [row in position for row in rows],
            "position": [position.get(row) for row in rows],
        }
        return columns

    def _counts(self) -> dict[str, Any]:
        m = self.measurements
        return {
            "candidates": len(m.norms),
            "candidates_scored": int(m.looked_at.sum()),
            "candidates_not_looked_at": int((~m.looked_at).sum()),
            "targets": len(m.target_coordinates),
            "target_groups": len(self.group_names),
            "selected": len(self.indices),
            "selection_number": self.number,
            "rank": self.rank,
            "explained_variance": self.explained_variance,
            "pool_duplicates_dropped": self.copies_dropped,
            "source_quotas": {use.name: dataclasses.asdict(use) for use in self.source_uses},
            "rows_without_labels": int((m.label_tokens == 0).sum()),
            "rows_with_non_finite_gradient": m.not_finite,
        }

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Selection":
        """Read the files written by [`Selection.save`].

        Raises:
            ValueError: if a file is missing or cannot be read, naming it.
        """
        folder = Path(folder)
        measurements, table = load_measurements(folder)
        config = read(
            folder / CONFIG, lambda path: GISTConfig.from_json(Path(path).read_text(encoding="utf-8"), CONFIG)
        )
        manifest = read_json(folder / MANIFEST)
        # selections of older versions have no number
        number = manifest.get("selection_number", 1)
        again = read(folder / COORDINATES, lambda _: cls.choose(measurements, config, manifest, number))
        kept = [row for row, position in zip(table["row"], table["position"], strict=True) if position is not None]
        if len(table["row"]) != len(measurements.norms) or sorted(again.indices) != kept:
            raise ValueError(f"{folder / SCORES} does not belong to {folder / COORDINATES}: their selections differ.")
        return dataclasses.replace(again, costs=CostLedger.load(folder))
