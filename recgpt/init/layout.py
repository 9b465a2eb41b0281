"""How a text file is laid out: delimiter, header, column names; from its first lines, as `prepare` would read it."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recgpt.data.source import PARQUET_SUFFIXES
from recgpt.data.text_file import COMPRESSED_SUFFIXES, DELIMITERS, QUOTED_SUFFIX, UTF_8, one_character
from recgpt.errors import ConfigError
from recgpt.init.names import is_known_name

HEAD_BYTES = 1 << 18
HEAD_ROWS = 300
STEADY = 0.9
"""Part of the lines that must have as many fields as most have."""
BOM = b"\xef\xbb\xbf"
_ANY_BYTES = "latin-1"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?")


@dataclass(frozen=True)
class TextLayout:
    """How a text file is laid out.

    Attributes:
        delimiter: what stands between fields.
        header: whether the first line names the columns.
        columns: their names, each once; made up where there is no header.
        renamed: whether these are not what the header says, so that a config must list them.
        default: whether the delimiter is the one that goes with the file's suffix.
        doubts: what to check.
        encoding: how characters are written.
        quotes: whether fields stand between double quotes.
        quotes_by_default: whether they may in files of the suffix.
    """

    delimiter: str
    header: bool
    columns: list[str]
    renamed: bool
    default: bool
    doubts: list[str]
    encoding: str = UTF_8
    quotes: bool = True
    quotes_by_default: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """The `format` section, without what is the default."""
        settings: dict[str, Any] = {} if self.header else {"header": False}
        if not self.default:
            settings["delimiter"] = self.delimiter
        if self.renamed:
            settings["columns"] = self.columns
        if self.encoding != UTF_8:
            settings["encoding"] = self.encoding
        if self.quotes != self.quotes_by_default:
            settings["quotes"] = self.quotes
        return settings


def file_kind(file: Path) -> str | None:
    """`.parquet`, or the suffix of a text file; None for what `prepare` does not read."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in PARQUET_SUFFIXES:
        return ".parquet"
    return last if last in DELIMITERS else None


def find_layout(file: Path, key: str) -> TextLayout:
    """Look at the first lines of a text file.

    Args:
        file: .csv, .tsv, .txt or .dat, also compressed.
        key: what names the file, for errors.

    Raises:
        ConfigError: an empty file, one that is no text, or one that cannot be read.
    """
    head, whole = _head(file, key)
    encoding = _encoding(head)
    text = head.removeprefix(BOM).decode(encoding, errors="replace")
    if "\0" in text[:4096]:
        raise ConfigError(f"{key}: {file} is no text in UTF-8, or in UTF-16 with its mark; write it in UTF-8")
    if not whole:
        text = text[: text.rfind("\n") + 1] or text
    if not text.split("\n")[0].strip():
        raise ConfigError(f"{key}: {file} is empty or begins with an empty line; the first line names the columns")
    kind = file_kind(file) or QUOTED_SUFFIX
    quoted = kind == QUOTED_SUFFIX
    delimiter = _delimiter(text, DELIMITERS[kind], quoted)
    if not quoted and len(delimiter) == 1:
        quoted = any(len(field) > 1 and field[0] == field[-1] == '"' for row in _rows(text, delimiter) for field in row)
    rows = _rows(text, delimiter, quoted)
    if not rows:
        raise ConfigError(f"{key}: {file} holds fields longer than a name or an id; check the quotes")
    if any("\n" in name or "\r" in name for name in rows[0]):
        raise ConfigError(f"{key}: the first line of {file} holds a name with a line break; rename that column")
    found = _layout(rows, delimiter, delimiter == DELIMITERS[kind])
    by_default = kind == QUOTED_SUFFIX and len(delimiter) == 1
    found = replace(found, encoding=encoding, quotes=quoted and len(delimiter) == 1, quotes_by_default=by_default)
    if encoding != _ANY_BYTES:
        return found
    doubt = f"the file is not UTF-8 and was read as {encoding}: look at its accents, set format.encoding"
    return replace(found, doubts=[*found.doubts, doubt])


def _encoding(head: bytes) -> str:
    """UTF-16 where its mark stands, UTF-8 where the bytes are, else the encoding of which any bytes are."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder(UTF_8)().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return _ANY_BYTES
    return UTF_8


def _head(file: Path, key: str) -> tuple[bytes, bool]:
    """The first bytes, and whether they are all."""
    import pyarrow as pa

    try:
        with pa.input_stream(str(file), compression="detect") as stream:
            head = stream.read(HEAD_BYTES)
            return head, not stream.read(1)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{key}: {file} cannot be read ({' '.join(str(error).split())[:200]}); copy it anew"
        ) from error


def _rows(text: str, delimiter: str, quoted: bool = False) -> list[list[str]]:
    rows: list[list[str]] = []
    one = one_character(delimiter)
    try:
        lines = io.StringIO(text.replace(delimiter, one), newline="")
        plain = not quoted or one != delimiter
        for row in csv.reader(lines, delimiter=one, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL):
            if row:
                rows.append(row)
            if len(rows) > HEAD_ROWS:
                break
    except csv.Error:
        return rows  # an endless field: this delimiter is not it
    return rows


def _delimiter(text: str, default: str, quoted: bool) -> str:
    """The delimiter that cuts most lines into equally many fields: the suffix's own, `,` tab `;` `|` `::`, then others.

    Space and colon stand inside dates and titles too, so they count only where no other cuts the lines.
    """
    for candidates in ([default, ",", "\t", ";", "|", "::"], [" ", ":"]):
        widths = {}
        for candidate in dict.fromkeys(candidates):
            counts = Counter(len(row) for row in _rows(text, candidate, quoted))
            width, lines = counts.most_common(1)[0] if counts else (0, 0)
            if width > 1 and lines >= STEADY * counts.total():
                widths[candidate] = width
        if widths:
            return max(widths, key=lambda candidate: widths[candidate])  # the first of the widest
    return default


def _layout(rows: list[list[str]], delimiter: str, default: bool) -> TextLayout:
    width = Counter(len(row) for row in rows).most_common(1)[0][0]
    first, body = rows[0], [row for row in rows[1:] if len(row) == width]
    header, doubt = _is_header(first, body)
    doubts = [doubt] if doubt else []
    if width == 1:
        doubts.append("one column was found: set format.delimiter if there are more")
    if not header:
        return TextLayout(delimiter, False, [f"c{n}" for n in range(1, len(first) + 1)], True, default, doubts)
    columns = _distinct(first)
    if columns != first:
        doubts.append("format.columns replaces the header, in which a name is empty, stands twice or begins with __")
    return TextLayout(delimiter, True, columns, columns != first, default, doubts)


def _is_header(first: list[str], body: list[list[str]]) -> tuple[bool, str]:
    """Whether the first line names the columns, and what is doubtful about that."""
    if not body:
        return True, "the file has one line, which was taken for the header"
    if all(not name.strip() or _is_value(name) for name in first):
        return False, "" if len(set(first)) < len(first) else "the first line was taken for data: it holds values alone"
    names = values = 0
    for place, name in enumerate(first[: len(body[0])]):
        column = [row[place] for row in body if row[place] != ""]
        typed = sum(_is_value(value) for value in column) >= 0.95 * len(column) if column else False
        if column and typed != _is_value(name):
            names += 1
        elif is_known_name(name) and name not in column:
            names += 1
        elif typed or name in column:
            values += 1
    if names == values == 0:
        distinct = len({name.lower() for name in first}) == len(first)
        return distinct, "whether the first line names the columns is not certain: look at it"
    doubt = "whether the first line names the columns is not certain: look at it" if names and values else ""
    return names > values, doubt


def _is_value(text: str) -> bool:
    """Whether a text is a number or a date, so hardly a name."""
    return bool(_NUMBER.fullmatch(text.strip()) or _MOMENT.fullmatch(text.strip()))


def _distinct(names: list[str]) -> list[str]:
    """Names as they are, made distinct for an engine that does not tell case apart."""
    taken = Counter(name.lower() for name in names)
    result: list[str] = []
    used: set[str] = set()
    for place, name in enumerate(names, 1):
        new = name if name.strip() else f"column_{place}"
        new = f"column{new}" if new.startswith("__") else new  # such names are the engine's
        base, suffix = new, 1
        while new.lower() in used or (suffix > 1 and new.lower() in taken):
            suffix += 1
            new = f"{base}_{suffix}"
        used.add(new.lower())
        result.append(new)
    return result
