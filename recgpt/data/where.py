"""SQL conditions over one row (`where` and its kin): parsed and checked before the engine sees them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from recgpt.data.engine import IMPRESSION, KEEP, TEST, VALID
from recgpt.data.schema import DataConfig, WhereSplit
from recgpt.data.source import Source, TextStats, missing_column
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir


def conditions(config: DataConfig) -> list[Where]:
    """All conditions of a config, parsed.

    Raises:
        ConfigError: one is no SQL condition.
    """
    found = []
    if config.where is not None:
        found.append(Where(config.where, "data.where", KEEP))
    if isinstance(config.split, WhereSplit):
        found.append(Where(config.split.valid, "data.split.valid", VALID))
        found.append(Where(config.split.test, "data.split.test", TEST))
    if config.impressions is not None and config.impressions.where is not None:
        found.append(Where(config.impressions.where, "data.impressions.where", IMPRESSION))
    return found


class Where:
    """A condition, parsed.

    Args:
        sql: the condition as written.
        key: its config key, for errors.
        column: the column that `apply` adds.

    Raises:
        ConfigError: it is no SQL condition over the columns of one row.
    """

    def __init__(self, sql: str, key: str, column: str) -> None:
        import sqlglot
        from sqlglot import expressions as exp

        self.sql, self.key, self.column = sql, key, column
        try:
            parsed = sqlglot.parse(sql, dialect="duckdb")
        except sqlglot.errors.SqlglotError as error:
            raise self._error(str(error)) from error
        whole = parsed[0] if len(parsed) == 1 else None
        if whole is None or not isinstance(whole, exp.Condition):
            raise self._error("it is no single condition")
        if whole.find(exp.Query, exp.AggFunc, exp.Window, exp.Star):
            raise self._error("it may only compare columns of the same row")
        self.parsed = whole

    def _error(self, detail: str) -> ConfigError:
        detail = re.sub(r"\x1b\[[0-9;]*m", "", detail).strip().split("\n")[0]
        return ConfigError(f"{self.key}: {self.sql!r} is no SQL condition ({detail}); write one such as part != 'test'")

    def names_in(self, columns: list[str]) -> list[str]:
        """The columns that the condition reads, spelt as in the file."""
        from sqlglot import expressions as exp

        spelt = {name.lower(): name for name in columns}
        named = dict.fromkeys(column.name for column in self.parsed.find_all(exp.Column))
        return [spelt.get(name.lower(), name) for name in named]

    def require(self, source: Source) -> None:
        """Refuse a column that the files do not have, naming the nearest.

        Raises:
            ConfigError: a column is missing.
        """
        for name in self.names_in(source.columns):
            if name not in source.columns:
                line = missing_column(self.key, name, source.columns, source.files[0])
                raise ConfigError(f"{line}; a text stands in single quotes")

    def apply(self, source: Source, stats: dict[str, TextStats]) -> ir.Table:
        """The table with the condition as one more column; texts that are numbers throughout compare as numbers."""
        import duckdb
        from sqlglot import expressions as exp

        names = self.names_in(source.columns)
        named = dict.fromkeys(column.name for column in self.parsed.find_all(exp.Column))
        spelt = dict(zip(named, names, strict=True))

        def as_typed(node: Any) -> Any:
            if not isinstance(node, exp.Column) or not source.text:
                return node
            stat = stats[spelt[node.name]]
            text = exp.func("NULLIF", node.copy(), exp.Literal.string(""))
            if not stat.is_number:
                return text
            return exp.TryCast(this=text, to=exp.DataType.build("BIGINT" if stat.is_integer else "DOUBLE"))

        sql = self.parsed.copy().transform(as_typed).sql(dialect="duckdb")
        try:
            table = source.engine.condition(f"log{self.column}", source.table, sql, self.column)
        except duckdb.Error as error:
            raise self._error(str(error)) from error
        kind = table.schema()[self.column]
        if not kind.is_boolean():
            raise self._error(f"its type is {kind}, not boolean")
        return table
