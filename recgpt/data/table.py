"""Tables given by a caller, checked as the log's own rows are and read as `Events` or as item features."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.columns import END_OF_TIME, FLOAT32_MAX, INT64_MAX
from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import MOST_CATEGORIES, distinct_hashes, hash_ids, padded_hashes
from recgpt.data.schema import UNITS_PER_SECOND, DataSchema, time_point
from recgpt.errors import ConfigError

SIDE_TABLES = ("features", "profile")
"""Tables whose categories may be whole numbers in floating point, as in the log's side tables."""
NEAR = 0.8
"""How alike two column names are, of 1, before one is taken for a misspelt other."""


def to_arrow(table: Any, where: str = "events") -> pa.Table:
    """A dict of columns, a pandas, polars or pyarrow table or a `datasets.Dataset` as Arrow.

    Ids never pass through floating point.

    Raises:
        ConfigError: another type, or a column that mixes types; `where` names the table in it.
    """
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
    except (ValueError, TypeError, OverflowError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{where}: a column mixes types or lengths ({detail}); give one type a column") from error
    raise ConfigError(
        f"{where}: got {type(table).__name__}; give a dict of columns, a pandas, polars or pyarrow table, "
        f"or a datasets.Dataset"
    )


def _plain(column: Any) -> Any:
    column = column.numpy() if hasattr(column, "numpy") else column
    return list(column) if isinstance(column, np.ndarray) and column.ndim == 2 else column


def read_events(table: Any, schema: DataSchema) -> Events:
    """Columns by the log's names (or the general `item`, `time`), rows in the user's order, oldest first.

    Values are held to what preparing the log demands of them. Outcomes and context that are absent are unknown; other
    columns are not read. Known times must not go backwards, even where an `order` column of its own let the log's
    times do so. `Events`, which come from a prepared log, pass unchecked.

    Raises:
        ConfigError: no item column or a misspelt other one, ids that are null or floating point, a value that its kind
            does not allow, times out of range or order.
    """
    if isinstance(table, Events):
        return table
    arrow = to_arrow(table)
    names, count = arrow.column_names, arrow.num_rows
    item = _column_name(names, schema.item, "item")
    if item is None:
        if count > 0:
            near = difflib.get_close_matches(schema.item, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; columns: {', '.join(names)}"
            raise ConfigError(f"events: no item column {schema.item!r}{hint}")
        item, arrow = schema.item, arrow.append_column(schema.item, pa.nulls(0))
    time = _column_name(names, schema.time, "time") if schema.has_time else None
    expected = {*schema.outcomes, *schema.context}
    expected |= {schema.time} if schema.has_time and schema.time and time is None else set()
    refuse_misspelt(names, expected, {item, time, schema.user}, "events")
    return Events(
        item=_hashes(arrow[item], f"events.{item}", required=True),
        time=_times(arrow[time], f"events.{time}", schema.time_unit) if time else np.full(count, NO_TIME, np.int64),
        outcomes={name: _column(arrow, name, kind, "events") for name, kind in schema.outcomes.items()},
        context={name: _column(arrow, name, kind, "events") for name, kind in schema.context.items()},
    )


def read_profile(profile: Mapping[str, Any] | None, schema: DataSchema) -> dict[str, int | float]:
    """What is known of one user, by the names of the users table; what is absent or None is unknown.

    Raises:
        ConfigError: a name that the model does not read, or a value that its kind does not allow.
    """
    return _scalars(profile or {}, schema.profile, "profile")


def read_want(want: Mapping[str, Any], schema: DataSchema) -> dict[str, int | float]:
    """The outcomes that a recommended item is to have, by the log's names; what is absent or None may be any (NaN).

    Raises:
        ConfigError: a name that is no outcome of the log, or a value that its kind does not allow.
    """
    return _scalars(want, schema.outcomes, "want")


def read_context(context: Mapping[str, Any] | None, schema: DataSchema) -> tuple[dict[str, int | float], int]:
    """What is known of one request, by the log's names, and its time in microseconds (or `NO_TIME`).

    Raises:
        ConfigError: a name that the model does not read, or a value that its kind does not allow.
    """
    given = dict(context or {})
    clocks = [name for name in given if name not in schema.context]  # a context column may be called `time`
    clock = _column_name(clocks, schema.time, "time") if schema.has_time else None
    moment = given.pop(clock) if clock else None
    known = _scalars(given, schema.context, "context", [schema.time or "time"] if schema.has_time else [])
    if moment is None:
        return known, NO_TIME
    where = f"context.{clock}"
    if isinstance(moment, str):
        return known, _moment(moment, where)
    return known, int(_times(_one(moment, where), where, schema.time_unit)[0])


def _moment(text: str, where: str) -> int:
    """ISO text in microseconds since 1970 UTC, held to the range of the log's times."""
    try:
        moment = time_point(text, "us")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not 0 <= moment < END_OF_TIME * 10**6:
        raise ConfigError(f"{where}: {text!r} is no time from 1970 to 2099; correct the clock")
    return moment


def _scalars(
    given: Mapping[str, Any], kinds: Mapping[str, str], where: str, also: Sequence[str] = ()
) -> dict[str, int | float]:
    for name in given:
        if name not in kinds:
            known = [*kinds, *also]
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it reads {', '.join(known) or 'none'}"
            raise ConfigError(f"{where}.{name}: this model reads no such value; {hint}")
    table = pa.table({name: _one(given.get(name), f"{where}.{name}") for name in kinds})
    return {name: _column(table, name, kind, where)[0].item() for name, kind in kinds.items()}


def _one(value: Any, where: str) -> pa.ChunkedArray:
    try:
        return pa.chunked_array([pa.array([value])])
    except (pa.ArrowInvalid, OverflowError, TypeError) as error:
        raise ConfigError(f"{where}: {value!r} is no number and no text ({' '.join(str(error).split())})") from error


def read_features(table: Any, schema: DataSchema, count: int) -> tuple[dict[str, NDArray], NDArray[np.float32] | None]:
    """Static features of `count` items and their content vectors, as far as the table has them.

    Args:
        table: one row an item; the schema's features by name (of `categories`, a list an item), and `embedding`, a list
            of numbers (null = none).
        schema: names, kinds and the vectors' width dc.
        count: C, the rows it must have.

    Returns:
        name -> int64 [C] or [C, W] hashes or float32 [C], and float32 [C, dc] (NaN rows = none) or None.

    Raises:
        ConfigError: a wrong number of rows, a misspelt column, a value or vector that is not allowed.
    """
    arrow = to_arrow(table, "features")
    if arrow.num_rows != count:
        raise ConfigError(f"features: {arrow.num_rows} rows for {count} items; give one row an item")
    content = {"embedding"} if schema.content_dim else set()
    refuse_misspelt(arrow.column_names, {*schema.features, *content}, {schema.item}, "features")
    given = {name: kind for name, kind in schema.features.items() if name in arrow.column_names}
    columns = {name: _column(arrow, name, kind, "features") for name, kind in given.items()}
    if not schema.content_dim or "embedding" not in arrow.column_names:
        return columns, None
    return columns, _vectors(arrow["embedding"], "features.embedding", schema.content_dim)


def refuse_misspelt(names: list[str], expected: Collection[str], taken: Collection[str | None], where: str) -> None:
    """Refuse a table that lacks an expected column but has, among the columns nothing reads, one of a near name."""
    spare = [name for name in names if name not in expected and name not in taken]
    for name in sorted(set(expected) - set(names)):
        if near := difflib.get_close_matches(name, spare, 1, NEAR):
            raise ConfigError(
                f"{where}.{near[0]}: this model reads no such column; did you mean {name!r}? rename it, or leave it out"
            )


def _column_name(names: list[str], name: str | None, general: str) -> str | None:
    return next((each for each in (name, general) if each in names), None)


def _column(arrow: pa.Table, name: str, kind: str, where: str) -> NDArray:
    """An outcome, context or feature column; absent = unknown throughout."""
    column = arrow[name] if name in arrow.column_names else pa.chunked_array([pa.nulls(arrow.num_rows)])
    if kind == "categorical":
        if where in SIDE_TABLES and pa.types.is_floating(column.type) and _whole(column):
            column = column.cast(pa.int64())
        return _hashes(column, f"{where}.{name}", required=False)
    if kind == "categories":
        return _categories(column, f"{where}.{name}")
    return _numbers(column, f"{where}.{name}", kind)


def _categories(column: pa.ChunkedArray, where: str) -> NDArray[np.int64]:
    """Lists of categories as hashes [C, W], 0 after the last; null = none."""
    kind = column.type
    if len(column) == 0 or pa.types.is_null(kind):
        return np.zeros((len(column), 1), np.int64)
    if not hasattr(kind, "value_type") or pa.types.is_dictionary(kind):
        raise ConfigError(f"{where}: type {kind} is no list; give a list of integers or strings for each item")
    whole = pa.concat_arrays(column.cast(pa.large_list(kind.value_type)).chunks)
    whole = whole.take(pa.array(np.arange(len(whole))))  # what lies beneath a null goes
    hashes = _hashes(pa.chunked_array([pc.list_flatten(whole)]), where, required=False)
    row, hashes = distinct_hashes(pc.list_parent_indices(whole).to_numpy(), hashes)
    count = np.bincount(row, minlength=len(whole))
    if count.max(initial=0) > MOST_CATEGORIES:
        told = f"{count.max():,} values at row {count.argmax()}, and at most {MOST_CATEGORIES} may be"
        raise ConfigError(f"{where}: {told}; keep those that say most")
    return padded_hashes(row, hashes, count)


def _refuse(column: pa.ChunkedArray, bad: NDArray[np.bool_], where: str, says: str, remedy: str) -> None:
    """Raise for the first row that is bad."""
    if bad.any():
        row = int(np.argmax(bad))
        raise ConfigError(f"{where}: {_shown(column[row])} at row {row} {says}; {remedy}")


def _shown(value: pa.Scalar) -> str:
    kind = value.type
    if pa.types.is_timestamp(kind):
        value = value.cast(pa.timestamp(kind.unit))  # in UTC
    return value.cast(pa.string()).as_py() if pa.types.is_temporal(kind) else repr(value.as_py())


def _hashes(column: pa.ChunkedArray, where: str, required: bool) -> NDArray[np.int64]:
    """Hashes of an id column, or of a categorical one (null and '' = unknown: 0; booleans count as 0 and 1)."""
    if len(column) == 0:
        return np.zeros(0, np.int64)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = column.cast(pa.string()) if str(column.type) == "string_view" else column
    kind = column.type
    if pa.types.is_floating(kind):
        raise ConfigError(
            f"{where}: ids are floating point (first: {column[0].as_py()!r}); give integers or strings (a float cannot "
            f"hold every id; in pandas: astype('Int64'))"
        )
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
    elif pa.types.is_boolean(kind) and not required:
        column = column.cast(pa.int8())
    elif kind == pa.uint64():
        above = pc.fill_null(pc.greater(column, pa.scalar(INT64_MAX, kind)), False).to_numpy()
        _refuse(column, above, where, "is above 2^63-1", "give such ids as text")
    elif not pa.types.is_integer(kind) and not pa.types.is_null(kind):
        raise ConfigError(f"{where}: type {kind} is no id; give integers or strings")
    if required and column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ConfigError(f"{where}: null or empty at row {row}; leave that event out")
    if pa.types.is_null(kind):
        return np.zeros(len(column), np.int64)
    distinct = column.drop_null().unique()
    codes = pc.fill_null(pc.index_in(column, value_set=distinct), len(distinct)).to_numpy()
    return np.append(hash_ids(distinct), 0)[codes]


def _whole(column: pa.ChunkedArray) -> bool:
    """Whether all are integers that a float holds exactly: what pandas makes of integers where some are missing."""
    values = column.drop_null().to_numpy()
    return bool(np.all((values == np.floor(values)) & (np.abs(values) < 2**53)))


def _times(column: pa.ChunkedArray, where: str, unit: str) -> NDArray[np.int64]:
    """A clock in microseconds since 1970 UTC; null = `NO_TIME`."""
    kind, remedy = column.type, f"give times in {unit}"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("ms")) if pa.types.is_date(kind) else column
        unit, ticks, remedy = column.type.unit, column.cast(pa.int64()), "correct the clock"
    elif pa.types.is_integer(kind) or pa.types.is_float64(kind) or pa.types.is_null(kind):
        ticks = column.cast(pa.int64()) if pa.types.is_null(kind) else column
    else:
        raise ConfigError(f"{where}: type {kind} is no time; give integers in {unit} or timestamps")
    per_second = UNITS_PER_SECOND[unit]
    known = column.is_valid().to_numpy()
    values = ticks.fill_null(0).to_numpy()
    _refuse(column, np.isnan(values), where, "is no time", "give null where the time is unknown")
    outside = (values < 0) | (values >= END_OF_TIME * per_second)
    _refuse(column, outside, where, "is no time from 1970 to 2099", remedy)
    time = np.where(known, _microseconds(values, per_second), NO_TIME)
    rows = np.flatnonzero(known)
    backwards = np.zeros(len(time), np.bool_)
    backwards[rows[1:]] = np.diff(time[rows]) < 0
    _refuse(column, backwards, where, "is before the event above it", "give events oldest first")
    return time


def _microseconds(ticks: NDArray, per_second: int) -> NDArray[np.int64]:
    """Integers are floored to microseconds, fractions rounded to the nearest (a half up)."""
    if ticks.dtype.kind == "f":
        exact = ticks * (10**6 / per_second)
        whole = np.floor(exact)
        return (whole + (exact - whole >= 0.5)).astype(np.int64)
    ticks = ticks.astype(np.int64)
    return ticks // (per_second // 10**6) if per_second > 10**6 else ticks * (10**6 // per_second)


def _numbers(column: pa.ChunkedArray, where: str, kind: str) -> NDArray[np.float32]:
    """A numeric column, null = NaN; `kind` says which numbers may stand in it."""
    dtype = column.type
    if pa.types.is_null(dtype):
        return np.full(len(column), np.nan, np.float32)
    known_types = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(fits(dtype) for fits in known_types):
        raise ConfigError(f"{where}: type {dtype} is no number; give numbers or nulls")
    values = column.cast(pa.float64(), safe=False).fill_null(0).to_numpy()
    unknown = "give null where the value is unknown"
    _refuse(column, np.isnan(values), where, "is no number", unknown)
    _refuse(column, np.abs(values) > FLOAT32_MAX, where, "is not finite", unknown)
    if kind == "binary":
        _refuse(column, (values != 0) & (values != 1), where, "is not 0 or 1", "give 0, 1 or null")
    if kind == "watch_time":
        _refuse(column, values < 0, where, "is a negative watch time", "give zero or more")
    return np.where(column.is_valid().to_numpy(), values, np.nan).astype(np.float32)


def _vectors(column: pa.ChunkedArray, where: str, width: int) -> NDArray[np.float32]:
    """Content vectors [C, width]; null = a NaN row."""
    vectors = np.full((len(column), width), np.nan, np.float32)
    for row, values in enumerate(column.to_pylist()):
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != width:
            size = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise ConfigError(f"{where}: {size} at row {row}; the model reads {width} numbers an item")
        if not all(isinstance(value, int | float) and abs(value) <= FLOAT32_MAX for value in values):
            raise ConfigError(f"{where}: the vector at row {row} holds NaN or null; give null where there is no vector")
        vectors[row] = values
    return vectors
