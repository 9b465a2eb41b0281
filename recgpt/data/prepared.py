"""A prepared log: users' events end to end, memory-mapped, any run of them as numpy columns in microseconds."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.config import validate
from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_id
from recgpt.data.impressions import Impressions
from recgpt.data.items import ItemTable
from recgpt.data.logs import find_files
from recgpt.data.schema import DataConfig, DataSchema
from recgpt.errors import ConfigError

FORMAT = 4
REJECTS = "rejects.parquet"
CACHE = "cache"
CACHE_ROWS = 1 << 17
"""Rows of a contiguous run in the memory-mapped cache."""
_OPENING = threading.Lock()
"""`datasets` is not safe in two threads."""
_INTEGER = re.compile("0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Users:
    """U users; all int64 [U]. Positions count from a user's first event; -1 = none.

    Attributes:
        hash: hash of the id.
        offset: global position of the first event.
        n_events: number of events.
        train_end: training events are [0, train_end).
        valid_history, valid_target, test_history, test_target: history [0, history) and the target's position.
        last_time: latest known time, microseconds since 1970 UTC, or `NO_TIME`.
    """

    hash: NDArray[np.int64]
    offset: NDArray[np.int64]
    n_events: NDArray[np.int64]
    train_end: NDArray[np.int64]
    valid_history: NDArray[np.int64]
    valid_target: NDArray[np.int64]
    test_history: NDArray[np.int64]
    test_target: NDArray[np.int64]
    last_time: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hash)


class Prepared:
    """What `prepare` wrote; opened by `Prepared.open`.

    Events, users and items are opened at their first use. Reading is thread-safe: nothing changes after it.
    """

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary
        self.schema = validate(DataSchema, summary["schema"], str(folder / "summary.json"))
        self.n_users: int = summary["users"]
        self.n_items: int = summary["items"]
        self.n_events: int = summary["events"]
        self.content: str = summary["content"]
        """Hex digest of what was prepared: every column of the events, users and items in order, but for the titles."""

    @classmethod
    def open(cls, folder: str | Path) -> Prepared:
        """Open a prepared folder.

        Raises:
            ConfigError: the folder is missing or not whole.
        """
        folder = Path(folder)
        summary = _read_summary(folder)
        if summary is None:
            raise ConfigError(f"{folder}: no prepared log (no whole summary.json); run `recgpt prepare CONFIG`")
        if summary.get("format") != FORMAT:
            raise ConfigError(
                f"{folder}: prepared in format {summary.get('format')}, this version reads {FORMAT}; run prepare again"
            )
        return cls(folder, summary)

    @classmethod
    def open_if_fresh(cls, folder: Path, config: DataConfig) -> Prepared | None:
        """Open the folder if it was made by this config from the files as they are now.

        Raises:
            ConfigError: a file of the config is missing.
        """
        summary = _read_summary(folder)
        if summary is None or summary.get("format") != FORMAT or summary["digest"] != config.digest():
            return None
        return cls(folder, summary) if source_stamps(source_files(config)) == summary["sources"] else None

    @cached_property
    def _columns(self) -> dict[str, Reader]:
        now = _read_summary(self.folder)
        if now is None:
            raise ConfigError(f"{self.folder}: it was removed since it was opened; run prepare again")
        if now.get("content") != self.content:
            raise ConfigError(f"{self.folder}: another log was prepared there since this one was opened; start again")
        with _OPENING:
            return _open_events(self.folder)

    @cached_property
    def _user_table(self) -> pa.Table:
        return pq.read_table(self.folder / "users.parquet")

    @cached_property
    def users(self) -> Users:
        """Offsets and split positions of all users."""
        table = self._user_table
        return Users(
            **{
                name: table[name].fill_null(NO_TIME).to_numpy().astype(np.int64, copy=False)
                for name in Users.__dataclass_fields__
            }
        )

    @cached_property
    def items(self) -> ItemTable:
        """The candidate list."""
        return ItemTable.read(self.folder / "items.parquet")

    def user_ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[int | str]:
        """The ids of user rows, as they stand in the log."""
        return self._user_table["user"].take(pa.array(np.asarray(rows, np.int64))).to_pylist()

    def find_user(self, user: int | str) -> int:
        """The row of a user id; a text finds an integer id only in its canonical decimal form.

        Raises:
            ConfigError: the log has no such user.
        """
        column = self._user_table["user"]
        if pa.types.is_integer(column.type) and isinstance(user, str) and _INTEGER.fullmatch(user):
            user = int(user)
        for row in np.flatnonzero(self.users.hash == hash_id(user)):
            if column[int(row)].as_py() == user:
                return int(row)
        raise ConfigError(
            f"user {user!r} is not in the log; ids of column {self.schema.user!r} are {column.type},"
            f" such as {column[0].as_py()!r}"
        )

    def item_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Rows of `items` of the events at global positions [start, stop), int64 [N]."""
        return self._columns["item_row"](start, stop).astype(np.int64)

    def events(self, start: int, stop: int) -> Events:
        """The events at global positions [start, stop) (a user's first is `users.offset[row]`)."""
        read = self._columns
        return Events(
            item=self.items.hash[read["item_row"](start, stop)],
            time=read["time"](start, stop),
            target=read["target"](start, stop),
            outcomes={name: read[f"o.{name}"](start, stop) for name in self.schema.outcomes},
            context={name: read[f"c.{name}"](start, stop) for name in self.schema.context},
        )

    def impressions(self, start: int, stop: int) -> Impressions:
        """The impressions among the events at global positions [start, stop); none without `data.impressions`."""
        read = self._columns
        if "impression" not in read:
            nothing = np.zeros(0, np.int64)
            return Impressions(nothing, nothing.astype(np.int8), nothing, nothing)
        part = read["impression"](start, stop)
        places = np.flatnonzero(part >= 0)
        online, frozen = (read[name](start, stop)[places].astype(np.int64) for name in ("online", "frozen"))
        return Impressions(start + places, part[places], online, frozen)

    def profile(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray]:
        """The profiles of user rows [M]: name -> int64 hashes [M] (0 = unknown) or float32 [M] (NaN = unknown)."""
        return {name: column[np.asarray(rows, np.int64)] for name, column in self._profile.items()}

    @cached_property
    def _profile(self) -> dict[str, NDArray]:
        return {name: self._user_table[f"f.{name}"].to_numpy() for name in self.schema.profile}


def _read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary, None where there is none; it is written last, so that it stands for a whole folder."""
    try:
        return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ConfigError(
            f"{folder / 'summary.json'}: damaged ({error}); remove the folder and prepare again"
        ) from error


def source_files(config: DataConfig) -> list[Path]:
    """The files that a config names as they are now: the log's, then those of the items, their vectors and the users.

    Raises:
        ConfigError: a pattern matches no file.
    """
    files = find_files(config.events, "data.events")
    vectors = None if config.items is None else config.items.vectors
    tables = {"data.items.path": config.items, "data.items.vectors.path": vectors, "data.users.path": config.users}
    for key, table in tables.items():
        files += [] if table is None else find_files([table.path], key)
    return files


def source_stamps(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and modification time of files: what tells a changed source."""
    stamps = []
    for file in files:
        stat = file.stat()
        stamps.append({"path": str(file.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return stamps


Reader = Callable[[int, int], NDArray[Any]]


def _open_events(folder: Path) -> dict[str, Reader]:
    """Memory-map the events through `datasets`; its Arrow cache lies in the prepared folder, if that can be written."""
    from datasets import Dataset
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    files = sorted(str(path) for path in (folder / "events").glob("part-*.parquet"))
    if not files:
        raise ConfigError(f"{folder / 'events'}: no part-*.parquet in it; remove {folder} and prepare again")
    shown = is_progress_bar_enabled()
    cache = str(folder / CACHE) if os.access(folder, os.W_OK) else None  # else its own, in the user's home
    disable_progress_bars()
    try:
        dataset = Dataset.from_parquet(files, cache_dir=cache, writer_batch_size=CACHE_ROWS)
    finally:
        if shown:
            enable_progress_bars()
    table: pa.Table = dataset.data.table
    return {name: _column_reader(name, table[name]) for name in table.column_names}


def _column_reader(name: str, column: pa.ChunkedArray) -> Reader:
    """A function (start, stop) -> numpy: views of the mapped file where a run has no nulls."""
    fill: Any = {"time": NO_TIME}.get(name, np.nan if pa.types.is_floating(column.type) else 0)
    dtype = np.dtype(column.type.to_pandas_dtype())
    chunks = [_chunk_reader(chunk, fill, dtype) for chunk in column.chunks if len(chunk)]
    ends = np.cumsum([len(chunk) for chunk in column.chunks if len(chunk)])
    begins = np.append(0, ends)

    def read(start: int, stop: int) -> NDArray[Any]:
        index = int(np.searchsorted(ends, start, side="right"))
        parts = [np.empty(0, dtype)] if start >= stop else []
        while start < stop:
            base, end = int(begins[index]), min(stop, int(ends[index]))
            parts.append(chunks[index](start - base, end - base))
            start, index = end, index + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return read


def _chunk_reader(chunk: pa.Array, fill: Any, dtype: np.dtype[Any]) -> Reader:
    """Reads one Arrow chunk by its buffers: a few microseconds, where the compute functions take ten times that."""
    if chunk.null_count == len(chunk):
        return lambda low, high: np.full(high - low, fill, dtype)
    valid, data = chunk.buffers()
    bits = None if chunk.null_count == 0 else np.frombuffer(valid, np.uint8)
    first = chunk.offset
    if pa.types.is_boolean(chunk.type):
        packed = np.frombuffer(data, np.uint8)

        def values(low: int, high: int) -> NDArray[Any]:
            return _unpack(packed, low + first, high + first)

    else:
        whole = np.frombuffer(data, dtype)[first : first + len(chunk)]

        def values(low: int, high: int) -> NDArray[Any]:
            return whole[low:high]

    if bits is None:
        return values
    return lambda low, high: np.where(_unpack(bits, low + first, high + first), values(low, high), dtype.type(fill))


def _unpack(bits: NDArray[np.uint8], low: int, high: int) -> NDArray[np.bool_]:
    """Bits [low, high) of an Arrow bitmap as booleans."""
    some = np.unpackbits(bits[low >> 3 : (high + 7) >> 3], bitorder="little")
    return some[low & 7 : (low & 7) + high - low].view(np.bool_)
