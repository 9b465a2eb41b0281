"""From columns as they are to events as they must be: types, and why a row is rejected.

Everything here builds Ibis expressions; nothing is computed but the statistics that decide the types of text columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recgpt.data.engine import KEEP, ROW, Engine
from recgpt.data.logs import find_files
from recgpt.data.schema import UNITS_PER_SECOND, ColumnSplit, DataConfig, TargetConfig
from recgpt.data.source import Source, TextStats, open_source
from recgpt.data.where import Where
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir

FILTERED = -1
WHY = "__why"
END_OF_TIME = 4_102_444_800
"""Seconds from 1970 to 2100."""
INT64_MAX = 2**63 - 1
FLOAT32_MAX = 3.4028234e38
FLOAT64_MAX = 1.7976931348623157e308


class Check(NamedTuple):
    """One way in which a row can be bad."""

    condition: ir.BooleanValue
    reason: str
    field: str
    column: str
    remedy: str


@dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        source: the files.
        typed: the input's columns and, beside them, the events' columns, which start with `__`:
            why (null = kept, `FILTERED`, or an index of `checks`), user, item, order, time, tie.N,
            o.NAME, c.NAME, target, part.
        checks: what `__why` says.
    """

    source: Source
    typed: ir.Table
    checks: list[Check]

    @property
    def kept(self) -> ir.Table:
        """The events: rows that are neither filtered nor rejected."""
        return self.typed.filter(self.typed[WHY].isnull())


def read_log(
    engine: Engine,
    config: DataConfig,
    scratch: Path,
    told: Callable[[int], None] = lambda rows: None,
) -> Log:
    """Open the log of `config`.

    Args:
        engine: the query engine.
        config: the data section.
        scratch: folder for parsed text.
        told: called with the number of text rows parsed so far.

    Raises:
        ConfigError: a missing file or column, a column of a wrong type, a bad `where`.
    """
    files = find_files(config.events, "data.events")
    if config.order == "row" and len(files) > 1:
        raise ConfigError(
            f"data.order: row needs a single file, data.events matches {len(files)}"
            f" ({files[0].name}, {files[1].name}, ...); name a column that sorts a user's events"
        )
    condition = Where(config.where) if config.where is not None else None
    used = used_columns(config)
    source = open_source(
        engine,
        "log",
        files,
        config.format,
        "data.events",
        scratch,
        used,
        condition.names_in if condition else lambda columns: (),
        told,
    )
    if condition is not None:
        condition.require(source)
    names = list(used.values()) + (condition.names_in(source.columns) if condition else [])
    stats = source.text_stats(names) if source.text else {}
    if condition is not None:
        source.table = condition.apply(source, stats)
    return _Typing(config, source, stats).log()


def used_columns(config: DataConfig) -> dict[str, str]:
    """Config key -> column of the log."""
    used = {"data.user": config.user, "data.item": config.item}
    if config.order not in (None, "row"):
        used["data.order"] = str(config.order)
    if config.time is not None:
        used["data.time"] = config.time
    used |= {f"data.tie[{index}]": name for index, name in enumerate(config.tie)}
    used |= {f"data.outcomes.{name}": name for name in config.outcomes}
    used |= {f"data.context.{name}": name for name in config.context}
    if isinstance(config.split, ColumnSplit):
        used["data.split.column"] = config.split.column
    return used


class _Typing:
    """Builds the typed columns of a log and the checks that its rows must pass."""

    def __init__(self, config: DataConfig, source: Source, stats: dict[str, TextStats]) -> None:
        self.config = config
        self.source = source
        self.stats = stats
        self.table = source.table
        self.checks: list[Check] = []

    def log(self) -> Log:
        """Put all columns together."""
        config, table = self.config, self.table
        columns: dict[str, Any] = {
            "__user": self.id(config.user, "data.user", required=True),
            "__item": self.id(config.item, "data.item", required=True),
        }
        time = self.time(config.time) if config.time is not None else None
        if config.order == "row":
            columns["__order"] = table[ROW]
        elif config.order is not None:
            columns["__order"] = self.sort_key(config.order, "data.order", required=True)
        else:
            columns["__order"] = time
            self.reject(
                columns["__order"].isnull(),
                "null time",
                "data.time",
                config.time or "",
                "give data.order too, then an unknown time is allowed",
            )
        if time is not None:
            columns["__time"] = time
        for index, name in enumerate(config.tie):
            columns[f"__tie.{index}"] = self.sort_key(name, f"data.tie[{index}]", required=False)
        for name, outcome in config.outcomes.items():
            columns[f"__o.{name}"] = self.number(name, f"data.outcomes.{name}", outcome.kind)
        for name, context in config.context.items():
            key = f"data.context.{name}"
            if context.kind == "categorical":
                columns[f"__c.{name}"] = self.id(name, key, required=False)
            else:
                columns[f"__c.{name}"] = self.number(name, key, "numeric")
        columns["__target"] = self.target(columns)
        columns["__part"] = self.part()
        return Log(self.source, table.mutate(**columns, **{WHY: self.why()}), self.checks)

    def why(self) -> ir.IntegerColumn:
        """Null for events, `FILTERED`, or the index of the first check that fails."""
        import ibis

        branches = [(check.condition, index) for index, check in enumerate(self.checks)]
        if KEEP in self.table.columns:
            branches.insert(0, (~self.table[KEEP].fill_null(False), FILTERED))
        return ibis.cases(*branches, else_=ibis.null("int64")).cast("int64")

    def reject(self, condition: ir.BooleanValue, reason: str, key: str, column: str, remedy: str) -> None:
        """Rows that meet the condition are rejected."""
        self.checks.append(Check(condition, reason, key, column, remedy))

    def id(self, name: str, key: str, required: bool) -> ir.Column:
        """An id or categorical column as int64 or text, null where null or empty."""
        column, dtype = self.table[name], self.table[name].type()
        if dtype.is_string():
            value = column.nullif("")
            stat = self.stats.get(name)
            if stat is not None and stat.is_integer:
                value = value.cast("int64")
            elif stat is not None and stat.is_number and stat.with_point:
                raise ConfigError(_float_ids(key, name, "numbers with a decimal point"))
        elif dtype.is_integer() or (dtype.is_boolean() and not required):
            value = column
            if dtype.is_unsigned_integer() and dtype.nbytes == 8:
                self.reject(value > INT64_MAX, "id above 2^63-1", key, name, "cast the column to text")
                value = (value <= INT64_MAX).ifelse(value, None)
            value = value.cast("int64")
        elif dtype.is_floating():
            raise ConfigError(_float_ids(key, name, str(dtype)))
        else:
            raise ConfigError(f"{key}: column {name!r} is {dtype}; ids are integers or text, so cast it to one")
        if required:
            self.reject(
                value.isnull(),
                "null or empty id",
                key,
                name,
                "remove these rows, or filter them by data.where",
            )
        return value

    def number(self, name: str, key: str, kind: str) -> ir.FloatingColumn:
        """An outcome or a numeric column as float64, null = unknown."""
        column, dtype = self.table[name], self.table[name].type()
        if self.source.text:
            value = column.nullif("").try_cast("float64")
            self.reject(
                (column != "") & value.isnull(),
                "not a number",
                key,
                name,
                "correct the text or leave it empty",
            )
        elif dtype.is_numeric() or dtype.is_boolean():
            value = (column.cast("int64") if dtype.is_boolean() else column).cast("float64")
        else:
            raise ConfigError(f"{key}: column {name!r} is {dtype}, not a number; cast it or drop it from the config")
        if self.source.text or dtype.is_floating():
            self.reject(is_nan(value), "NaN", key, name, "write null where the value is unknown")
            self.reject(
                value.abs() > FLOAT32_MAX,
                "not finite",
                key,
                name,
                "write null where the value is unknown",
            )
        if kind == "binary":
            self.reject(
                value.notin([0.0, 1.0]),
                "outcome is not 0 or 1",
                key,
                name,
                "declare its kind as regression, or write 0 and 1",
            )
        if kind == "watch_time":
            self.reject(
                value < 0,
                "negative watch time",
                key,
                name,
                "declare its kind as regression, or correct it",
            )
        return value

    def sort_key(self, name: str, key: str, required: bool) -> ir.Column:
        """A column that events are sorted by."""
        column, dtype = self.table[name], self.table[name].type()
        if self.source.text:
            return self._text_sort_key(name, key, required)
        if dtype.is_floating():
            self.reject(is_nan(column), "NaN", key, name, "number the events by integers")
            value = column.cast("float64")
        elif dtype.is_unsigned_integer() and dtype.nbytes == 8:
            self.reject(
                column > INT64_MAX,
                "above 2^63-1",
                key,
                name,
                "number the events by smaller integers",
            )
            value = (column <= INT64_MAX).ifelse(column, None).cast("int64")
        elif dtype.is_integer():
            value = column.cast("int64")
        elif dtype.is_temporal() or (dtype.is_string() and not required):
            value = column
        else:
            raise ConfigError(f"{key}: column {name!r} is {dtype}; order by numbers or timestamps, so cast it to one")
        self._require_order(value, name, key, required)
        return value

    def _text_sort_key(self, name: str, key: str, required: bool) -> ir.Column:
        stat, text = self.stats[name], self.table[name].nullif("")
        if stat.integers and stat.integers * 2 >= stat.filled and stat.numbers == stat.integers:
            value: ir.Column = text.try_cast("int64")
        elif stat.numbers * 2 >= stat.filled:
            value = text.try_cast("float64")
        elif stat.moments * 2 >= stat.filled:
            value = text.try_cast("timestamp('UTC')")
        elif required:
            raise ConfigError(f"{key}: column {name!r} is text; order by numbers or timestamps")
        else:
            return text
        self.reject(text.notnull() & value.isnull(), "not sortable", key, name, "correct the text")
        self._require_order(value, name, key, required)
        return value

    def _require_order(self, value: ir.Column, name: str, key: str, required: bool) -> None:
        if required:
            self.reject(
                value.isnull(),
                "null order",
                key,
                name,
                "number these events, or filter them by data.where",
            )

    def time(self, name: str) -> ir.IntegerColumn:
        """The clock in microseconds since 1970 UTC, null = unknown."""
        key, column, dtype = "data.time", self.table[name], self.table[name].type()
        if self.source.text:
            stat, text = self.stats[name], column.nullif("")
            if stat.moments > stat.numbers:
                value: ir.Column = text.try_cast("timestamp('UTC')")
            else:
                value = text.try_cast("int64" if stat.numbers == stat.integers else "float64")
            self.reject(
                text.notnull() & value.isnull(),
                "not a time",
                key,
                name,
                "correct the text or leave it empty",
            )
        elif dtype.is_timestamp() or dtype.is_date():
            value = column.cast("timestamp('UTC')")
        elif dtype.is_integer() or dtype.is_float64():
            value = column
        else:
            raise ConfigError(
                f"{key}: column {name!r} is {dtype}; a clock is an integer or a timestamp, so cast it to one"
            )
        if value.type().is_timestamp():
            return self._moments(value, name)
        return self._ticks(value, name)

    def _moments(self, value: ir.TimestampValue, name: str) -> ir.IntegerColumn:
        import ibis

        start, end = ibis.timestamp("1970-01-01 00:00:00"), ibis.timestamp("2100-01-01 00:00:00")
        naive = value.cast("timestamp")
        inside = (naive >= start) & (naive < end)
        self.reject(
            ~inside,
            "time out of range",
            "data.time",
            name,
            "times lie from 1970 to 2099; correct the clock",
        )
        return inside.ifelse(naive, None).delta(start, unit="microsecond").cast("int64")

    def _ticks(self, value: ir.NumericColumn, name: str) -> ir.IntegerColumn:
        unit = self.config.time_unit
        per_second = UNITS_PER_SECOND[unit]
        if value.type().is_floating():
            self.reject(is_nan(value), "NaN", "data.time", name, "write null where the time is unknown")
        inside = (value >= 0) & (value < END_OF_TIME * per_second)
        self.reject(
            ~inside,
            "time out of range",
            "data.time",
            name,
            f"as time_unit {unit} it lies outside 1970 to 2099; set data.time_unit",
        )
        ticks = inside.ifelse(value, None)
        if value.type().is_floating():
            return (ticks * (10**6 / per_second)).round().cast("int64")
        ticks = ticks.cast("int64")
        if unit == "ns":
            # `//` goes through doubles here; a multiple of 1000 divides nearly enough to round
            return ((ticks - ticks % 1000) / 1000).round().cast("int64")
        return ticks * (10**6 // per_second)

    def target(self, columns: dict[str, Any]) -> ir.BooleanValue:
        """Whether the event is a next-item target."""
        import ibis

        target = self.config.target
        if not isinstance(target, TargetConfig):
            return ibis.literal(True)
        return (columns[f"__o.{target.outcome}"] >= target.min).fill_null(False)

    def part(self) -> ir.IntegerValue:
        """0 = training, 1 = validation, 2 = test, by the split column; 0 for other splits."""
        import ibis

        split = self.config.split
        if not isinstance(split, ColumnSplit):
            return ibis.literal(0)
        text = self.table[split.column].cast("string")
        return ibis.cases(
            (text.isin([str(value) for value in split.valid]), 1),
            (text.isin([str(value) for value in split.test]), 2),
            else_=0,
        )


def is_nan(column: ir.FloatingColumn) -> ir.BooleanColumn:
    """Whether a value is NaN, whatever the file's statistics say.

    Parquet's minimum and maximum leave NaN out, and DuckDB concludes from them that a column has none: a plain `isnan`
    is then false on every row. It does not see through `nullif` (a test pins it).
    """
    return column.nullif(FLOAT64_MAX).isnan()


def _float_ids(key: str, name: str, found: str) -> str:
    return (
        f"{key}: column {name!r} is {found}; floating point cannot hold every id, so write the ids as"
        " integers or text (in pandas: astype('Int64'))"
    )


def likely_unit(value: int | float) -> str | None:
    """The time unit that puts a number between 1990 and 2100, if one does."""
    for unit, per_second in UNITS_PER_SECOND.items():
        if 631_152_000 * per_second <= value < END_OF_TIME * per_second:
            return unit
    return None
