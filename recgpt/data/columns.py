"""One column of a log as it is becomes values: ids, numbers, sort keys, clocks; and why a row is rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from recgpt.data.schema import UNITS_PER_SECOND, DataConfig
from recgpt.data.source import Source, TextStats
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir

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


class Columns:
    """Reads typed columns of a log and collects the checks that its rows must pass."""

    def __init__(self, config: DataConfig, source: Source, stats: dict[str, TextStats]) -> None:
        self.config = config
        self.source = source
        self.stats = stats
        self.table = source.table
        self.checks: list[Check] = []
        self.ticks: tuple[ir.IntegerColumn, int] | None = None
        """The clock as the log has it, even out of range, and its unit in microseconds, if that is a whole number."""

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
        if value.type().is_floating():
            self.reject(is_nan(value), "NaN", key, name, "number the events by integers")
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
        scale = 10**6 // per_second
        if not (value.type().is_unsigned_integer() and value.type().nbytes == 8):
            self.ticks = value.cast("int64"), scale
        return ticks * scale


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
