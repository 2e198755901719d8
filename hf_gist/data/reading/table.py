"""Rows of any shape as a `datasets.Dataset` that returns the very values."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetInfo, Features, Json, List, Value, config
from datasets.table import MemoryMappedTable

from hf_gist.utils.disk import write


ROWS_PER_BATCH = 2_000
"""Rows of one record batch."""

INT64 = range(-(2**63), 2**63)

VERSION = 1
"""Part of the name of a cached table; to be raised with every change of what is written."""

FOLDER = "hf_gist"
"""Folder in the cache of `datasets`."""


@dataclass(repr=False)
class ExactJson(Json):
    """A column of JSON values that are returned as they were written.

    `datasets.Json` rounds floats to 10 digits, fails for large integers, and reads a text `"7"` as a number.
    """

    def encode_example(self, example_data: Any) -> str | None:
        """The value as JSON text."""
        return None if example_data is None else _as_json(example_data)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """The value of a JSON text."""
        return None if example_data is None else json.loads(example_data)


# the values come from a JSON file, so that none contains itself
_as_json = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=str).encode


# ---- Types ----


SCALARS: dict[type, str] = {str: "string", bool: "bool", float: "float64", type(None): "null"}
NATIVE = {
    "string": Value("string"),
    "bool": Value("bool"),
    "float64": Value("float64"),
    "int64": Value("int64"),
    "ints": List(Value("int64")),
    "strings": List(Value("string")),
}
"""Kinds of values with a column type of their own; all other columns are JSON, in which nothing is converted."""


def kind_of(value: Any) -> str:
    """The kind of a value: a key of [`NATIVE`], `null`, `empty` for an empty list, or `json`."""
    kind = SCALARS.get(type(value))
    if kind is not None:
        return kind
    if type(value) is int:
        return "int64" if value in INT64 else "json"
    return _kind_of_list(value) if type(value) is list else "json"


def _kind_of_list(values: list[Any]) -> str:
    if not values:
        return "empty"
    # the first alone decides for a conversation, which is the common case
    first = type(values[0])
    if first not in (int, str) or set(map(type, values)) != {first}:
        return "json"
    if first is str:
        return "strings"
    return "ints" if min(values) in INT64 and max(values) in INT64 else "json"


Kinds = dict[str, set[str]]
"""Column to the kinds of its values."""


def new_kinds() -> Kinds:
    """Without columns."""
    return defaultdict(set)


def add_kinds(kinds: Kinds, row: Mapping[str, Any]) -> None:
    """Add the kinds of the values of a row."""
    for name, value in row.items():
        kinds[name].add(kind_of(value))


def _feature_of(kinds: set[str]) -> Any:
    kinds = kinds - {"null"}
    if kinds - {"empty"} in ({"ints"}, {"strings"}):
        kinds = kinds - {"empty"}
    if not kinds:
        return Value("null")
    return NATIVE.get(next(iter(kinds)), ExactJson()) if len(kinds) == 1 else ExactJson()


def features_of(kinds: Kinds) -> Features:
    """The column types that hold all values without a conversion."""
    return Features({name: _feature_of(found) for name, found in kinds.items()})


# ---- Tables ----


def _column(rows: list[dict[str, Any]], name: str, feature: Any, field: pyarrow.Field) -> pyarrow.Array:
    values = [row.get(name) for row in rows]
    if isinstance(feature, ExactJson):
        values = [None if value is None else _as_json(value) for value in values]
    return pyarrow.array(values, type=field.type)


def _batches(rows: Iterable[dict[str, Any]], features: Features) -> Iterator[pyarrow.RecordBatch]:
    stream = iter(rows)
    schema = features.arrow_schema
    while part := list(islice(stream, ROWS_PER_BATCH)):
        columns = [_column(part, name, features[name], schema.field(name)) for name in schema.names]
        yield pyarrow.record_batch(columns, schema=schema)


def dataset_of(rows: list[dict[str, Any]]) -> Dataset:
    """Rows as a dataset in memory."""
    kinds = new_kinds()
    for row in rows:
        add_kinds(kinds, row)
    features = features_of(kinds)
    table = pyarrow.Table.from_batches(_batches(rows, features), schema=features.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=features))


def cached_dataset(rows: Iterable[dict[str, Any]], kinds: Kinds, key: str) -> Dataset:
    """Rows as a dataset on disk, in the cache of `datasets`; they are read only if the cache does not have them.

    Args:
        rows: the rows.
        kinds (`Kinds`): of all rows.
        key (`str`): digest of the contents that the rows come from.
    """
    features = features_of(kinds)
    folder = Path(config.HF_DATASETS_CACHE) / FOLDER / f"{key[:32]}-{VERSION}"
    path = folder / "rows.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, lambda name: _write_batches(rows, features, name))
    table = MemoryMappedTable.from_file(str(path))
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=key[:16])


def _write_batches(rows: Iterable[dict[str, Any]], features: Features, path: str) -> None:
    with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, features.arrow_schema) as writer:
        for batch in _batches(rows, features):
            writer.write_batch(batch)


# ---- Several tables ----


def with_exact_json(dataset: Dataset) -> Dataset:
    """The dataset with [`ExactJson`] where it has `Json`, which `concatenate_datasets` puts into its place."""
    for name, feature in dataset.features.items():
        if type(feature) is Json:
            dataset.features[name] = ExactJson()
    return dataset


def as_json_column(dataset: Dataset, name: str) -> Dataset:
    """The dataset with one column as [`ExactJson`]."""
    if isinstance(dataset.features[name], ExactJson):
        return dataset
    column = [None if value is None else _as_json(value) for value in dataset.with_format(None)[name]]
    features = Features(dataset.features | {name: ExactJson()})
    table = dataset.with_format("arrow")[:]
    at = table.schema.get_field_index(name)
    table = table.set_column(at, name, pyarrow.array(column, type=ExactJson.pa_type))
    return Dataset(table.cast(features.arrow_schema), info=DatasetInfo(features=features))
