"""Text files as the CSV reader wants them: UTF-8, fields parted by one character, whatever stands on the disk."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TYPE_CHECKING

from recgpt.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

COMPRESSED_SUFFIXES = {".gz", ".bz2", ".zst", ".lz4"}
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": " ", ".dat": "::"}
"""What parts the fields of files of these suffixes, where a config does not say: `::` as in MovieLens."""
SEPARATOR = "\x1f"
"""ASCII's unit separator stands for a delimiter of several characters."""
UTF_8 = "utf-8"


def one_character(delimiter: str) -> str:
    """What parts the fields of what `open_text` gives."""
    return delimiter if len(delimiter) == 1 else SEPARATOR


def open_text(file: Path, delimiter: str, encoding: str = UTF_8) -> pa.NativeFile:
    """The bytes of a text file, decompressed, in UTF-8, with `one_character(delimiter)` between fields.

    A UTF-8 file with a delimiter of one character is given as it is.

    Args:
        file: also compressed.
        delimiter: one or more characters.
        encoding: a codec of Python's.
    """
    import pyarrow as pa

    stream = pa.input_stream(str(file), compression="detect")
    if codecs.lookup(encoding).name == UTF_8 and len(delimiter) == 1:
        return stream
    return pa.TransformInputStream(stream, _Translation(file, delimiter, encoding))


class _Translation:
    """Turns successive pieces of a file into UTF-8 with one character between fields; an empty piece is its end."""

    def __init__(self, file: Path, delimiter: str, encoding: str) -> None:
        self.file, self.delimiter, self.encoding = file, delimiter, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.held = ""  # may be the beginning of a delimiter

    def __call__(self, piece: pa.Buffer) -> bytes:
        end = len(piece) == 0
        try:
            text = self.held + self.decoder.decode(memoryview(piece), end)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{self.file}: is not written in {self.encoding} ({error.reason}); correct data.format.encoding, such "
                "as latin-1"
            ) from error
        if len(self.delimiter) > 1:
            text = self._parted(text, end)
        return text.encode()

    def _parted(self, text: str, end: bool) -> str:
        if SEPARATOR in text:
            raise ConfigError(
                f"{self.file}: holds the character 0x1F, which stands for {self.delimiter!r} while it is read; remove "
                "it, or write the file with a delimiter of one character"
            )
        text = text.replace(self.delimiter, SEPARATOR)
        lengths = () if end else range(len(self.delimiter) - 1, 0, -1)
        held = next((n for n in lengths if text.endswith(self.delimiter[:n])), 0)
        text, self.held = text[: len(text) - held], text[len(text) - held :]
        return text
