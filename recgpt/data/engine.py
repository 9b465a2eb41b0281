"""The one place that speaks to the query engine; all else is Ibis expressions, which other engines run too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from recgpt.errors import ConfigError, RecGPTError

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

FILE, ROW = "__file", "__row"
"""Columns that `Engine.parquet` adds: file number, row within it."""
KEEP, VALID, TEST, IMPRESSION = "__keep", "__valid", "__test", "__impressed"
"""Columns that `Engine.condition` adds: those of `where`, of a split by conditions, of `impressions.where`."""


class Engine:
    """DuckDB through Ibis within a memory limit; sorts and joins beyond it spill to `scratch`.

    Args:
        memory_limit: such as "2GB".
        scratch: folder for spilled data; it need not exist.
    """

    def __init__(self, memory_limit: str, scratch: Path) -> None:
        import ibis

        self.backend = ibis.duckdb.connect(
            memory_limit=memory_limit,
            temp_directory=str(scratch),
            preserve_insertion_order=False,  # row numbers keep the order; this would cost memory
            autoinstall_known_extensions=False,
            autoload_known_extensions=False,
        )
        self.backend.raw_sql("SET TimeZone = 'UTC'")
        self.files: list[Path] = []

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.backend.disconnect()

    def parquet(self, name: str, paths: Sequence[Path]) -> ir.Table:
        """A view of Parquet files with two more columns: the file's number and the row's number in it."""
        self.files += paths
        files = ", ".join(quote_text(str(path)) for path in paths)
        table = f"read_parquet([{files}], union_by_name = true)"
        types = self.backend.con.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        # Ibis does not know nanoseconds with a zone, which pandas writes; microseconds are what is kept anyway.
        moments = [quote_name(column) for column, kind, *_ in types if kind == "TIMESTAMPTZ_NS"]
        plain = ", ".join(f"{column}::TIMESTAMPTZ AS {column}" for column in moments)
        every = f"* REPLACE ({plain})" if moments else "*"
        self.backend.raw_sql(
            f'CREATE VIEW {quote_name(name)} AS SELECT {every}, file_index::BIGINT AS "{FILE}",'
            f' file_row_number AS "{ROW}" FROM {table}'
        )
        return self.backend.table(name)

    def condition(self, name: str, table: ir.Table, sql: str, column: str) -> ir.Table:
        """A view of `table` with one more column, the boolean SQL expression."""
        self.backend.raw_sql(
            f"CREATE VIEW {quote_name(name)} AS SELECT *, ({sql}) AS {quote_name(column)}"
            f" FROM {quote_name(table.get_name())}"
        )
        return self.backend.table(name)

    def arrow(self, name: str, table: pa.Table) -> ir.Table:
        """A view of an Arrow table in memory."""
        self.backend.con.register(name, table)
        return self.backend.table(name)

    def fetch(self, expression: ir.Table) -> pa.Table:
        """Run an expression and hold its result in memory."""
        with _failure_told(self.files):
            return self._reader(expression, 1 << 20).read_all()

    def batches(self, expression: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Run an expression and stream its result in batches of about `rows` rows."""
        with _failure_told(self.files):
            yield from self._reader(expression, rows)

    def interrupt(self) -> None:
        """Break off what another thread runs."""
        self.backend.con.interrupt()

    def _reader(self, expression: ir.Table, rows: int) -> pa.RecordBatchReader:
        # not Ibis's own fetch: version 12 calls methods that DuckDB 2 no longer has
        return self.backend.con.sql(self.backend.compile(expression)).to_arrow_reader(rows)


@contextmanager
def _failure_told(files: Sequence[Path]) -> Iterator[None]:
    """Turn the engine's failures (memory, disk, a damaged file, a cast in `where`) into one clear line."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise RecGPTError(
            f"the query needs more memory or disk than it may use ({_first_line(error)});"
            " raise data.memory_limit or free disk space, and run the same command again"
        ) from error
    except duckdb.InterruptException:  # asked for: `Engine.interrupt`
        raise
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from error  # the engine took Ctrl-C for itself
    except duckdb.Error as error:
        if not isinstance(error, duckdb.ConversionException):
            _refuse_damaged(files)
        raise RecGPTError(
            f"reading the log failed ({_first_line(error)}); see `recgpt data check`, and data.where or another"
            " condition of the config if it casts"
        ) from error


def _refuse_damaged(files: Sequence[Path]) -> None:
    """Read the files one by one, to name the one that cannot be read."""
    import duckdb

    for file in files:
        with duckdb.connect() as connection:
            try:
                for _ in connection.read_parquet(str(file)).to_arrow_reader(1 << 16):
                    pass
            except duckdb.OutOfMemoryException:
                continue
            except duckdb.Error as error:
                raise ConfigError(f"{file}: damaged Parquet file ({_first_line(error)}); copy it anew") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def quote_text(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """A SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
