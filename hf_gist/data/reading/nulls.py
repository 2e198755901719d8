"""Removes the keys that a table format adds to tool calls and tool schemas.

Arrow gives all objects of a column the same keys, with null where an object has none: a call of `weather(city)` becomes
`weather(city, ticker=null)` if another row calls `quote(ticker)`, and the model would be scored on that.
"""

from typing import Any

from datasets import Dataset, Features, List

from hf_gist.data.preparation.messages import without_nulls
from hf_gist.data.reading.table import with_column


CHATS = ("messages", "prompt", "completion", "conversations")
CALLS = "tool_calls"
TOOLS = "tools"


def _pruned(value: Any, feature: Any) -> Any:
    """[`without_nulls`]; without a type every null is taken for one that the table format added."""
    if feature is not None:
        return without_nulls(value, feature)
    if isinstance(value, dict):
        return {key: _pruned(inside, None) for key, inside in value.items() if inside is not None}
    return [_pruned(item, None) for item in value] if isinstance(value, list) else value


def _turn(message: Any, feature: Any) -> Any:
    calls = message.get(CALLS) if isinstance(message, dict) else None
    return message | {CALLS: _pruned(calls, feature)} if calls else message


def pruned_value(name: str, value: Any, feature: Any = None) -> Any:
    """The value of a column without the null keys of tool calls, or of tool schemas.

    Args:
        name (`str`): the column.
        value: of one row.
        feature (*optional*): the type of the column, if it is known.
    """
    if name == TOOLS:
        return _pruned(value, feature)
    calls = None if feature is None else _inside(feature).get(CALLS)
    if not isinstance(value, list) or (feature is not None and calls is None):
        return value
    return [_turn(message, calls) for message in value]


def _inside(feature: Any) -> dict[str, Any]:
    """The keys of the objects in a list column."""
    item = feature.feature if isinstance(feature, List) else None
    return item if isinstance(item, dict) else {}


def columns_with_nulls(features: Features) -> list[str]:
    """The columns in which objects of tool calls or tool schemas share their keys."""
    chats = [name for name in CHATS if CALLS in _inside(features.get(name))]
    return chats + ([TOOLS] if _inside(features.get(TOOLS)) else [])


def without_null_keys(rows: Dataset) -> Dataset:
    """The rows without the null keys of tool calls and tool schemas."""
    for name in columns_with_nulls(rows.features):
        feature = rows.features[name]
        values = [pruned_value(name, row[name], feature) for row in rows.select_columns([name])]
        rows = with_column(rows, name, values)
    return rows
