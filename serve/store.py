"""The posted events in one SQLite file: durable when answered, each event id once.

WAL with `synchronous=FULL`: a commit has reached the disk, and readers do not wait for the writer. The file may be
shared by several processes of one machine.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from recgpt.errors import ConfigError
from recgpt.files import require_folder

from .problems import Refused
from .reading import Event

FORMAT = 1
APPLICATION = 0x52474556
"""Marks the file (SQLite's application_id): "RGEV"."""
BUSY_SECONDS = 10.0

_TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    user INTEGER NOT NULL REFERENCES users (id),
    item NOT NULL,
    time INTEGER,
    context TEXT,
    outcomes TEXT,
    event_id TEXT
);
CREATE INDEX events_of_user ON events (user);
CREATE UNIQUE INDEX event_ids ON events (event_id) WHERE event_id IS NOT NULL;
CREATE TABLE checked (id INTEGER PRIMARY KEY CHECK (id = 0), time REAL);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class Stored(NamedTuple):
    """One event of the store; `seq` counts up in the order of arrival."""

    seq: int
    event: Event


class EventStore:
    """Events of users, in the order of arrival; opened or made at `path`.

    Raises:
        ConfigError: the file is no event store, of another version, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writing = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        try:
            require_folder(self.path.parent, "serve.store")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"serve.store: {self.path}: {error}; name a file that this process may write") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _open(self) -> None:
        writer = self._writer
        with contextlib.closing(writer.execute("PRAGMA application_id")) as found:
            [application] = found.fetchone()
        [version] = writer.execute("PRAGMA user_version").fetchone()
        [tables] = writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION:
            raise ConfigError(f"serve.store: {self.path} is another program's SQLite file; name another file")
        if tables and version != FORMAT:
            raise ConfigError(
                f"serve.store: {self.path} has format {version}, this version reads {FORMAT}; name another file, or "
                f"serve with the version that wrote it"
            )
        [mode] = writer.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigError(f"serve.store: {self.path}: its file system allows no WAL; name a file on a local disk")
        if not tables:
            writer.executescript(_TABLES)

    def add(self, events: Sequence[Event]) -> tuple[int, int]:
        """Keep events: all of them or none, on the disk when this returns.

        Returns:
            How many are new, and how many were there already (by their event ids).

        Raises:
            Refused: 422: an event id stands for an event with other values.
        """
        with self._writing, self._transaction():
            accepted = sum(self._add_one(event, place) for place, event in enumerate(events))
        return accepted, len(events) - accepted

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _add_one(self, event: Event, place: int) -> bool:
        write = self._writer.execute
        if event.event_id is not None:
            there = write(f"{_SELECT} WHERE event_id = ?", (event.event_id,)).fetchone()
            if there is not None:
                if _same(_event(there[1:]), event):
                    return False
                raise Refused(
                    422, "conflict", "this id belongs to an event with other values; give each event an id of its own",
                    f"events[{place}].event_id",
                )  # fmt: skip
        write("INSERT OR IGNORE INTO users (name) VALUES (?)", (event.user,))
        write(
            "INSERT INTO events (user, item, time, context, outcomes, event_id) "
            "SELECT id, ?, ?, ?, ?, ? FROM users WHERE name = ?",
            (event.item, event.time, _dump(event.context), _dump(event.outcomes), event.event_id, event.user),
        )
        return True

    def since(self, user: str, seq: int = 0) -> list[Stored]:
        """A user's events with a greater `seq`, in the order of arrival."""
        with self._reader() as reader:
            rows = reader.execute(f"{_SELECT} WHERE name = ? AND seq > ? ORDER BY seq", (user, seq)).fetchall()
        return [Stored(row[0], _event(row[1:])) for row in rows]

    def counts(self) -> tuple[int, int]:
        """How many events of how many users."""
        with self._reader() as reader:
            [events] = reader.execute("SELECT count(*) FROM events").fetchone()
            [users] = reader.execute("SELECT count(*) FROM users").fetchone()
        return events, users

    def check_writable(self) -> None:
        """Write and flush one value; raises sqlite3.Error where that fails."""
        with self._writing, self._transaction():
            self._writer.execute("INSERT OR REPLACE INTO checked VALUES (0, ?)", (time.time(),))

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        """Close every connection, after a write that has begun; the last one writes the WAL back into the file."""
        while self._idle:
            self._idle.pop().close()
        with self._writing:
            self._writer.close()


_SELECT = "SELECT seq, item, time, context, outcomes, name, event_id FROM events JOIN users ON users.id = events.user"


def _event(row: Sequence) -> Event:
    item, moment, context, outcomes, user, event_id = row
    return Event(item, moment, _load(context), _load(outcomes), user, event_id)


def _dump(values: object) -> str | None:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) if values else None


def _load(text: str | None) -> dict:
    return {} if text is None else json.loads(text)


def _same(one: Event, other: Event) -> bool:
    """Whether two events say the same; the integer 7 and the text "7" are one id."""
    return one._replace(item=str(one.item)) == other._replace(item=str(other.item))
