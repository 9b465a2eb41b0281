"""User states of one process: kept within a byte budget, grown by new events, rebuilt from the store when they must be.

The store is the truth: a kept state says up to which event it has read, and every request asks the store for what came
after. So a state that was dropped, a restart or another process on the same store change no answer.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recgpt.api import RecGPT
from recgpt.data.events import NO_TIME, Events
from recgpt.state import UserState

from .reading import to_events
from .store import EventStore, Stored


class Logged(Protocol):
    """Where users may begin."""

    def history(self, user: str) -> Events | None:
        """A user's events before those of the store."""


class Served(NamedTuple):
    """A state and where it came from: hit, append, rebuild or empty."""

    state: UserState
    source: str


class Kept(NamedTuple):
    """A kept state.

    Attributes:
        state: after all events up to `seq`.
        seq: the newest event of the store that it has read; 0 = none.
        moment: the latest of its events' places in time, microseconds.
        size: bytes.
    """

    state: UserState
    seq: int
    moment: int
    size: int


class StateCache:
    """The most recently used states within a budget of bytes.

    Args:
        budget: bytes; a state larger than all of it is not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.size = budget, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, user: str) -> Kept | None:
        """A user's state, which becomes the most recently used."""
        with self._lock:
            if user in self._kept:
                self._kept.move_to_end(user)
            return self._kept.get(user)

    def put(self, user: str, kept: Kept) -> None:
        """Keep a state in the place of the user's last one, and drop others as the budget demands."""
        with self._lock:
            self._drop(user)
            if kept.size > self.budget:
                return
            while self.size + kept.size > self.budget:
                self._drop(next(iter(self._kept)))
            self._kept[user] = kept
            self.size += kept.size

    def _drop(self, user: str) -> None:
        old = self._kept.pop(user, None)
        self.size -= old.size if old is not None else 0

    def clear(self) -> None:
        """Drop every state."""
        with self._lock:
            self._kept.clear()
            self.size = 0


class KeyedLocks:
    """One lock a key, there as long as someone holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the key's lock."""
        with self._lock:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                users = self._locks[key][1]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1


class UserStates:
    """The states of a store's users.

    Args:
        model: builds them, one user at a time on the chunk path.
        store: their events.
        budget: bytes of the kept ones.
        logged: where users begin, if not with nothing.
        counted: called with the source of every state.
    """

    def __init__(
        self,
        model: RecGPT,
        store: EventStore,
        budget: int,
        logged: Logged | None = None,
        counted: Callable[[str], None] = lambda source: None,
    ) -> None:
        self.model, self.store, self.logged, self.counted = model, store, logged, counted
        self.cache, self.locks = StateCache(budget), KeyedLocks()

    @cached_property
    def empty(self) -> UserState:
        """The state of a user without events."""
        return self.model.encode({})

    def get(self, user: str) -> Served:
        """A user's state after all events of the store; bit for bit what `RecGPT.encode` makes of them."""
        with self.locks.hold(user):
            served = self._get(user)
        self.counted(served.source)
        return served

    def inline(self, events: Events) -> Served:
        """The state of a request's own history."""
        state = self.model.encode(events) if len(events) or events.profile else self.empty
        served = Served(state, "inline")
        self.counted(served.source)
        return served

    def _get(self, user: str) -> Served:
        kept = self.cache.get(user)
        new = self.store.since(user, 0 if kept is None else kept.seq)
        if kept is not None:
            if not new:
                return Served(kept.state, "hit")
            moments = self._moments(new, kept.moment)
            if min(moments) >= kept.moment:
                return Served(self._keep(user, self._grown(kept.state, new, moments), new, max(moments)), "append")
            new = self.store.since(user)  # one of them belongs between the old ones
        return self._rebuilt(user, new)

    def _grown(self, state: UserState, new: Sequence[Stored], moments: NDArray[np.int64]) -> UserState:
        order = np.argsort(moments, kind="stable")
        return self.model.append(state, to_events([new[i].event for i in order], self.model.schema))

    def _rebuilt(self, user: str, stored: Sequence[Stored]) -> Served:
        before = None if self.logged is None else self.logged.history(user)
        if before is None and not stored:
            return Served(self.empty, "empty")
        parts = to_events([each.event for each in stored], self.model.schema)
        early = np.zeros(0, np.int64) if before is None else self._clock(before)
        moments = np.concatenate((early, self._moments(stored, int(early.max(initial=0)))))
        if before is not None:
            parts = Events.concat([before, parts])
        order = np.argsort(moments, kind="stable")
        columns = {name: column[order] for name, column in parts.columns().items()}
        state = self.model.encode(Events.from_columns(columns, parts.profile))
        return Served(self._keep(user, state, stored, int(moments.max(initial=0))), "rebuild")

    def _moments(self, stored: Sequence[Stored], newest: int) -> NDArray[np.int64]:
        """Where events belong in time: at their own time, one without after the newest that was there when it came."""
        if not self.model.schema.has_time:
            return np.zeros(len(stored), np.int64)
        moments = np.zeros(len(stored), np.int64)
        for place, (_, event) in enumerate(stored):
            moments[place] = newest if event.time is None else event.time
            newest = max(newest, int(moments[place]))
        return moments

    def _clock(self, logged: Events) -> NDArray[np.int64]:
        """Where a log's events belong in time; they keep their order, whatever their clock says."""
        if not self.model.schema.has_time:
            return np.zeros(len(logged), np.int64)
        return np.maximum.accumulate(np.where(logged.time == NO_TIME, 0, logged.time))

    def _keep(self, user: str, state: UserState, stored: Sequence[Stored], moment: int) -> UserState:
        seq = stored[-1].seq if stored else 0
        self.cache.put(user, Kept(state, seq, int(moment), state_bytes(state)))
        return state


def state_bytes(state: UserState) -> int:
    """Memory that a state holds on to, arrays behind views included."""
    tensors: list[Tensor] = [state.first, state.hidden, state.embedding]
    tensors += [tensor for pair in state.cache or [] for tensor in pair]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    arrays = [_whole(array) for array in (*state.events.columns().values(), state.category, state.seen)]
    owned = {id(array): array.nbytes for array in arrays}
    return sum(storages.values()) + sum(owned.values()) + _OBJECTS


def _whole(array: NDArray) -> NDArray:
    return _whole(array.base) if isinstance(array.base, np.ndarray) else array


_OBJECTS = 4096
"""Bytes of a state's Python objects, about."""
