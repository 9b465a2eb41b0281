"""The event store: once each, all or nothing, in the order of arrival, and what it refuses to open."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from recgpt.errors import ConfigError
from recgpt.serve.problems import Refused
from recgpt.serve.reading import Event
from recgpt.serve.store import FORMAT, EventStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serve" / "events.sqlite"


def event(user: str = "u", item: int | str = 1, event_id: str | None = None, time: int | None = 5) -> Event:
    return Event(item, time, {"device": "phone", "volume": 0.1}, {"click": 1}, user, event_id)


def test_events_come_back_as_they_were_after_a_restart(path: Path) -> None:
    events = [
        event(item=-(2**63)),
        event(item=2**63 - 1, time=None),
        event(item="7", event_id="e"),
        event(user="a/б\n-1", item="007"),
        event(item=7)._replace(context={}, outcomes={}),
    ]
    store = EventStore(path)
    assert store.add(events) == (5, 0)
    store.close()
    again = EventStore(path)
    assert [each.event for each in again.since("u")] == [events[0], events[1], events[2], events[4]]
    assert [type(each.event.item) for each in again.since("u")] == [int, int, str, int]
    assert [each.event for each in again.since("a/б\n-1")] == [events[3]]
    assert again.since("nobody") == []
    assert again.counts() == (5, 2)
    again.close()


def test_since_gives_what_came_after(path: Path) -> None:
    store = EventStore(path)
    store.add([event(item=1), event("other"), event(item=2)])
    first, second = store.since("u")
    store.add([event("other"), event(item=3, time=0)])
    assert [each.event.item for each in store.since("u", first.seq)] == [2, 3]
    assert [each.event.item for each in store.since("u", second.seq)] == [3]
    with sqlite3.connect(path) as connection:
        plan = " ".join(
            row[3]
            for row in connection.execute(
                "EXPLAIN QUERY PLAN SELECT seq FROM events JOIN users ON users.id = events.user "
                "WHERE name = 'u' AND seq > 3 ORDER BY seq"
            )
        )
    connection.close()
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan
    store.close()


def test_an_event_id_counts_once(path: Path) -> None:
    store = EventStore(path)
    assert store.add([event(event_id="a"), event(event_id="a"), event(), event()]) == (3, 1)
    assert store.add([event(event_id="a"), event(event_id="b")]) == (1, 1)
    # The integer 1 and the text "1" are one id, 1.0 and 1 one number.
    assert store.add([event(item="1", event_id="a")._replace(outcomes={"click": 1.0})]) == (0, 1)
    assert len(store.since("u")) == 4
    store.close()


@pytest.mark.parametrize(
    "other",
    [
        event("v", event_id="a"),
        event(item=2, event_id="a"),
        event(time=6, event_id="a"),
        event(event_id="a")._replace(outcomes={}),
        event(event_id="a")._replace(context={"device": "phone"}),
    ],
)
def test_an_event_id_with_other_values_keeps_nothing_of_the_request(path: Path, other: Event) -> None:
    store = EventStore(path)
    store.add([event(event_id="a")])
    with pytest.raises(Refused, match="other values") as error:
        store.add([event("new"), event(event_id="a"), other])
    assert error.value.body["error"]["field"] == "events[2].event_id"
    assert store.counts() == (1, 1)
    assert store.add([event("new")]) == (1, 0)
    store.close()


def test_a_failure_in_between_keeps_nothing(path: Path) -> None:
    store = EventStore(path)
    with pytest.raises(sqlite3.Error):
        store.add([event("first"), event("second")._replace(item=None)])  # type: ignore[arg-type]
    assert store.counts() == (0, 0)
    assert store.add([event("third")]) == (1, 0)
    store.close()


def test_commits_are_flushed(path: Path) -> None:
    store = EventStore(path)
    for connection in (store._writer, store._connect()):
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()
    store.close()


def test_two_stores_and_many_threads_share_a_file(path: Path) -> None:
    stores = [EventStore(path), EventStore(path)]
    results: list[tuple[int, int]] = []

    def post(thread: int) -> None:
        for i in range(20):
            results.append(stores[thread % 2].add([event(f"u{i % 3}", event_id=str(i)), event("all")]))
            stores[thread % 2].since("all")

    threads = [threading.Thread(target=post, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert sum(accepted for accepted, _ in results) == 20 + 80
    assert sum(duplicates for _, duplicates in results) == 60
    assert len(stores[0].since("all")) == len(stores[1].since("all")) == 80
    for store in stores:
        store.close()


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 100)
    with pytest.raises(ConfigError, match="serve.store: .*notes.txt.*not a database"):
        EventStore(text)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ConfigError, match="another program's"):
        EventStore(foreign)
    EventStore(tmp_path / "new.sqlite").close()
    with sqlite3.connect(tmp_path / "new.sqlite") as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    with pytest.raises(ConfigError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        EventStore(tmp_path / "new.sqlite")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        EventStore(text / "events.sqlite")
    assert text.read_text().startswith("not a database")
