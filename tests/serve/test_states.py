"""Kept states: what they cost, which go, who may build them, and that a grown one equals one encoded at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from recgpt.data.events import Events
from recgpt.ranker import Ranker
from recgpt.serve.reading import Event, to_events
from recgpt.serve.states import Kept, KeyedLocks, StateCache, UserStates, state_bytes
from recgpt.serve.store import EventStore
from tests.recgpt.builders import columns, events, recgpt, schema

SECOND = 10**6


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    opened = EventStore(tmp_path / "events.sqlite")
    yield opened
    opened.close()


def post(store: EventStore, times: list[int | None], user: str = "u", first_item: int = 0) -> list[Event]:
    made = [Event(first_item + i, time and time * SECOND, {}, {}, user) for i, time in enumerate(times)]
    store.add(made)
    return made


def kept(size: int) -> Kept:
    return Kept(NamedTuple("Any", [])(), 0, 0, size)  # type: ignore[arg-type, misc]


def test_the_least_recently_used_go_first() -> None:
    cache = StateCache(100)
    for name in "abc":
        cache.put(name, kept(30))
    assert cache.get("a") is not None  # now b is the oldest
    cache.put("d", kept(35))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.size == 95
    cache.put("a", kept(80))  # in the place of its last one; c and d go
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, False, False]
    assert (cache.size, len(cache)) == (80, 1)
    cache.put("a", kept(101))  # more than all of it
    assert (cache.get("a"), cache.size, len(cache)) == (None, 0, 0)


def test_bytes_of_a_state_count_what_its_views_hold_on_to() -> None:
    model = recgpt()
    small, large = model.encode(events(16)), model.encode(events(3000))
    own = sum(t.nbytes for t in (small.first, small.hidden, *(t for pair in small.cache or [] for t in pair)))
    assert own + small.seen.nbytes < state_bytes(small) < own + 8192
    # The window's columns are slices: the whole history's times (8 bytes an event) stay in memory with them.
    assert state_bytes(large) > 3000 * 8 + own


def test_one_user_one_lock_and_none_left_behind() -> None:
    locks, inside, most = KeyedLocks(), 0, 0

    def work(key: str) -> None:
        nonlocal inside, most
        for _ in range(200):
            with locks.hold(key):
                if key == "u":
                    inside += 1
                    most = max(most, inside)
                    inside -= 1

    threads = [threading.Thread(target=work, args=(key,)) for key in "uuuv"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert locks._locks == {}
    with pytest.raises(ZeroDivisionError), locks.hold("u"):
        1 / 0  # noqa: B018
    assert locks._locks == {}


def test_where_a_state_comes_from(store: EventStore) -> None:
    counted: list[str] = []
    states = UserStates(recgpt(), store, 10**9, counted=counted.append)
    assert states.get("u").source == "empty"
    post(store, [10, 20])
    assert states.get("u").source == "rebuild"
    assert states.get("u").source == "hit"
    post(store, [20, 30])
    assert states.get("u").source == "append"  # of equal time comes after
    post(store, [29])
    assert states.get("u").source == "rebuild"  # late
    post(store, [30], user="v")
    assert states.get("u").source == "hit"
    states.cache.clear()
    assert states.get("u").source == "rebuild"
    assert states.inline(events(3)).source == "inline"
    assert counted == ["empty", "rebuild", "hit", "append", "rebuild", "hit", "rebuild", "inline"]


def test_a_budget_of_nothing_keeps_nothing(store: EventStore) -> None:
    states = UserStates(recgpt(), store, 0)
    post(store, [1])
    assert [states.get("u").source for _ in range(2)] == ["rebuild", "rebuild"]
    assert (states.cache.size, len(states.cache)) == (0, 0)


@pytest.mark.parametrize("late", [False, True])
def test_appending_and_rebuilding_equal_encoding_at_once(store: EventStore, late: bool) -> None:
    """Event by event over two slides of the window; bit for bit."""
    model = recgpt()
    states, rng = UserStates(model, store, 10**9), np.random.default_rng(0)
    known: list[Event] = []
    for step in range(26):
        time = 1000 + step if not late else 1000 + int(rng.integers(0, 20))
        known += post(store, [time], first_item=step)
        known.sort(key=lambda event: event.time or 0)
        served, expected = states.get("u"), model.encode(to_events(known, model.schema))
        assert torch.equal(served.state.hidden, expected.hidden)
        assert torch.equal(served.state.embedding, expected.embedding)
        assert served.state.content_hash == expected.content_hash
        assert served.state.last_time == expected.last_time
        np.testing.assert_array_equal(served.state.seen, expected.seen)
        if not late:
            assert served.source == ("rebuild" if step == 0 else "append")


def test_without_a_clock_events_stay_in_the_order_of_arrival(store: EventStore) -> None:
    clockless = recgpt(log=schema(time=None, has_time=False))
    states = UserStates(clockless, store, 10**9)
    post(store, [30, 10])
    assert states.get("u").state.events.item.tolist() == clockless.events({"item": [0, 1]}).item.tolist()
    post(store, [5], first_item=2)
    served = states.get("u")
    assert served.source == "append"
    assert served.state.events.item.tolist() == clockless.events({"item": [0, 1, 2]}).item.tolist()
    # A store that was filled without a clock, now served with one: such events stay where they came.
    store.add([Event(3, None, {}, {}, "u"), Event(4, 20 * SECOND, {}, {}, "u")])
    clocked = UserStates(recgpt(), store, 10**9).get("u")
    assert clocked.state.events.item.tolist() == recgpt().events({"item": [2, 1, 4, 0, 3]}).item.tolist()


class Log:
    """A log with one user."""

    def __init__(self, history: Events) -> None:
        self.before = history

    def history(self, user: str) -> Events | None:
        return self.before if user == "u" else None


def test_users_may_begin_with_their_log(store: EventStore) -> None:
    """Its events keep their order; posted ones are sorted in by time, after what has the same time."""
    model, profile = recgpt(), {"age": 31, "country": "NO"}
    history = model.events({"item": [10, 11, 12], "time": [100, 200, None]}, profile)
    states = UserStates(model, store, 10**9, Log(history))
    begun = states.get("u")
    assert (begun.source, begun.state.n) == ("rebuild", 3)
    assert torch.equal(begun.state.embedding, model.encode(history).embedding)
    other = model.encode(history.with_profile({"age": 60.0, "country": 0}))
    assert not torch.equal(begun.state.embedding, other.embedding)
    assert states.get("u").source == "hit"
    assert states.get("v").source == "empty"
    post(store, [200, 300], first_item=20)
    grown = states.get("u")
    assert grown.source == "append"
    post(store, [150], first_item=30)
    late = states.get("u")
    assert late.source == "rebuild"
    order = {"item": [10, 30, 11, 12, 20, 21], "time": [100, 150, 200, None, 200, 300]}
    expected = model.encode(order, profile=profile)
    for state in (late.state, UserStates(model, store, 0, Log(history)).get("u").state):
        assert torch.equal(state.embedding, expected.embedding)
        assert torch.equal(state.hidden, expected.hidden)


def test_requests_at_the_same_time_share_one_build(ranker: Ranker, store: EventStore) -> None:
    counted: list[str] = []
    states = UserStates(ranker.recgpt, store, 10**9, counted=counted.append)
    table = columns(40)
    store.add([Event(i, t * SECOND, {}, {}, "u") for i, t in zip(table["item"], table["time"], strict=True)])
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(states.get("u").state.embedding)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counted) == ["hit"] * 7 + ["rebuild"]
    assert all(torch.equal(each, found[0]) for each in found)
