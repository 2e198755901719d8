"""A selection, and its form on disk: Parquet, safetensors and JSON, each written to a temporary name and renamed."""

import dataclasses
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_gist.config import UNSCORED, GISTConfig
from hf_gist.disk import read, read_json, write, write_json
from hf_gist.errors import NoEffectWarning
from hf_gist.ledger import CostLedger
from hf_gist.measurements import Measurements
from hf_gist.selection import (
    energy_inside,
    group_directions,
    length_matched_order,
    ranked,
    round_robin,
    rows_in_budget,
    sampled_from_top,
    score_candidates,
    uniform_order,
)
from hf_gist.subspace import captured_variance, choose_rank


FOLDER = "gist"
SCORES, COORDINATES, SUBSPACE = "scores.parquet", "coordinates.safetensors", "subspace.safetensors"
CONFIG, MANIFEST, TARGETS = GISTConfig.FILE, "manifest.json", "targets.parquet"
ARTIFACTS = (SCORES, COORDINATES, SUBSPACE, CONFIG, TARGETS)
TARGET_ROW = "__row__"
"""Column of the row numbers in the table of targets; the other columns have the user's names."""

RESELECTABLE = (
    "budget",
    "budget_unit",
    "rank",
    "explained_variance",
    "score",
    "strategy",
    "sample_from_top",
    "drop_target_duplicates",
    "target_group_column",
)


@dataclass(frozen=True)
class _Space:
    """Where candidates and target groups are compared.

    Args:
        coordinates (`Tensor`): candidates `[N, k]`.
        directions (`Tensor`): target groups `[H, k]`.
        norms (`Tensor`, *optional*): `[N]` for the plain cosine; by default the norm inside the subspace.
    """

    coordinates: Tensor
    directions: Tensor
    norms: Tensor | None

    @classmethod
    def of(
        cls, m: Measurements, coordinates: Tensor, groups: list[int], number: int, rank: int, config: GISTConfig
    ) -> "_Space":
        # The targets lie in the full-rank basis, so there the plain cosine needs no gradient, only the norms. In a
        # single direction every cosine is 1 or -1 and tells no row from another.
        plain = config.score == "cosine" or config.scorer != "gist" or rank == 1
        k = len(m.singular_values) if plain else rank
        # LESS averages the cosines with a group's targets: the mean of unit vectors is not normalised again.
        directions = group_directions(m.target_coordinates[:, :k], groups, number, config.scorer != "less")
        norms = torch.where(m.scorable, m.norms, torch.zeros(())) if plain else None
        return cls(coordinates[:, :k], directions, norms)


def _order(m: Measurements, space: _Space, scorable: Tensor, config: GISTConfig) -> tuple[Tensor, list[int], Tensor]:
    """Scores `[N]`, the scorable rows best first, and each row's best matching group `[N]`."""
    nowhere = torch.tensor(float("-inf"))
    reduce = "mean" if config.strategy == "mean" else "max"
    scores, best = score_candidates(space.coordinates, space.directions, space.norms, reduce)
    if config.strategy in UNSCORED:
        if config.strategy == "random":
            order = uniform_order(scorable, config.seed)
        else:
            order = length_matched_order(m.label_tokens, m.target_label_tokens, scorable, config.seed)
        scores = torch.full((len(m.norms),), float("-inf"))
        scores[torch.tensor(order, dtype=torch.long)] = 1 - torch.arange(len(order)) / max(1, len(order))
        return scores, order, best
    if config.score == "grad_norm":
        scores = m.norms
    scores = torch.where(scorable, scores, nowhere)
    if config.strategy == "round_robin":
        limit = rows_in_budget(config.budget, config.budget_unit, len(m.norms))
        limit = None if limit is None else int(limit * config.sample_from_top)
        return scores, round_robin(space.coordinates, space.directions, scorable, space.norms, limit), best
    return scores, ranked(scores)[: int(scorable.sum())].tolist(), best


@dataclass(frozen=True)
class Selection:
    """The outcome of GIST: which rows of the pool to train on, and why.

    Attributes:
        indices (`list[int]`): selected rows, best first.
        scores (`Tensor`): `[N]` float32; unscorable rows are `-inf`, never NaN.
        rank (`int`): rank `k` of the subspace used.
        explained_variance (`float`): share of the target gradients' squared spectrum inside it.
        energy (`Tensor`): `[N]` float32, share of each candidate's squared gradient norm inside it.
        best_group (`Tensor`): `[N]` int64, the target group each candidate matches best.
        group_names (`list[str]`): names of the target groups.
        config (`GISTConfig`): what was asked.
        measurements (`Measurements`): what was measured.
        manifest (`dict`): versions, fingerprints, counts and seconds of the run that measured it.
        costs (`CostLedger`, *optional*): what each phase took.
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

    @property
    def singular_values(self) -> Tensor:
        """Singular values of the target gradients `[q]`, descending; empty if nothing was scored."""
        return self.measurements.singular_values

    @property
    def method(self) -> str:
        """Name of what chose the rows."""
        if self.config.strategy in UNSCORED:
            return {"random": "random draw", "length_matched_random": "length-matched random draw"}[
                self.config.strategy
            ]
        if self.config.score == "grad_norm":
            return "gradient norm"
        return {"gist": "GIST", "rds_plus": "RDS+", "less": "LESS"}[self.config.scorer]

    @classmethod
    def choose(cls, measurements: Measurements, config: GISTConfig, manifest: dict[str, Any] | None = None):
        """Choose rows from measurements: rank, group directions, scores, strategy, budget (paper Eq. 15-17).

        Raises:
            ValueError: if the group column is missing or the budget selects nothing.
        """
        m, scorable = measurements, measurements.eligible(config.drop_target_duplicates)
        if config.strategy not in UNSCORED and len(m.singular_values) == 0:
            raise ValueError(
                f"`strategy={config.strategy!r}` needs scores, and these rows were drawn without scoring. Run again with it."
            )
        groups, names = m.groups(config.target_group_column)
        rank = choose_rank(m.singular_values, config.explained_variance, config.rank)
        coordinates = torch.where(scorable.unsqueeze(1), m.coordinates, torch.zeros(()))
        space = _Space.of(m, coordinates, groups, len(names), rank, config)
        scores, order, best = _order(m, space, scorable, config)
        if (
            rank == 1
            and config.scorer == "gist"
            and config.score == "subspace_cosine"
            and config.strategy not in UNSCORED
        ):
            warnings.warn(
                "The subspace has one direction (rank 1), in which every cosine is 1 or -1 and tells no row from another: "
                "the rows are scored by the plain cosine instead. More varied targets make more directions.",
                NoEffectWarning,
                stacklevel=2,
            )
        # of all rows with a gradient, also of those that are not to be selected
        measured = torch.where(m.scorable.unsqueeze(1), m.coordinates[:, :rank], torch.zeros(()))
        return cls(
            indices=sampled_from_top(
                order, config.budget, config.budget_unit, m.label_tokens, config.sample_from_top, config.seed
            ),
            scores=scores,
            rank=rank,
            explained_variance=float(captured_variance(m.singular_values)[rank - 1]) if rank else 0.0,
            energy=energy_inside(measured, torch.where(m.scorable, m.norms, torch.zeros(()))),
            best_group=best,
            group_names=names,
            config=config,
            measurements=m,
            manifest=manifest or {},
        )

    def reselect(self, **changes: Any) -> "Selection":
        """Choose again from the same measurements, without rescoring.

        Args:
            changes: new values for `budget`, `budget_unit`, `rank`, `explained_variance`, `score`, `strategy`,
                `sample_from_top`, `drop_target_duplicates` or `target_group_column`. Giving `explained_variance` alone drops a fixed `rank`.

        Raises:
            ValueError: for any other field, which would need scoring again.
        """
        unknown = sorted(set(changes) - set(RESELECTABLE))
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} cannot be changed without scoring again; reselect() takes {', '.join(RESELECTABLE)}."
            )
        if "explained_variance" in changes:
            changes.setdefault("rank", None)
        return Selection.choose(self.measurements, dataclasses.replace(self.config, **changes), self.manifest)

    def save(self, folder: str | os.PathLike) -> None:
        """Write all artifacts into `folder`, which is made if need be. The manifest is written last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        m = self.measurements
        tensors = {"coordinates": m.coordinates, "norms": m.norms, "label_tokens": m.label_tokens}
        tensors |= {name: v for name in ("scored", "leaked") if (v := getattr(m, name)) is not None}
        spectrum = {
            "singular_values": m.singular_values,
            "target_coordinates": m.target_coordinates,
            "target_label_tokens": m.target_label_tokens,
        }
        write(folder / SCORES, self.write_scores)
        write(folder / TARGETS, lambda path: parquet.write_table(pyarrow.table(_target_table(m)), path))
        write(folder / COORDINATES, lambda path: save_file(_contiguous(tensors), path))
        write(folder / SUBSPACE, lambda path: save_file(_contiguous(spectrum), path))
        write(folder / CONFIG, lambda path: Path(path).write_text(self.config.to_json(), encoding="utf-8"))
        if self.costs is not None:
            self.costs.with_bytes(folder, ARTIFACTS).save(folder)
        self.write_manifest(folder / MANIFEST)

    def write_manifest(self, path: Path) -> None:
        """Write the manifest with the counts of the selection as JSON."""
        write_json(path, {**self.manifest, **_counts(self)})

    def write_scores(self, path: str | os.PathLike) -> None:
        """Write the table of all rows of the pool as Parquet: source, score, energy, position in the selection."""
        parquet.write_table(pyarrow.table(_scores_table(self)), path)

    def export_dataset(
        self,
        rows: Any,
        folder: str | os.PathLike,
        repo_id: str | None = None,
        license: str | None = None,
    ) -> Path:
        """Write a dataset folder: the selected rows, the scores of all rows, and a card for `load_dataset` and the Hub.

        Args:
            rows (`Dataset`): the pool, `N` rows in the order that was scored, tokenised or not.
            folder (`str` or `PathLike`): where to write; it is made if need be.
            repo_id (`str`, *optional*): where it will be on the Hub, for the card.
            license (`str`, *optional*): the Hub's name of the rows' licence; none is claimed without it.

        Returns:
            `Path`: the folder.

        Raises:
            ValueError: if `rows` is not the pool that was scored, as far as its size can tell.
        """
        # it needs this module
        from hf_gist.dataset_card import export_dataset

        return export_dataset(self, rows, folder, repo_id, license)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Selection":
        """Read what [`Selection.save`] wrote.

        Raises:
            ValueError: if a file is missing or cannot be read, by name.
        """
        folder = Path(folder)
        tensors, spectrum = read(folder / COORDINATES, load_file), read(folder / SUBSPACE, load_file)
        table = read(folder / SCORES, _read_parquet)
        numbers, targets = read(folder / TARGETS, _read_targets)
        config = read(folder / CONFIG, lambda path: GISTConfig.from_json(Path(path).read_text(encoding="utf-8")))
        manifest = read_json(folder / MANIFEST)
        measurements = read(
            folder / COORDINATES,
            lambda _: Measurements(
                **tensors, **spectrum, target_columns=targets, target_rows=numbers, sources=table.get("source")
            ),
        )
        read(folder / COORDINATES, lambda _: measurements.check_shapes())
        again = read(folder / COORDINATES, lambda _: cls.choose(measurements, config, manifest))
        kept = [row for row, position in zip(table["row"], table["position"], strict=True) if position is not None]
        if len(table["row"]) != len(measurements.norms) or sorted(again.indices) != kept:
            raise ValueError(f"{folder / SCORES} does not belong to {folder / COORDINATES}: their selections differ.")
        return dataclasses.replace(again, costs=CostLedger.load(folder))


def _read_parquet(path: str) -> dict[str, list[Any]]:
    return parquet.read_table(path).to_pydict()


def _read_targets(path: str) -> tuple[list[int], dict[str, list[Any]]]:
    columns = _read_parquet(path)
    return columns.pop(TARGET_ROW), columns


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def withhold_target_columns(folder: str | os.PathLike) -> None:
    """Keep of the targets' columns in a folder of artifacts only the one that groups them: others may hold text."""
    path = Path(folder) / TARGETS
    if not path.is_file():
        return
    group = GISTConfig.from_pretrained(folder).target_group_column
    table = parquet.read_table(path)
    kept = [name for name in table.column_names if name in (TARGET_ROW, group)]
    if kept != table.column_names:
        write(path, lambda name: parquet.write_table(table.select(kept), name))


def _target_table(m: Measurements) -> dict[str, list[Any]]:
    return {TARGET_ROW: m.target_numbers, **m.target_columns}


def _scores_table(selection: Selection) -> dict[str, list[Any]]:
    m = selection.measurements
    position = {row: at for at, row in enumerate(selection.indices)}
    rows = range(len(m.norms))
    columns: dict[str, list[Any]] = {"row": list(rows)}
    if m.sources is not None:
        columns["source"] = m.sources
    columns |= {
        "best_group": [selection.group_names[i] for i in selection.best_group.tolist()],
        "score": selection.scores.tolist(),
        "gradient_norm": m.norms.tolist(),
        "energy": selection.energy.tolist(),
        "label_tokens": m.label_tokens.tolist(),
        "selected": [row in position for row in rows],
        "position": [position.get(row) for row in rows],
    }
    return columns


def _counts(selection: Selection) -> dict[str, Any]:
    m = selection.measurements
    return {
        "candidates": len(m.norms),
        "candidates_scored": len(m.norms) if m.scored is None else int(m.scored.sum()),
        "targets": len(m.target_coordinates),
        "target_groups": len(selection.group_names),
        "selected": len(selection.indices),
        "rank": selection.rank,
        "explained_variance": selection.explained_variance,
        "rows_without_labels": int((m.label_tokens == 0).sum()),
        "rows_with_non_finite_gradient": m.not_finite,
    }
