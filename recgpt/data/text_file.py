"""Text files as the CSV reader wants them: UTF-8, fields parted by one character, whatever stands on the disk."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSED_SUFFIXES = {".gz", ".bz2", ".zst", ".lz4"}
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": " ", ".dat": "::"}
"""What parts the fields of files of these suffixes, where a config does not say: `::` as in MovieLens."""
QUOTED_SUFFIX = ".csv"
"""Files whose fields may stand between double quotes, where a config does not say."""
SEPARATOR = "\x1f"
"""ASCII's unit separator stands for a delimiter that is not one ASCII character."""
UTF_8 = "utf-8"
_NEWLINE = 10


class TextForm(NamedTuple):
    """How a text file is to be read.

    Attributes:
        delimiter: what stands between fields.
        encoding: how characters are written, a codec of Python's.
        key: the config's section that says so, for errors.
        errors: what becomes of bytes that are none of it: `strict` refuses them, `replace` puts question marks.
    """

    delimiter: str
    encoding: str = UTF_8
    key: str = "data.format"
    errors: str = "strict"


def one_character(delimiter: str) -> str:
    """What parts the fields of what `open_text` gives."""
    return delimiter if len(delimiter.encode()) == 1 else SEPARATOR


def text_suffix(file: Path) -> str:
    """That of `DELIMITERS`, also of a compressed file."""
    return next(suffix.lower() for suffix in reversed(file.suffixes) if suffix.lower() in DELIMITERS)


class LineCounter:
    """Counts the lines of successive pieces of a file that are not empty.

    Attributes:
        n: how many there are so far.
    """

    def __init__(self) -> None:
        self.n, self._before = 0, _NEWLINE

    def __call__(self, data: bytes) -> bytes:
        """Count a piece; it is given back."""
        plain = np.frombuffer(data.replace(b"\r", b"") if b"\r" in data else data, np.uint8)
        if len(plain):
            inside = plain != _NEWLINE
            self.n += int((inside[1:] & ~inside[:-1]).sum()) + int(inside[0] and self._before == _NEWLINE)
            self._before = int(plain[-1])
        return data


def open_text(file: Path, form: TextForm, lines: LineCounter | None = None) -> pa.NativeFile:
    """The bytes of a text file, decompressed, in UTF-8, with `one_character(form.delimiter)` between fields.

    Args:
        file: the file.
        form: how it is to be read. A UTF-8 file with a delimiter of one ASCII character is given as it is.
        lines: counts what is read.
    """
    import pyarrow as pa

    stream = pa.input_stream(str(file), compression="detect")
    plain = codecs.lookup(form.encoding).name == UTF_8 and one_character(form.delimiter) == form.delimiter
    translate = None if plain else _Translation(file, form)
    if translate is None and lines is None:
        return stream

    def transform(piece: pa.Buffer) -> bytes:
        data = piece.to_pybytes() if translate is None else translate(piece)
        return data if lines is None else lines(data)

    return pa.TransformInputStream(stream, transform)


class _Translation:
    """Turns successive pieces of a file into UTF-8 with one character between fields; an empty piece is its end."""

    def __init__(self, file: Path, form: TextForm) -> None:
        self.file, self.form = file, form
        self.decoder = codecs.getincrementaldecoder(form.encoding)(form.errors)
        self.held = ""  # may be the beginning of a delimiter

    def __call__(self, piece: pa.Buffer) -> bytes:
        end = len(piece) == 0
        try:
            text = self.held + self.decoder.decode(bytes(piece), end)
            if one_character(self.form.delimiter) != self.form.delimiter:
                text = self._parted(text, end)
            return text.encode()
        except UnicodeError as error:
            raise ConfigError(
                f"{self.form.key}.encoding: {self.file} is not written in {self.form.encoding} "
                f"({getattr(error, 'reason', error)}); name another, such as latin-1"
            ) from error

    def _parted(self, text: str, end: bool) -> str:
        delimiter = self.form.delimiter
        if SEPARATOR in text:
            raise ConfigError(
                f"{self.form.key}.delimiter: {self.file} holds the character 0x1F, which stands for {delimiter!r} "
                "while it is read; remove it, or write the file with a delimiter of one character"
            )
        text = text.replace(delimiter, SEPARATOR)
        lengths = () if end else range(len(delimiter) - 1, 0, -1)
        held = next((n for n in lengths if text.endswith(delimiter[:n])), 0)
        text, self.held = text[: len(text) - held], text[len(text) - held :]
        return text
