"""From columns as they are to events as they must be: types, and why a row is rejected.

Everything here builds Ibis expressions; nothing is computed but the statistics that decide the types of text columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recgpt.data.columns import END_OF_TIME, Check, Columns
from recgpt.data.engine import IMPRESSION, KEEP, ROW, TEST, VALID, Engine
from recgpt.data.logs import find_files
from recgpt.data.schema import UNITS_PER_SECOND, ColumnSplit, DataConfig, TargetConfig, WhereSplit
from recgpt.data.source import Source, open_source
from recgpt.data.where import conditions
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir

FILTERED = -1
WHY, TICKS = "__why", "__ticks"


@dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        source: the files.
        typed: the input's columns and, beside them, the events' columns, which start with `__`:
            why (null = kept, `FILTERED`, or an index of `checks`), user, item, order, time, tie.N,
            o.NAME, c.NAME, target, part, impression; ticks (with `tick`), the clock as the log has it.
        checks: what `__why` says.
        tick: microseconds of the clock's unit, where the clock is the order and that is a whole number; else None.
    """

    source: Source
    typed: ir.Table
    checks: list[Check]
    tick: int | None = None

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
        ConfigError: a missing file or column, a column of a wrong type, a bad condition.
    """
    files = find_files(config.events, "data.events")
    if config.order == "row" and len(files) > 1:
        raise ConfigError(
            f"data.order: row needs a single file, data.events matches {len(files)}"
            f" ({files[0].name}, {files[1].name}, ...); name a column that sorts a user's events"
        )
    wheres = conditions(config)
    used = used_columns(config)

    def named(columns: list[str]) -> list[str]:
        return [name for where in wheres for name in where.names_in(columns)]

    source = open_source(
        engine,
        "log",
        files,
        config.format,
        "data.events",
        scratch,
        used,
        named,
        told,
    )
    for where in wheres:
        where.require(source)
    stats = source.text_stats([*used.values(), *named(source.columns)]) if source.text else {}
    for where in wheres:
        source.table = where.apply(source, stats)
    return _Events(config, source, stats).log()


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


class _Events(Columns):
    """Builds the events' columns."""

    def log(self) -> Log:
        """Put all columns together."""
        config, table = self.config, self.table
        tick: int | None = None
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
            if self.ticks is not None:
                columns[TICKS], tick = self.ticks
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
        columns["__impression"] = self.condition(IMPRESSION)
        return Log(self.source, table.mutate(**columns, **{WHY: self.why()}), self.checks, tick)

    def why(self) -> ir.IntegerColumn:
        """Null for events, `FILTERED`, or the index of the first check that fails."""
        import ibis

        branches = [(check.condition, index) for index, check in enumerate(self.checks)]
        if KEEP in self.table.columns:
            branches.insert(0, (~self.condition(KEEP), FILTERED))
        return ibis.cases(*branches, else_=ibis.null("int64")).cast("int64")

    def target(self, columns: dict[str, Any]) -> ir.BooleanValue:
        """Whether the event is a next-item target."""
        import ibis

        target = self.config.target
        if not isinstance(target, TargetConfig):
            return ibis.literal(True)
        return (columns[f"__o.{target.outcome}"] >= target.min).fill_null(False)

    def condition(self, column: str) -> ir.BooleanValue:
        """Whether a row meets a condition of the config; unknown means no, an absent condition is met by all rows."""
        import ibis

        return self.table[column].fill_null(False) if column in self.table.columns else ibis.literal(True)

    def part(self) -> ir.IntegerValue:
        """0 = training, 1 = validation, 2 = test, by the split's column or conditions; 0 for other splits."""
        import ibis

        split = self.config.split
        if isinstance(split, WhereSplit):
            return ibis.cases((self.condition(TEST), 2), (self.condition(VALID), 1), else_=0)
        if not isinstance(split, ColumnSplit):
            return ibis.literal(0)
        text = self.table[split.column].cast("string")
        return ibis.cases(
            (text.isin([str(value) for value in split.valid]), 1),
            (text.isin([str(value) for value in split.test]), 2),
            else_=0,
        )


def likely_unit(value: int | float) -> str | None:
    """The time unit that puts a number between 1990 and 2100, if one does."""
    for unit, per_second in UNITS_PER_SECOND.items():
        if 631_152_000 * per_second <= value < END_OF_TIME * per_second:
            return unit
    return None
