"""UserState: what is kept of a user, and the chunk path that builds it.

`build` and `extend` run fixed shapes (one user, whole chunks of C events, the tail padded to a chunk), so a state
that grew event by event equals one that was encoded at once, bit for bit, on one machine and thread count. A model
whose older hidden vectors change with every event (`model.positions: reverse`, `model.causal: false`) reads the window
anew each time, in one pass of whole chunks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from recgpt.data.batch import EventBatch, chunk_batch, collate, gap_buckets, on_device, profile_columns, tensor
from recgpt.data.events import NO_TIME, Events
from recgpt.data.items import ItemTable
from recgpt.data.window import LikeWindows
from recgpt.errors import ConfigError, RecGPTError
from recgpt.model import EventModel
from recgpt.nn.linear import few_sizes
from recgpt.nn.transformer import KeyValue


@dataclass(frozen=True, eq=False)
class UserState:
    """A user after n events, m = n - start of them in the window.

    Attributes:
        first: float32 [D], hidden vector of the first token: the window before any event, and the user's profile.
        hidden: float32 [m, D], last-layer hidden vectors of the window's events.
        embedding: float32 [D], the query vector (of length 1, unless `model.score: dot`).
        events: the window's events [m] (item hashes, times, outcomes, context).
        category: int64 [m], hashes of the items' categories, 0 = unknown.
        n: the user's events ever.
        start: the window's first event.
        last_time: microseconds since 1970 UTC of the newest event with a known time, or NO_TIME.
        seen: int64, hashes of the distinct items of all the user's events, ordered by their last occurrence.
        seen_cut: whether some are missing from `seen`: dropped by `max_seen`, or of events that were left out.
        content_hash: xxh64 chained over the profile and the window's events: equal histories, equal hashes.
        fingerprint: of the model and schema; a state of another model is refused.
        cache: keys and values of the first token and the whole chunks, in memory only; None where they would not hold
            (a model that reads the window anew with every event) or were not serialised.
    """

    first: Tensor
    hidden: Tensor
    embedding: Tensor
    events: Events
    category: NDArray[np.int64]
    n: int
    start: int
    last_time: int
    seen: NDArray[np.int64]
    seen_cut: bool
    content_hash: int
    fingerprint: str
    cache: list[KeyValue] | None = field(default=None, repr=False)

    def to_bytes(self, kv: bool = False) -> bytes:
        """Serialise (safetensors); `kv` adds the cached keys and values, which are otherwise rebuilt when needed."""
        tensors = {"first": self.first, "hidden": self.hidden, "embedding": self.embedding}
        columns = self.events.columns() | {"category": self.category, "seen": self.seen}
        tensors |= {f"n.{name}": tensor(c) for name, c in columns.items()}
        if kv and self.cache is not None:
            for layer, (k, v) in enumerate(self.cache):
                tensors |= {f"kv.{layer}.k": k, f"kv.{layer}.v": v}
        scalars = {name: getattr(self, name) for name in _SCALARS}
        scalars["profile"] = {name: _plain(value) for name, value in self.events.profile.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return safetensors.torch.save(tensors, {"state": json.dumps(scalars)})

    @classmethod
    def from_bytes(cls, data: bytes) -> UserState:
        """The inverse of `to_bytes`; raises RecGPTError on bytes that are no whole state."""
        try:
            tensors = safetensors.torch.load(data)
            size = int.from_bytes(data[:8], "little")
            scalars = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
            return cls._from_parts(tensors, scalars)
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            detail = " ".join(str(error).split())
            raise RecGPTError(
                f"state: {len(data)} bytes are no whole user state ({detail}); encode the user again"
            ) from error

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> UserState:
        columns = {name[2:]: value.numpy() for name, value in tensors.items() if name.startswith("n.")}
        profile = {name: float("nan") if value is None else value for name, value in scalars.pop("profile").items()}
        layers = sum(name.startswith("kv.") and name.endswith(".k") for name in tensors)
        state = cls(
            first=tensors["first"],
            hidden=tensors["hidden"],
            embedding=tensors["embedding"],
            category=columns.pop("category"),
            seen=columns.pop("seen"),
            events=Events.from_columns(columns, profile),
            cache=[(tensors[f"kv.{i}.k"], tensors[f"kv.{i}.v"]) for i in range(layers)] or None,
            **scalars,
        )
        sizes = {len(state.hidden), len(state.events), len(state.category), state.n - state.start}
        if len(sizes) > 1:
            raise ValueError(f"its parts hold {sorted(sizes)} events")
        return state


def _plain(value: int | float) -> int | float | None:
    return None if value != value else value  # JSON has no NaN


_SCALARS = ("n", "start", "last_time", "seen_cut", "content_hash", "fingerprint")


def newest_distinct(hashes: NDArray[np.int64], limit: int) -> tuple[NDArray[np.int64], bool]:
    """Distinct hashes ordered by last occurrence, the newest `limit` of them, and whether any was dropped."""
    _, backward = np.unique(hashes[::-1], return_index=True)
    order = np.sort(len(hashes) - 1 - backward)
    cut = len(order) > limit
    return hashes[order[len(order) - min(limit, len(order)) :]], cut


def chain_hash(events: Events, previous: int | None = None) -> int:
    """xxh64 chained from the profile event by event, so that it can go on from a prefix's value."""
    columns = events.columns()
    rows = np.concatenate(
        [np.ascontiguousarray(columns[name]).reshape(len(events), 1).view(np.uint8) for name in sorted(columns)], 1
    )
    value = _profile_hash(events.profile) if previous is None else previous
    for row in rows:
        value = xxhash.xxh64_intdigest(value.to_bytes(8, "little") + row.tobytes())
    return value


def _profile_hash(profile: Mapping[str, int | float]) -> int:
    return xxhash.xxh64_intdigest(repr(sorted(profile.items())).encode()) if profile else 0


def known_only(batch: EventBatch, trained: NDArray[np.int64]) -> EventBatch:
    """The batch with the hashes that are not among `trained` (ascending) set to 0: no id."""
    hashes = batch.items.numpy()
    place = np.searchsorted(trained, hashes).clip(max=max(0, len(trained) - 1))
    seen = trained[place] == hashes if len(trained) else np.zeros(len(hashes), bool)
    return replace(batch, items=torch.from_numpy(np.where(seen, hashes, 0)))


_Encoded = tuple[Tensor, Tensor, Tensor, list[KeyValue] | None]
"""Hidden vectors of the first token [D] and the window [m, D], what the query is made of [D], whole chunks' cache."""


class StateBuilder:
    """The chunk path of one model.

    Args:
        model: in eval mode.
        items: the run's items (features, content, categories).
        trained: sorted hashes of the items with a training event; others are read by their content alone.
        fingerprint: of model and schema.
    """

    def __init__(self, model: EventModel, items: ItemTable, trained: NDArray[np.int64], fingerprint: str) -> None:
        self.model, self.items, self.trained, self.fingerprint = model, items, trained, fingerprint
        self.window = model.config.window

    def known(self, batch: EventBatch) -> EventBatch:
        """Hide the ids that training never saw."""
        return known_only(batch, self.trained)

    def check(self, state: UserState) -> None:
        """Refuse a state of another model or schema."""
        if state.fingerprint != self.fingerprint:
            raise RecGPTError(
                f"state: made by model {state.fingerprint}, this is {self.fingerprint}; encode the user "
                f"again with this model"
            )

    @torch.no_grad()
    def build(self, events: Events, n_before: int = 0) -> UserState:
        """Encode a user's events from number `n_before` on.

        Raises:
            RecGPTError: when the window begins before the first event given.
            ConfigError: `n_before` is negative.
        """
        if n_before < 0:
            raise ConfigError(f"n_before: {n_before}; give the number of events left out, 0 or more")
        n = n_before + len(events)
        start = self.window.start(n)
        if start < n_before:
            raise RecGPTError(
                f"n_before: {n_before} events are left out, but the state at {n} reads from event {start} on; "
                f"give at least the newest {n - start} events"
            )
        seen, cut = newest_distinct(events.item, self.model.config.state.max_seen)
        cut = cut or n_before > 0
        return self._finish(events[start - n_before :], n, seen, cut, last_time(events), chain=None, past=None)

    @torch.no_grad()
    def extend(self, state: UserState, events: Events) -> UserState:
        """The state after further events; keeps whole chunks, or rebuilds when the window slides."""
        self.check(state)
        if len(events) == 0:
            return state
        n = state.n + len(events)
        start = self.window.start(n)
        window = Events.concat([state.events, align(events, state.events)])[start - state.start :]
        seen, cut = newest_distinct(np.concatenate((state.seen, events.item)), self.model.config.state.max_seen)
        newest = last_time(events) if last_time(events) != NO_TIME else state.last_time
        past, chain = (state, state.content_hash) if start == state.start else (None, None)
        return self._finish(window, n, seen, cut or state.seen_cut, newest, chain, past)

    def _finish(
        self, window: Events, n: int, seen: NDArray, cut: bool, newest: int, chain: int | None, past: UserState | None
    ) -> UserState:
        kept = 0 if past is None or past.cache is None else past.cache[0][0].shape[2] - 1
        whole = not self.model.config.incremental
        first, hidden, last, cache = self._run_whole(window) if whole else self._run(window, past, kept)
        old = 0 if chain is None or past is None else past.n - past.start
        return UserState(
            first=first,
            hidden=hidden,
            embedding=self.model.queries(last[None])[0],
            events=window,
            category=self._categories(window),
            n=n,
            start=n - len(window),
            last_time=newest,
            seen=seen,
            seen_cut=cut,
            content_hash=chain_hash(window[old:], chain),
            fingerprint=self.fingerprint,
            cache=cache,
        )

    def _run(self, window: Events, past: UserState | None, kept: int) -> _Encoded:
        """Encode the window from its event `kept` on, chunk by chunk."""
        chunk, gaps = self.window.chunk, gap_buckets(window.time)
        if past is not None and past.cache is not None:
            beginning, cache, parts = past.first, past.cache, [past.hidden[:kept]]
        else:
            (beginning, cache), parts = self.model.begin_cache(profile_columns([window])), []
        for first in range(kept, len(window), chunk):
            piece = window[first : first + chunk]
            batch = chunk_batch(piece, gaps[first : first + chunk], self.items, chunk)
            before = tensor(window.time[:first])[None] if self.model.transformer.needs_time else None
            hidden, longer = self.model.extend(self.known(batch), cache, before)
            parts.append(hidden[0, : len(piece)])
            if len(piece) == chunk:
                cache = longer
        hidden = torch.cat(parts) if parts else torch.zeros(0, self.model.config.dim)
        return beginning, hidden, hidden[-1] if len(hidden) else beginning, cache

    def _run_whole(self, window: Events) -> _Encoded:
        """Encode the window in one pass of whole chunks, for a model whose older vectors change with each event."""
        width = self.window.chunk * max(1, -(-len(window) // self.window.chunk))
        batch = chunk_batch(window, gap_buckets(window.time), self.items, width)
        first, hidden, last = self.model.read(replace(self.known(batch), profile=profile_columns([window])))
        return first[0].clone(), hidden[0, : len(window)].clone(), last[0], None

    @torch.no_grad()
    def _padded(
        self, histories: Sequence[Events], shape: LikeWindows | None
    ) -> tuple[list[Events], Tensor, Tensor, Tensor]:
        """Windows, hidden vectors [B, D] and [B, T, D] and queries [B, D] of whole histories in one padded pass."""
        windows, batch = self._batch(histories, shape)
        with few_sizes() if shape is not None and shape.full else nullcontext():
            first, hidden, last = self.model.read(batch)
        return windows, first.cpu(), hidden.cpu(), self.model.queries(last).cpu()

    def _batch(self, histories: Sequence[Events], shape: LikeWindows | None) -> tuple[list[Events], EventBatch]:
        """The windows of whole histories, and their batch: of the shape given, or as narrow as they are."""
        windows = [events[self.window.start(len(events)) :] for events in histories]
        empty = [] if shape is None else [histories[0][:0]] * (shape.size - len(windows))
        batch = collate([*windows, *empty], self.items, width=None if shape is None else shape.width)
        return windows, on_device(self.known(batch), self.model.device)

    @torch.no_grad()
    def embed_many(
        self,
        histories: Sequence[Events],
        wanted: Mapping[str, float] | None = None,
        shape: LikeWindows | None = None,
    ) -> Tensor:
        """The embeddings of `build_many` alone, [B, D], or those towards the outcomes `wanted` (name -> value)."""
        windows, batch = self._batch(histories, shape)
        with few_sizes() if shape is not None and shape.full else nullcontext():
            newest = self.model.newest(batch)[: len(windows)]
        asked = {
            name: torch.full((len(newest),), value, device=newest.device) for name, value in (wanted or {}).items()
        }
        return self.model.queries(newest, wanted=asked).cpu()

    def build_many(self, histories: Sequence[Events], shape: LikeWindows | None = None) -> list[UserState]:
        """Encode whole histories in one padded pass: within 1e-5 of `build`.

        Args:
            histories: all events of each user.
            shape: what they are padded to; default: as narrow as they are.
        """
        windows, first, hidden, queries = self._padded(histories, shape)
        states = []
        for row, (events, window) in enumerate(zip(histories, windows, strict=True)):
            seen, cut = newest_distinct(events.item, self.model.config.state.max_seen)
            states.append(
                UserState(
                    first=first[row].clone(),
                    hidden=hidden[row, : len(window)].clone(),
                    embedding=queries[row].clone(),
                    events=window,
                    category=self._categories(window),
                    n=len(events),
                    start=len(events) - len(window),
                    last_time=last_time(events),
                    seen=seen,
                    seen_cut=cut,
                    content_hash=chain_hash(window),
                    fingerprint=self.fingerprint,
                )
            )
        return states

    def _categories(self, window: Events) -> NDArray[np.int64]:
        rows = self.items.rows(window.item)
        return np.where(rows >= 0, self.items.category[rows], 0) if len(self.items) else np.zeros(len(rows), np.int64)


def last_time(events: Events) -> int:
    """The newest event's time among those with a known one, or NO_TIME."""
    known = events.time[events.time != NO_TIME]
    return int(known[-1]) if len(known) else NO_TIME


def align(events: Events, like: Events) -> Events:
    """`events` with exactly the columns of `like`; what is missing is unknown."""
    columns = events.columns()
    for name, column in like.columns().items():
        if name not in columns:
            unknown = 0 if column.dtype == np.int64 else np.nan
            columns[name] = np.full(len(events), unknown, column.dtype)
    return Events.from_columns({name: columns[name] for name in like.columns()}, like.profile)
