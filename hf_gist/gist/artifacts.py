"""The files of a selection: Parquet, safetensors and JSON, each written to a temporary name and renamed."""

import os
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_gist.config.gist import GISTConfig
from hf_gist.functional.measurements import Measurements
from hf_gist.utils.disk import read, write


SCORES = "scores.parquet"
COORDINATES = "coordinates.safetensors"
SUBSPACE = "subspace.safetensors"
CONFIG = GISTConfig.FILE
MANIFEST = "manifest.json"
TARGETS = "targets.parquet"
ARTIFACTS = (SCORES, COORDINATES, SUBSPACE, CONFIG, TARGETS)
TARGET_ROW = "__row__"
"""Column with the row numbers in the table of targets; the other columns keep the user's names."""


def read_parquet(path: str) -> dict[str, list[Any]]:
    """The columns of a Parquet file."""
    return parquet.read_table(path).to_pydict()


def _read_targets(path: str) -> tuple[list[int], dict[str, list[Any]]]:
    columns = read_parquet(path)
    return columns.pop(TARGET_ROW), columns


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def withhold_target_columns(folder: str | os.PathLike) -> None:
    """Remove the targets' columns from the artifacts, except the group column: they may contain text."""
    path = Path(folder) / TARGETS
    if not path.is_file():
        return
    group = GISTConfig.from_pretrained(folder).target_group_column
    table = parquet.read_table(path)
    kept = [name for name in table.column_names if name in (TARGET_ROW, group)]
    if kept != table.column_names:
        write(path, lambda name: parquet.write_table(table.select(kept), name))


def save_measurements(m: Measurements, folder: Path) -> None:
    """Write the measurements: coordinates, spectrum and the table of targets."""
    tensors = {"coordinates": m.coordinates, "norms": m.norms, "label_tokens": m.label_tokens}
    tensors |= {name: v for name in ("scored", "leaked", "copy_of") if (v := getattr(m, name)) is not None}
    spectrum = {
        "singular_values": m.singular_values,
        "target_coordinates": m.target_coordinates,
        "target_label_tokens": m.target_label_tokens,
    }
    targets = {TARGET_ROW: m.target_numbers, **m.target_columns}
    write(folder / TARGETS, lambda path: parquet.write_table(pyarrow.table(targets), path))
    write(folder / COORDINATES, lambda path: save_file(_contiguous(tensors), path))
    write(folder / SUBSPACE, lambda path: save_file(_contiguous(spectrum), path))


def load_measurements(folder: Path) -> tuple[Measurements, dict[str, list[Any]]]:
    """Read the files written by [`save_measurements`], and the table of scores, which has the sources.

    Args:
        folder (`Path`): of the artifacts.

    Returns:
        `tuple[Measurements, dict]`: the measurements, and the columns of the table of scores.

    Raises:
        ValueError: if a file is missing or damaged, naming it.
    """
    tensors = read(folder / COORDINATES, load_file)
    spectrum = read(folder / SUBSPACE, load_file)
    table = read(folder / SCORES, read_parquet)
    sources = table.get("source")
    numbers, targets = read(folder / TARGETS, _read_targets)
    measurements = read(
        folder / COORDINATES,
        lambda _: Measurements(**tensors, **spectrum, target_columns=targets, target_rows=numbers, sources=sources),
    )
    read(folder / COORDINATES, lambda _: measurements.check_shapes())
    return measurements, table
