"""Rows of any shape as a `datasets.Dataset` that returns the very values."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetInfo, Features, List, Value, __version__, config
from datasets.table import InMemoryTable, MemoryMappedTable, concat_tables

from hf_gist.utils.disk import write


try:
    from datasets import Json
except ImportError as error:
    raise ImportError(
        f"`hf-gist` and `select_stream` read rows as `datasets.Json`, which datasets {__version__} does not have: install "
        "datasets>=4.7. `GISTDataSelectorCallback`, `GASTTrainer` and `select` work without it."
    ) from error


ROWS_PER_BATCH = 1_000
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
    "chat": List({"role": Value("string"), "content": Value("string")}),
}
"""Kinds of values with a column type of their own; all other columns are JSON, in which nothing is converted."""

TURN = ("role", "content")
"""The keys of every message of a `chat`, in this order: more keys, or null, would not be what the file has."""


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
    first = type(values[0])
    if first is dict:
        return "chat" if all(map(_is_turn, values)) else "json"
    if first not in (int, str) or set(map(type, values)) != {first}:
        return "json"
    if first is str:
        return "strings"
    return "ints" if min(values) in INT64 and max(values) in INT64 else "json"


def _is_turn(value: Any) -> bool:
    return (
        type(value) is dict and tuple(value) == TURN and type(value["role"]) is str and type(value["content"]) is str
    )


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
    if kinds - {"empty"} in ({"ints"}, {"strings"}, {"chat"}):
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
        return _json_array(values)
    return pyarrow.array(values, type=field.type)


def _json_array(values: Iterable[Any]) -> pyarrow.Array:
    texts = [None if value is None else _as_json(value) for value in values]
    # `pyarrow.array` with the type itself takes ten times as long
    return pyarrow.ExtensionArray.from_storage(ExactJson.pa_type, pyarrow.array(texts, pyarrow.string()))


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
    name = hashlib.sha256(f"{key} {features} {VERSION}".encode()).hexdigest()[:32]
    folder = Path(config.HF_DATASETS_CACHE) / FOLDER / name
    path = folder / "rows.arrow"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, lambda name: _write_batches(rows, features, name))
    table = MemoryMappedTable.from_file(str(path))
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=name[:16])


def _write_batches(rows: Iterable[dict[str, Any]], features: Features, path: str) -> None:
    with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, features.arrow_schema) as writer:
        for batch in _batches(rows, features):
            writer.write_batch(batch)


# ---- Several tables ----


def _exact(feature: Any) -> Any:
    if type(feature) is Json:
        return ExactJson()
    if isinstance(feature, dict):
        return {name: _exact(inside) for name, inside in feature.items()}
    return List(_exact(feature.feature), length=feature.length) if isinstance(feature, List) else feature


def with_exact_json(dataset: Dataset) -> Dataset:
    """The dataset with [`ExactJson`] for `Json`, which `load_dataset` and `concatenate_datasets` put into its place."""
    features = Features({name: _exact(feature) for name, feature in dataset.features.items()})
    if str(features) == str(dataset.features):
        return dataset
    info = dataset.info.copy()
    info.features = features
    kept = {"split": dataset.split, "indices_table": dataset._indices, "fingerprint": dataset._fingerprint}
    return Dataset(dataset.data, info=info, **kept)


def with_column(dataset: Dataset, name: str, values: list[Any], feature: Any = None) -> Dataset:
    """The dataset with a new column, or with other values in a column.

    `Dataset.map` would write all other columns again, and round the numbers in those of type `Json`.

    Args:
        dataset (`Dataset`): the rows.
        name (`str`): the column.
        values (`list`): one for every row.
        feature (*optional*): type of the column; by default one that holds all values without a conversion.
    """
    feature = feature or _feature_of({kind_of(value) for value in values})
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    features = Features({**dataset.features, name: feature})
    column = _json_array(values) if isinstance(feature, ExactJson) else pyarrow.array(values, feature_type(feature))
    tables = [dataset.flatten_indices().data if dataset._indices is not None else dataset.data]
    tables.append(InMemoryTable(pyarrow.table({name: column})))
    return Dataset(concat_tables(tables, axis=1), info=DatasetInfo(features=features))


def feature_type(feature: Any) -> pyarrow.DataType:
    """The Arrow type of a column type."""
    return Features({"column": feature}).arrow_schema.field("column").type


def as_json_column(dataset: Dataset, name: str) -> Dataset:
    """The dataset with one column as [`ExactJson`]."""
    if isinstance(dataset.features[name], ExactJson):
        return dataset
    return with_column(dataset, name, dataset.with_format(None)[name][:], ExactJson())
