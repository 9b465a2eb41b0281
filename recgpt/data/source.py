"""Opening a log: Parquet in place, text parsed once into Parquet, and what type each column has."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recgpt.data.engine import Engine
from recgpt.data.schema import FormatConfig
from recgpt.data.text_file import (
    COMPRESSED_SUFFIXES,
    DELIMITERS,
    QUOTED_SUFFIX,
    LineCounter,
    TextForm,
    one_character,
    open_text,
    text_suffix,
)
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow.csv as pa_csv

PARQUET_SUFFIXES = {".parquet", ".pq"}
BLOCK_BYTES = 4 << 20


class BadLine(NamedTuple):
    """A line of a text file that has not as many fields as the file has columns.

    Attributes:
        file: number of the file.
        row: its row in the file, from 0, the header and blank lines not counted.
        expected, found: numbers of fields.
        text: the line.
    """

    file: int
    row: int
    expected: int
    found: int
    text: str


class TextStats(NamedTuple):
    """What the texts of one column look like; counts of non-empty values."""

    filled: int
    integers: int
    numbers: int
    with_point: int
    moments: int

    @property
    def is_integer(self) -> bool:
        """Every value is an int64 in its canonical decimal form (no leading zeros, no plus sign)."""
        return self.filled > 0 and self.integers == self.filled

    @property
    def is_number(self) -> bool:
        """Every value is a number."""
        return self.filled > 0 and self.numbers == self.filled


@dataclass
class Source:
    """An opened log or side table.

    Attributes:
        table: the columns as they are (of text files those that are used, all text) and the file and row numbers.
        columns: the names of all columns of the files.
        files: the files, in the order of their numbers.
        text: whether it comes from text files.
        bad_lines: lines of text files that could not be taken apart, in order.
        quoted_lines: lines of text files that lie inside quotes, as part of the row before them.
    """

    engine: Engine
    table: ir.Table
    columns: list[str]
    files: list[Path]
    text: bool
    bad_lines: list[BadLine] = field(default_factory=list)
    quoted_lines: int = 0

    def true_rows(self, file: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows as they stand in the files, int64 [N], from rows of `table`, which lacks the bad lines before them."""
        bad: dict[int, list[int]] = {}
        for line in self.bad_lines:
            bad.setdefault(line.file, []).append(line.row)
        true = row.copy()
        for number, lines in bad.items():
            mine = file == number
            before = np.array(lines) - np.arange(len(lines))  # rows of `table` before each bad line
            true[mine] += np.searchsorted(before, row[mine], side="right")
        return true

    def text_stats(self, names: Iterable[str]) -> dict[str, TextStats]:
        """Count what the texts of columns look like, in one pass."""
        names = sorted(set(names))
        if not names:
            return {}
        counts: dict[str, ir.Value] = {}
        for index, name in enumerate(names):
            text = self.table[name]
            integer = text.try_cast("int64")
            number = text.try_cast("float64")
            counts |= {
                f"{index}.0": (text != "").sum(),
                f"{index}.1": (integer.cast("string") == text).sum(),
                f"{index}.2": number.notnull().sum(),
                f"{index}.3": (number.notnull() & text.contains(".")).sum(),
                f"{index}.4": (number.isnull() & text.try_cast("timestamp('UTC')").notnull()).sum(),
            }
        row = self.engine.fetch(self.table.aggregate(**counts)).to_pylist()[0]
        return {name: TextStats(*(int(row[f"{index}.{k}"] or 0) for k in range(5))) for index, name in enumerate(names)}


def _require(columns: list[str], required: Mapping[str, str], file: Path) -> None:
    for key, name in required.items():
        if name not in columns:
            raise ConfigError(missing_column(key, name, columns, file))


def missing_column(key: str, name: str, columns: list[str], file: Path) -> str:
    """The line that tells of a missing column: the nearest name and those that there are."""
    near = difflib.get_close_matches(name, columns, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{key}: no column {name!r} in {file.name}; {hint}columns: {', '.join(columns)}"


def open_source(
    engine: Engine,
    name: str,
    files: list[Path],
    layout: FormatConfig,
    field: str,
    scratch: Path,
    required: Mapping[str, str],
    more: Callable[[list[str]], Iterable[str]] = lambda columns: (),
    told: Callable[[int], None] = lambda rows: None,
) -> Source:
    """Open Parquet or text files as one table.

    Args:
        engine: the query engine.
        name: name of the view.
        files: all Parquet or all text.
        layout: how text is laid out.
        field: the config key, for errors.
        scratch: folder for the parsed text.
        required: config key -> column that the files must have.
        more: which other columns are read, of those that the files have.
        told: called with the number of rows parsed so far.

    Raises:
        ConfigError: mixed or unknown kinds of files, a broken file, a missing column, text that is not UTF-8.
    """
    kinds = {_kind(file, field) for file in files}
    if len(kinds) > 1:
        raise ConfigError(f"{field}: Parquet and text files are mixed; convert them to one kind")
    if kinds == {"text"}:
        parser = _TextParser(layout, field, told)
        headers = [parser.header(file) for file in files]
        columns = list(dict.fromkeys(column for header in headers for column in header))
        _require(columns, required, files[0])
        wanted = {*required.values(), *more(columns)}
        parsed = [
            parser.parse(file, index, header, wanted, scratch / f"{name}-{index:05d}.parquet")
            for index, (file, header) in enumerate(zip(files, headers, strict=True))
        ]
        return Source(engine, engine.parquet(name, parsed), columns, files, True, parser.bad_lines, parser.quoted_lines)
    for file in files:
        _check_parquet(file, field)
    table = engine.parquet(name, files)
    columns = [column for column in table.columns if not column.startswith("__")]
    _require(columns, required, files[0])
    return Source(engine, table, columns, files, False)


def _kind(file: Path, field: str) -> str:
    suffixes = [s.lower() for s in file.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in PARQUET_SUFFIXES:
        return "parquet"
    if last in DELIMITERS:
        return "text"
    raise ConfigError(
        f"{field}: {file.name!r} is neither Parquet (.parquet) nor text (.csv, .tsv, .txt, .dat, also .gz); rename it"
    )


def _check_parquet(file: Path, field: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{field}: {file} is no whole Parquet file ({_first_line(error)}); copy it anew") from error


class _TextParser:
    """Parses text files into Parquet, every value as text, in file order."""

    def __init__(self, layout: FormatConfig, field: str, told: Callable[[int], None]) -> None:
        self.layout = layout
        self.field = field
        self.key = f"{field.removesuffix('.path')}.format" if field.endswith(".path") else "data.format"
        self.told = told
        self.bad_lines: list[BadLine] = []
        self.rows = self.lines = 0

    @property
    def quoted_lines(self) -> int:
        """Lines of the parsed files that are no row of their own."""
        return max(0, self.lines - self.rows - len(self.bad_lines))

    def parse(self, file: Path, index: int, columns: list[str], wanted: set[str], out: Path) -> Path:
        """Write the wanted ones of the columns of `file` to `out`, row for row."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        out.parent.mkdir(parents=True, exist_ok=True)
        names = [name for name in columns if name in wanted]
        lines = LineCounter()
        try:
            with self._open(file, index, columns, names, lines) as reader:
                schema = pa.schema([(name, pa.string()) for name in names])
                with pq.ParquetWriter(out, schema, compression="lz4") as writer:
                    for batch in reader:
                        writer.write_batch(batch)
                        self.rows += batch.num_rows
                        self.told(self.rows)
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ConfigError(
                f"{self.field}: {file} cannot be read as text ({_first_line(error)}); check that the file is whole"
                f" and the settings of {self.key}: encoding, where it is not UTF-8"
            ) from error
        self.lines += lines.n - (1 if self.layout.header else 0)
        return out

    def header(self, file: Path) -> list[str]:
        """Column names: the configured ones, or those of the first line."""
        if self.layout.columns:
            return self.layout.columns
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        try:
            with open_text(file, self._form(file)) as stream:
                first = stream.read(BLOCK_BYTES).partition(b"\n")[0]
            if not first.strip():
                raise ConfigError(f"{self.field}: {file} is empty; the log has no rows")
            table = pa_csv.read_csv(pa.py_buffer(first + b"\n"), parse_options=self._parse_options(file, None))
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(
                f"{self.field}: the first line of {file} names no columns ({_first_line(error)}); check {self.key}"
            ) from error
        return table.column_names

    def _parse_options(self, file: Path, handler: Callable[[Any], str] | None) -> pa_csv.ParseOptions:
        import pyarrow.csv as pa_csv

        delimiter, quotes = self._form(file).delimiter, self.layout.quotes
        if quotes is None:
            quotes = text_suffix(file) == QUOTED_SUFFIX and one_character(delimiter) == delimiter
        return pa_csv.ParseOptions(
            delimiter=one_character(delimiter),
            quote_char='"' if quotes else False,
            newlines_in_values=quotes,
            invalid_row_handler=handler,
        )

    def _form(self, file: Path) -> TextForm:
        return TextForm(self.layout.delimiter or DELIMITERS[text_suffix(file)], self.layout.encoding, self.key)

    def _open(
        self, file: Path, index: int, columns: list[str], names: list[str], lines: LineCounter
    ) -> pa_csv.CSVStreamingReader:
        import pyarrow as pa
        import pyarrow.csv as pa_csv

        first = 2 if self.layout.header else 1  # lines count from 1, known because one thread reads them
        delimiter = self._form(file).delimiter

        def keep_bad(row: Any) -> str:
            place, text = row.number - first, row.text.replace(one_character(delimiter), delimiter)
            self.bad_lines.append(BadLine(index, place, row.expected_columns, row.actual_columns, text))
            return "skip"

        return pa_csv.open_csv(
            open_text(file, self._form(file), lines),
            read_options=pa_csv.ReadOptions(
                use_threads=False,
                block_size=BLOCK_BYTES,
                column_names=columns,
                skip_rows=1 if self.layout.header else 0,
            ),
            parse_options=self._parse_options(file, keep_bad),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in columns},
                include_columns=names,
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
