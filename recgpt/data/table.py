"""Events given by a caller (a dict of columns, a pandas, polars or pyarrow table, a `datasets.Dataset`) as `Events`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_ids
from recgpt.data.schema import DataSchema
from recgpt.errors import ConfigError

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
MAX_TIME = 4_102_444_800_000_000  # 2100-01-01


def to_arrow(table: Any) -> pa.Table:
    """Any of the accepted tables as Arrow; ids never pass through floating point."""
    if isinstance(table, pa.Table):
        return table
    try:
        if isinstance(table, Mapping):
            return pa.table({name: pa.array(_plain(column)) for name, column in table.items()})
        module = type(table).__module__.partition(".")[0]
        if module == "pandas":
            return pa.Table.from_pandas(table, preserve_index=False)
        if module == "polars":
            return table.to_arrow()
        if module == "datasets":
            return table.with_format("arrow")[:]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"events: a column mixes types or lengths ({detail}); give one type a column") from error
    raise ConfigError(
        f"events: got {type(table).__name__}; give a dict of columns, a pandas, polars or pyarrow table, "
        f"or a datasets.Dataset"
    )


def _plain(column: Any) -> Any:
    return column.numpy() if hasattr(column, "numpy") else column


def read_events(table: Any, schema: DataSchema) -> Events:
    """Columns by the log's names (or the general `item`, `time`), rows in the user's order.

    Outcomes and context that are absent are unknown; other columns are not read.

    Raises:
        ConfigError: no item column, null or float ids, times out of range, NaN.
    """
    if isinstance(table, Events):
        return table
    arrow = to_arrow(table)
    name = _column_name(arrow, schema.item, "item")
    if name is None:
        near = difflib.get_close_matches(schema.item, arrow.column_names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; columns: {', '.join(arrow.column_names)}"
        raise ConfigError(f"events: no item column {schema.item!r}{hint}")
    count = arrow.num_rows
    return Events(
        item=_hashes(arrow[name], f"events.{name}"),
        time=_times(arrow, schema, count),
        outcomes={key: _numbers(arrow, key, count) for key in schema.outcomes},
        context={
            key: _numbers(arrow, key, count) if kind == "numeric" else _categories(arrow, key, count)
            for key, kind in schema.context.items()
        },
    )


def _column_name(arrow: pa.Table, name: str | None, general: str) -> str | None:
    for candidate in (name, general):
        if candidate is not None and candidate in arrow.column_names:
            return candidate
    return None


def _hashes(column: pa.ChunkedArray, where: str) -> NDArray[np.int64]:
    if len(column) == 0:
        return np.zeros(0, np.int64)
    if pa.types.is_floating(column.type):
        raise ConfigError(
            f"{where}: ids are floating point (first: {column[0].as_py()!r}); give integers or strings (a "
            f"float cannot hold every id)"
        )
    if column.null_count:
        raise ConfigError(f"{where}: null at row {pc.index(column.is_null(), True).as_py()}; leave that event out")
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return hash_ids(encoded.dictionary)[codes]


def _times(arrow: pa.Table, schema: DataSchema, count: int) -> NDArray[np.int64]:
    name = _column_name(arrow, schema.time, "time")
    if name is None or not schema.has_time or count == 0:
        return np.full(count, NO_TIME, np.int64)
    column = arrow[name]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64())
        factor, divide = 1, 1
    elif pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        factor, divide = MICROSECONDS.get(schema.time_unit or "s", 1), 1000 if schema.time_unit == "ns" else 1
    else:
        raise ConfigError(
            f"events.{name}: type {column.type} is no time; give integers in {schema.time_unit} or timestamps"
        )
    known = ~column.is_null().to_numpy()
    values = column.cast(pa.int64()).fill_null(0).to_numpy() // divide
    if (bad := known & ((values < 0) | (values >= MAX_TIME // factor))).any():
        value = int(values[bad][0]) * divide
        raise ConfigError(
            f"events.{name}: {value} is no time between 1970 and 2100 in {schema.time_unit}; give times in "
            f"{schema.time_unit}"
        )
    return np.where(known, values * factor, NO_TIME)


def _numbers(arrow: pa.Table, name: str, count: int) -> NDArray[np.float32]:
    if name not in arrow.column_names:
        return np.full(count, np.nan, np.float32)
    column = arrow[name]
    try:
        numbers = column.cast(pa.float32(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"events.{name}: type {column.type} is no number; give numbers or nulls") from error
    if pc.any(pc.is_nan(numbers)).as_py() and not pa.types.is_null(column.type):
        raise ConfigError(f"events.{name}: NaN; write null where the value is unknown")
    return numbers.fill_null(float("nan")).to_numpy()


def _categories(arrow: pa.Table, name: str, count: int) -> NDArray[np.int64]:
    if name not in arrow.column_names or count == 0:
        return np.zeros(count, np.int64)
    column = arrow[name]
    known = ~column.is_null().to_numpy()
    hashes = np.zeros(count, np.int64)
    if known.any():
        hashes[known] = _hashes(column.drop_null(), f"events.{name}")
    return hashes
