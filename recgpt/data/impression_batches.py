"""Impressions grouped by the window that their states read: one causal pass serves all of a user's impressions.

An impression of history h reads the state at h, that is the events [start(h), h). Impressions of one user and one start
share a window; each reads a prefix of its pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recgpt.data.batch import EventBatch, collate, gap_between, hours
from recgpt.data.events import NO_TIME, Events, profile_rows
from recgpt.data.impressions import Impressions
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import padded_widths
from recgpt.data.targets import Chosen
from recgpt.data.window import WindowConfig

Track = Literal["online", "frozen"]
PARTS = {"train": 0, "valid": 1, "test": 2}
BLOCK = 1 << 20
MOST_IN_GROUP = 64
"""Impressions of one group; a user with more has several groups, so that batches stay alike."""


@dataclass(frozen=True)
class ImpressionBatch:
    """N impressions over B windows.

    Attributes:
        events: the windows; `position` [N] is where each impression's state stands, `target` [N] its candidate.
        context: name -> int64 or float32 [N].
        hour: int64 [N], see `hours`.
        gap: int64 [N], bucket of the time since the last event that the impression reads.
        labels: name -> float32 [N], NaN = unknown.
        row: int64 [N], which of the sampler's impressions.
    """

    events: EventBatch
    context: dict[str, Tensor]
    hour: Tensor
    gap: Tensor
    labels: dict[str, Tensor]
    row: Tensor


def read_impressions(prepared: Prepared, parts: Sequence[int]) -> Impressions:
    """All impressions of some parts, in the log's order."""
    found = []
    for first in range(0, prepared.n_events, BLOCK):
        block = prepared.impressions(first, min(first + BLOCK, prepared.n_events))
        found.append(_take(block, np.isin(block.part, parts)))
    names = Impressions.__dataclass_fields__
    return Impressions(**{name: np.concatenate([getattr(block, name) for block in found]) for name in names})


def _take(block: Impressions, mask: NDArray[np.bool_]) -> Impressions:
    return Impressions(**{name: getattr(block, name)[mask] for name in Impressions.__dataclass_fields__})


class ImpressionBatches:
    """The batches of the impressions of some parts.

    Args:
        prepared: the log.
        window: the window rule.
        tokens: padded events of a batch, at most (one window may exceed it).
        parts: of the impressions.
        track: the history that they read.
        seed: of the order.
        group: impressions that share a window's pass, at most.
        stale: share of the impressions of an epoch that read an older state, see `_dropped`.
    """

    def __init__(
        self,
        prepared: Prepared,
        window: WindowConfig,
        tokens: int,
        parts: Sequence[str],
        track: Track = "online",
        seed: int = 0,
        group: int = MOST_IN_GROUP,
        stale: float = 0.0,
    ) -> None:
        self.prepared, self.tokens, self.seed, self.stale = prepared, tokens, seed, stale
        self.impressions = read_impressions(prepared, [PARTS[part] for part in parts])
        self.history = self.impressions.online if track == "online" else self.impressions.frozen
        place = self.impressions.place
        self.user = np.searchsorted(prepared.users.offset, place, side="right") - 1
        self.start = window.start(self.history)
        # The shortest history whose state has this start.
        self._shortest = np.where(self.start > 0, self.start + window.length - window.S + 1, 0)
        self._group(window.length, group)
        self._order: tuple[int, list[NDArray[np.int64]]] | None = None

    def _group(self, longest: int, most: int) -> None:
        """Cut the impressions, sorted by window, into groups of at most `most`."""
        self._sorted = np.lexsort((self.start, self.user))
        user, start = self.user[self._sorted], self.start[self._sorted]
        new = np.flatnonzero((np.diff(user, prepend=-1) != 0) | (np.diff(start, prepend=-1) != 0))
        size = np.diff(new, append=len(user))
        pieces = -(-size // most)
        within = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._begin = np.repeat(new, pieces) + within * most
        self._end = np.minimum(self._begin + most, np.repeat(new + size, pieces))
        longest_history = np.zeros(0, np.int64)
        if len(self._begin):
            longest_history = np.maximum.reduceat(self.history[self._sorted], self._begin)
        self._length = longest_history - start[self._begin]
        self._widths = padded_widths(self._length, longest)

    def __len__(self) -> int:
        """Impressions."""
        return len(self.user)

    def order(self, epoch: int | None) -> list[NDArray[np.int64]]:
        """The groups of each batch of an epoch; None: not shuffled."""
        if epoch is not None and self._order is not None and self._order[0] == epoch:
            return self._order[1]
        if epoch is None:
            mine = np.argsort(self._widths, kind="stable")
        else:
            mine = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self._widths))
        batches = self._cut(mine)
        if epoch is not None:
            self._order = (epoch, batches)
        return batches

    def _cut(self, groups: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Groups in batches, cut where the tokens are full; the first group of a batch may exceed them.

        A group costs its padded events or, where it has more of them, its impressions.
        """
        cost = np.maximum(self._widths, self._end - self._begin)[groups]
        number = (np.cumsum(cost) - 1) // self.tokens
        return np.split(groups, np.flatnonzero(np.diff(number)) + 1) if len(groups) else []

    def sample(self, impressions: int) -> Iterator[ImpressionBatch]:
        """Random groups with about so many impressions in all (or all there are), none of them stale."""
        groups = np.random.Generator(np.random.PCG64([self.seed, 0, 2])).permutation(len(self._widths))
        enough = np.searchsorted(np.cumsum((self._end - self._begin)[groups]), impressions) + 1
        chosen = groups[:enough]
        for batch in self._cut(chosen[np.argsort(self._widths[chosen], kind="stable")]):
            yield self.batch(batch)

    def epoch(self, epoch: int | None, skip: int = 0) -> Iterator[list[ImpressionBatch]]:
        """The batches of one epoch after the first `skip`; None: all impressions once, sorted by width.

        Each comes in parts of like width: a batch of random groups is an unbiased sample of the impressions (users of
        like history are alike, so batches of one width pull the base rates to and fro), and little of it is padding.
        """
        history = self.history if epoch is None else self.history - self._dropped(epoch)
        for groups in self.order(epoch)[skip:]:
            kind = np.ceil(np.log2(self._widths[groups]))
            yield [self.batch(groups[kind == width], history) for width in np.unique(kind)]

    def _dropped(self, epoch: int) -> NDArray[np.int64]:
        """The newest events that each impression does without in an epoch, int64 [N].

        A share `stale` of them reads a state that is d events old, d log-uniform from 1 to as many as the window
        allows: states are exported and cached, and how much of today is known then says less of the user.
        """
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch, 1]))
        chosen, depth = rng.random((2, len(self)))
        most = self.history - self._shortest
        return np.where((chosen < self.stale) & (most > 0), ((most + 1.0) ** depth).astype(np.int64), 0)

    def batch(self, groups: NDArray[np.int64], history: NDArray[np.int64] | None = None) -> ImpressionBatch:
        """The batch of some groups.

        Args:
            groups: which.
            history: int64, events that each of all the impressions reads; default all that it may.
        """
        history = self.history if history is None else history
        offset, place = self.prepared.users.offset, self.impressions.place
        windows, shown, targets, before, rows = [], [], [], [], []
        users = self.user[self._sorted[self._begin[groups]]]
        profiles = profile_rows(self.prepared.profile(users), len(users))
        for group, user, profile in zip(groups, users, profiles, strict=True):
            mine = self._sorted[self._begin[group] : self._end[group]]
            first = int(offset[user] + self.start[mine[0]])
            last = max(int(place[mine].max()) + 1, first + int(self._length[group]))
            span = self.prepared.events(first, last)
            windows.append(span[: int(self._length[group])].with_profile(profile))
            picked = _pick(span, place[mine] - first)
            position = history[mine] - self.start[mine]
            shown.append(picked)
            targets.append(Chosen(position, picked.item))
            before.append(np.append(span.time, NO_TIME)[position - 1])
            rows.append(mine)
        every = Events.concat(shown)
        return ImpressionBatch(
            events=collate(windows, self.prepared.items, targets, int(self._widths[groups].max())),
            context={name: torch.from_numpy(column) for name, column in every.context.items()},
            hour=torch.from_numpy(hours(every.time)),
            gap=torch.from_numpy(gap_between(np.concatenate(before), every.time)),
            labels={name: torch.from_numpy(column) for name, column in every.outcomes.items()},
            row=torch.from_numpy(np.concatenate(rows)),
        )


def _pick(events: Events, rows: NDArray[np.int64]) -> Events:
    return Events.from_columns({name: column[rows] for name, column in events.columns().items()})
