"""Training windows and their order: a pure function of (seed, epoch, rank), so that a position is two integers.

Windows are [kS, kS + W) of a user's training events; only positions n with start(n) = kS carry a target, so
every event is predicted once (with `newest`, every one of those), from exactly the events that a state at its n reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recgpt.data.batch import EventBatch, collate
from recgpt.data.events import Events, profile_rows
from recgpt.data.negatives import Negatives
from recgpt.data.prepared import Prepared
from recgpt.data.targets import NextItem, Targets
from recgpt.data.window import WindowConfig

COUNT_BLOCK = 1 << 20


@dataclass(frozen=True)
class Windows:
    """M training windows.

    Attributes:
        user: int64 [M] user rows.
        first: int64 [M] global position of the window's first event.
        length: int64 [M] input events.
        skip: int64 [M] positions before this one carry no target (an earlier window predicts them, or none).
    """

    user: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    skip: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Predicted:
    """Which training events are predicted.

    Attributes:
        every: also those that are no target of the log.
        newest: of each user so many, the newest; None = all.
    """

    every: bool = False
    newest: int | None = None


def training_windows(prepared: Prepared, window: WindowConfig, which: Predicted, reach: int = 0) -> Windows:
    """All training windows with an event to predict, in user order.

    It lies at most `reach` events after the one that follows the window.
    """
    users = prepared.users
    last = users.train_end - 1  # the last event to predict is at position train_end - 1, from the events before it
    count = np.where(last >= 0, window.start(np.maximum(last, 0)) // window.S + 1, 0)
    user = np.repeat(np.arange(len(count)), count)
    k = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    start = k * window.S
    length = np.minimum(window.length, last[user] - start)
    skip = np.where(k > 0, window.length - window.S + 1, 0)
    first = users.offset[user] + start
    if which.newest is not None:
        skip = np.maximum(skip, users.train_end[user] - which.newest - start)
        user, first, length, skip = (column[skip <= length] for column in (user, first, length, skip))
    if which.every:
        return Windows(user, first, length, skip)
    stop = np.minimum(first + length + 1 + reach, users.offset[user] + users.train_end[user])
    keep = count_targets(prepared, first + skip, stop) > 0
    return Windows(user[keep], first[keep], length[keep], skip[keep])


def padded_widths(length: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Widths that windows are padded to, int64 [M]: four to each doubling, so few shapes and little padding."""
    powers = 2 ** np.floor(np.log2(np.maximum(length, 1))).astype(np.int64)
    grain = np.maximum(4, powers // 4)
    return np.minimum(-(-np.maximum(length, 1) // grain) * grain, max(longest, 1))


def count_targets(prepared: Prepared, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many targets lie in [start, stop) of the log, for each of M ranges; reads the log once in blocks."""
    before_start, before_stop = np.zeros(len(start), np.int64), np.zeros(len(stop), np.int64)
    total = 0
    for first in range(0, prepared.n_events, COUNT_BLOCK):
        target = prepared.events(first, min(first + COUNT_BLOCK, prepared.n_events)).target
        running = total + np.concatenate(([0], np.cumsum(target)))
        for place, count in ((start, before_start), (stop, before_stop)):
            here = (place >= first) & (place < first + len(running))
            count[here] = running[place[here] - first]
        total = int(running[-1])
    return before_stop - before_start


class TrainingBatches:
    """The batches of each epoch, in length buckets.

    Args:
        prepared: the log.
        window: the window rule.
        tokens: padded events of a batch, at most (one window may exceed it).
        seed: run seed.
        share: this process, and how many share the windows.
        which: events that are predicted.
        targets: what positions predict; default the next item.
        negatives: draws what the targets of a batch are compared with.
    """

    def __init__(
        self,
        prepared: Prepared,
        window: WindowConfig,
        tokens: int,
        seed: int,
        *,
        share: tuple[int, int] = (0, 1),
        which: Predicted = Predicted(),
        targets: Targets | None = None,
        negatives: Negatives | None = None,
    ) -> None:
        self.prepared, self.tokens, self.seed = prepared, tokens, seed
        self.rank, self.world = share
        self.targets = targets or NextItem(which.every)
        self.negatives = negatives
        self.windows = training_windows(prepared, window, which, self.targets.reach)
        self.widths = padded_widths(self.windows.length, window.length)
        self._order: tuple[int, list[NDArray[np.int64]]] | None = None

    def order(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of `windows` in each batch of an epoch."""
        if self._order is not None and self._order[0] == epoch:
            return self._order[1]
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        mine = rng.permutation(len(self.windows))
        mine = mine[np.argsort(-self.widths[mine], kind="stable")]
        batches, first = [], 0
        while first < len(mine):  # the next width fills a batch up: few shapes, and at most one small batch
            size = max(1, self.tokens // int(self.widths[mine[first]]))
            batches.append(mine[first : first + size])
            first += size
        rng.shuffle(batches)
        share = -(-len(batches) // self.world)  # every rank takes as many steps, so that none waits for ever
        batches = [batches[i % len(batches)] for i in range(share * self.world)] if batches else []
        self._order = (epoch, batches[self.rank :: self.world])
        return self._order[1]

    def __len__(self) -> int:
        return len(self.order(0))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[EventBatch]:
        """The batches of one epoch after the first `skip`."""
        for number, rows in enumerate(self.order(epoch)[skip:], skip):
            yield self.batch(rows, (epoch, number * self.world + self.rank))

    def batch(self, rows: NDArray[np.int64], place: tuple[int, int] = (0, 0)) -> EventBatch:
        """The batch of some windows; `place`, its epoch and number, fixes what is drawn for it."""
        rng = np.random.Generator(np.random.PCG64([self.seed, *place, 1]))
        inputs, targets = [], []
        profiles = profile_rows(self.prepared.profile(self.windows.user[rows]), len(rows))
        for row, profile in zip(rows, profiles, strict=True):
            events, length = self._events(row)
            inputs.append(events[:length].with_profile(profile))
            skip = int(self.windows.skip[row])
            targets.append(replace(self.targets.choose(events, length, skip, rng), skip=skip))
        negatives = None
        if self.negatives is not None:
            negatives = self.negatives(rng, inputs, targets)
        return collate(inputs, self.prepared.items, targets, int(self.widths[rows].max()), negatives)

    def _events(self, row: int) -> tuple[Events, int]:
        """The training events of a window and after it, as far as the targets may reach, and how many are inputs."""
        first, length = int(self.windows.first[row]), int(self.windows.length[row])
        user = self.windows.user[row]
        end = int(self.prepared.users.offset[user] + self.prepared.users.train_end[user])
        return self.prepared.events(first, min(end, first + length + 1 + self.targets.reach)), length
