"""A bounded look at a log or side table: the first rows of one file, the schema of all, what Parquet's footers say."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.source import Source, TextStats
from recgpt.data.text_file import TextForm, one_character, open_text
from recgpt.errors import ConfigError
from recgpt.init.layout import BOM, TextLayout, file_kind, find_layout
from recgpt.init.names import shown

ROWS = 200_000
TEXT_BYTES, BYTES = 32 << 20, 128 << 20
"""Bytes of a text file, of columns in memory, after which a sample ends too."""
FOOTERS = 1000
"""Files whose Parquet footers are read for nulls and ranges."""
NEARLY_ALL = 0.995
"""Part of a text column's values that must be numbers (or moments) for it to be taken as such."""
Kind = Literal["integer", "float", "boolean", "text", "moment", "list", "other"]


@dataclass(frozen=True)
class Column:
    """One column of the sample.

    Attributes:
        name: as `prepare` will see it.
        kind: what its values are.
        stored: its type in the file; `text` in a text file.
        values: int64, double, bool, string or timestamp[us] [N]; null = unknown or empty.
        nans: part of the rows that hold NaN.
        odd: part of the rows of a text file that are not of the column's kind.
        missing: part of the rows without a value, in the whole log where its files tell.
        span: smallest and largest value in the whole log, where its files tell.
    """

    name: str
    kind: Kind
    stored: str
    values: pa.Array
    nans: float = 0.0
    odd: float = 0.0
    missing: float = 0.0
    span: tuple[Any, Any] | None = None

    @cached_property
    def coded(self) -> tuple[NDArray[np.int64], pa.Array]:
        """A code per row, -1 where unknown, and the distinct values."""
        coded = self.values.dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return codes, coded.dictionary

    @property
    def codes(self) -> NDArray[np.int64]:
        """A code per row [N], -1 where unknown."""
        return self.coded[0]

    @property
    def distinct(self) -> int:
        """Distinct known values of the sample."""
        return len(self.coded[1])

    @property
    def known(self) -> int:
        """Rows of the sample with a value."""
        return len(self.values) - self.values.null_count

    @cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The values as numbers [N] (moments as microseconds), NaN where unknown or no number."""
        if self.kind not in ("integer", "float", "boolean", "moment"):
            return np.full(len(self.values), np.nan)
        values = self.values.cast("int64") if self.kind in ("moment", "boolean") else self.values
        return pc.fill_null(values.cast("float64", safe=False), np.nan).to_numpy(zero_copy_only=False)

    @cached_property
    def range(self) -> tuple[Any, Any] | None:
        """Smallest and largest value, of the whole log where its files tell; None if there are none."""
        if self.span is not None:
            return self.span
        if self.known == 0 or self.kind not in ("integer", "float", "moment"):
            return None
        ends = pc.min_max(self.values)
        return ends["min"].as_py(), ends["max"].as_py()

    @property
    def is_01(self) -> bool:
        """Whether every known value is 0 or 1."""
        return self.known > 0 and self.kind in ("integer", "float", "boolean") and not self.nans and self._within_01()

    def _within_01(self) -> bool:
        return self.distinct <= 2 and {float(value) for value in self.coded[1].to_pylist()} <= {0.0, 1.0}


@dataclass(frozen=True)
class Sample:
    """The first rows of a log.

    Attributes:
        files: its files, all Parquet or all text.
        columns: all columns in file order; nested ones without values.
        rows: rows of the sample.
        total: rows of the whole log, None where that is not known.
        layout: how the text is laid out; None for Parquet.
        doubts: what to check.
    """

    files: list[Path]
    columns: list[Column]
    rows: int
    total: int | None
    layout: TextLayout | None
    doubts: list[str] = field(default_factory=list)

    @property
    def text(self) -> bool:
        """Whether it comes from text files."""
        return self.layout is not None

    def column(self, name: str) -> Column:
        """A column by its name."""
        return next(column for column in self.columns if column.name == name)


def read_sample(files: list[Path], key: str, rows: int = ROWS) -> Sample:
    """Read the first `rows` rows of the first file.

    Args:
        files: all of one kind.
        key: what names them, for errors.
        rows: how many at most.

    Raises:
        ConfigError: files of unknown or mixed kinds, a broken or an empty file.
    """
    kinds = {file_kind(file) for file in files}
    if None in kinds:
        odd = next(file for file in files if file_kind(file) is None)
        raise ConfigError(
            f"{key}: {odd.name!r} is neither Parquet (.parquet) nor text (.csv, .tsv, .txt, .dat, also .gz); rename it"
        )
    if len(kinds) > 1 and ".parquet" in kinds:
        raise ConfigError(f"{key}: Parquet and text files are mixed; convert them to one kind")
    with tempfile.TemporaryDirectory(prefix="recgpt-init-") as folder, Engine("1GB", Path(folder)) as engine:
        return (_parquet if kinds == {".parquet"} else _text)(engine, files, key, rows)


# -- text --------------------------------------------------------------------------------------------------------------


def _text(engine: Engine, files: list[Path], key: str, rows: int) -> Sample:
    layout = find_layout(files[0], key)
    table, whole = _read_text(files[0], layout, key, rows)
    doubts = list(layout.doubts)
    for other in files[1:]:
        if layout.header and find_layout(other, key).columns != layout.columns:
            doubts.append(f"{shown(other.name)} has other columns than {shown(files[0].name)}")
            break
    view = engine.arrow("sample", _numbered(table))
    stats = Source(engine, view, table.column_names, files, True).text_stats(table.column_names)
    kinds: dict[str, Kind] = {name: _text_kind(stats[name]) for name in table.column_names}
    columns = []
    for name, values in _typed(engine, view, kinds).items():
        odd = (stats[name].filled - (len(values) - values.null_count)) / max(1, len(values))
        columns.append(_column(name, kinds[name], "text", values, odd))
    return Sample(files, columns, len(table), len(table) if whole and len(files) == 1 else None, layout, doubts)


def _text_kind(stat: TextStats) -> Kind:
    """What the texts of a column are; ids with leading zeros stay text."""
    nearly_all = NEARLY_ALL * stat.filled
    if stat.is_integer:
        return "integer"
    if stat.filled and stat.with_point + stat.integers >= nearly_all:
        return "float" if stat.with_point else "integer"
    return "moment" if stat.filled and stat.moments >= nearly_all else "text"


def _read_text(file: Path, layout: TextLayout, key: str, rows: int) -> tuple[pa.Table, bool]:
    """The first rows, all text, and whether they are all; bytes that are not UTF-8 become question marks."""
    import pyarrow.csv as pa_csv

    with open_text(file, TextForm(layout.delimiter, layout.encoding, errors="replace")) as stream:
        data = stream.read(TEXT_BYTES).removeprefix(BOM)
        whole = not stream.read(1)
    if not whole:
        data = data[: data.rfind(b"\n") + 1]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        data = data.decode("utf-8", errors="replace").encode()
    names = layout.columns
    reader = pa_csv.open_csv(
        pa.py_buffer(data),
        read_options=pa_csv.ReadOptions(
            use_threads=False, block_size=4 << 20, column_names=names, skip_rows=1 if layout.header else 0
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=one_character(layout.delimiter),
            quote_char='"' if layout.quotes else False,
            newlines_in_values=layout.quotes,
            invalid_row_handler=lambda row: "skip",
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )
    table, whole = _first_rows(reader, rows, whole)
    return table, whole


def _first_rows(batches: Any, rows: int, whole: bool) -> tuple[pa.Table, bool]:
    kept, n = [], 0
    for batch in batches:
        kept.append(batch)
        n += batch.num_rows
        if n > rows:
            whole = False
            break
    schema = kept[0].schema if kept else batches.schema
    return pa.Table.from_batches(kept, schema).slice(0, rows), whole


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet(engine: Engine, files: list[Path], key: str, rows: int) -> Sample:
    import pyarrow.parquet as pq

    for file in files:
        try:
            pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{key}: {file} is no whole Parquet file; copy it anew") from error
    schema = engine.parquet("log", files).schema()
    names = [name for name in schema.names if not name.startswith("__")]
    hidden = [name for name in schema.names if name.startswith("__") and name not in (FILE, ROW)]
    own = [name for name in engine.parquet("first", files[:1]).columns if name not in (FILE, ROW)]
    readable = [place for place, name in enumerate(own) if name in names and _flat(schema[name])]
    table, whole = _read_parquet(files[0], readable, rows, [own[place] for place in readable])
    facts = _Footers(files, own)
    kinds = {name: _kind_of(schema[name]) for name in names}
    read = _typed(engine, engine.arrow("sample", _numbered(table)), {name: kinds[name] for name in table.column_names})
    nothing = pa.nulls(len(table), pa.string())
    columns = [_column(name, kinds[name], str(schema[name]), read.get(name, nothing), 0.0, facts) for name in names]
    doubts = [f"{shown(name)} is only in other files than {shown(files[0].name)}" for name in names if name not in own]
    doubts += (
        [f"columns whose names begin with __ are not read ({', '.join(map(shown, hidden))}); rename them"]
        if hidden
        else []
    )
    total = len(table) if whole and len(files) == 1 else facts.rows
    return Sample(files, columns, len(table), total, None, doubts)


def _flat(dtype: Any) -> bool:
    return _kind_of(dtype) not in ("list", "other")


def _kind_of(dtype: Any) -> Kind:
    """The kind of an Ibis type."""
    if dtype.is_boolean():
        return "boolean"
    if dtype.is_integer():
        return "integer"
    if dtype.is_floating():
        return "float"
    if dtype.is_string():
        return "text"
    if dtype.is_timestamp() or dtype.is_date():
        return "moment"
    return "list" if dtype.is_array() else "other"


def _read_parquet(file: Path, places: Sequence[int], rows: int, names: list[str]) -> tuple[pa.Table, bool]:
    """The first rows of some columns, by their place in the schema, since a name may stand twice."""
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file)
    fields = opened.schema_arrow.names
    kept, n, size = [], 0, 0
    for batch in opened.iter_batches(1 << 14, columns=sorted({fields[place] for place in places})):
        kept.append(batch)
        n, size = n + batch.num_rows, size + batch.nbytes
        if n >= rows or size > BYTES:
            break
    table = pa.Table.from_batches(kept, kept[0].schema).slice(0, rows) if kept else pa.table({})
    read, left = table.column_names, list(range(len(table.column_names)))
    columns = []
    for place in places:
        at = next(index for index in left if read[index] == fields[place])
        left.remove(at)
        columns.append(table.column(at) if table.num_columns else pa.chunked_array([[]]))
    return pa.Table.from_arrays(columns, names), n >= opened.metadata.num_rows


class _Footers:
    """Nulls and ranges of the flat columns, from the Parquet footers of all files.

    Args:
        files: of the log.
        names: columns of the first file, as the engine names them: one that stands twice is called otherwise.
    """

    def __init__(self, files: list[Path], names: list[str]) -> None:
        import pyarrow.parquet as pq

        self.rows: int | None = None
        self.nulls: dict[str, int] = {}
        self.spans: dict[str, tuple[Any, Any]] = {}
        self.lost: set[str] = set()
        if len(files) > FOOTERS:
            return
        self.rows = 0
        for file in files:
            metadata = pq.read_metadata(file)
            self.rows += metadata.num_rows
            for group in range(metadata.num_row_groups):
                self._add(metadata.row_group(group), set(names))

    def _add(self, group: Any, names: set[str]) -> None:
        paths = [group.column(place).path_in_schema for place in range(group.num_columns)]
        twice = {path for path in paths if paths.count(path) > 1}
        for place in range(group.num_columns):
            column = group.column(place)
            name, found = column.path_in_schema, column.statistics
            if name not in names or name in twice:
                continue
            if (
                found is None
                or not found.has_null_count
                or not (found.has_min_max or found.null_count == group.num_rows)
            ):
                self.lost.add(name)
                continue
            self.nulls[name] = self.nulls.get(name, 0) + found.null_count
            if found.has_min_max:
                low, high = self.spans.get(name, (found.min, found.max))
                self.spans[name] = (min(low, found.min), max(high, found.max))

    def missing(self, name: str) -> float | None:
        """Part of all rows that are null."""
        if not self.rows or name in self.lost or name not in self.nulls:
            return None
        return self.nulls[name] / self.rows

    def span(self, name: str, kind: Kind) -> tuple[Any, Any] | None:
        """Smallest and largest value of integers and moments."""
        return self.spans.get(name) if name not in self.lost and kind in ("integer", "moment") else None


# -- columns -----------------------------------------------------------------------------------------------------------


def _numbered(table: pa.Table) -> pa.Table:
    return table.append_column(ROW, pa.array(np.arange(len(table))))


def _typed(engine: Engine, table: Any, kinds: dict[str, Kind]) -> dict[str, pa.Array]:
    """Columns in the types of their kinds, null where unknown or empty, in the order of the rows."""
    types = {"integer": "int64", "float": "float64", "boolean": "boolean", "moment": "timestamp('UTC')"}
    chosen: dict[str, Any] = {ROW: table[ROW]}
    for index, (name, kind) in enumerate(kinds.items()):
        column = table[name].nullif("") if table[name].type().is_string() else table[name]
        chosen[f"v{index}"] = column.try_cast(types[kind]) if kind in types else column.cast("string")
    fetched = engine.fetch(table.select(**chosen).order_by(ROW))
    return {name: _array(fetched[f"v{index}"], kind) for index, (name, kind) in enumerate(kinds.items())}


def _array(column: pa.ChunkedArray, kind: Kind) -> pa.Array:
    whole = column.combine_chunks()
    array = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    return array.cast(pa.timestamp("us", "UTC"), safe=False) if kind == "moment" else array


def _column(name: str, kind: Kind, stored: str, values: pa.Array, odd: float, facts: _Footers | None = None) -> Column:
    n, nans = max(1, len(values)), 0.0
    if kind == "float":
        is_nan = pc.fill_null(pc.is_nan(values), False)
        nans = float(pc.sum(is_nan).as_py() or 0) / n
        values = pc.if_else(is_nan, pa.scalar(None, values.type), values) if nans else values
    missing = facts.missing(name) if facts is not None else None
    if missing is None or kind == "text":  # a footer does not tell of empty texts
        missing = values.null_count / n - nans
    span = facts.span(name, kind) if facts is not None else None
    return Column(name, kind, stored, values, nans, odd, missing, span)
