"""EventBatch: padded windows of events as tensors, with their next-item targets.

B sequences, T events (right-padded), U distinct items among inputs and targets, N targets. Position t of a sequence
is the state that has seen its first t events (t = 0: none), so there are T + 1 positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recgpt.data.events import NO_TIME, Events
from recgpt.data.items import ItemTable
from recgpt.data.negatives import Drawn
from recgpt.data.targets import Chosen

Value = TypeVar("Value")
UNKNOWN_GAP = 0
N_GAP_BUCKETS = 34
"""The last one holds gaps of 2^32 seconds (136 years) and more, which no two times from 1970 to 2099 have."""


@dataclass(frozen=True)
class EventBatch:
    """Tensors of B windows.

    Attributes:
        items: int64 [U] hashes of the distinct items.
        item: int64 [B, T] rows of `items`; padding holds row 0.
        length: int64 [B] events of each window.
        gap: int64 [B, T] buckets of the time since the previous event in the window, 0 = unknown.
        outcomes: name -> float32 [B, T], NaN = unknown.
        context: name -> int64 or float32 [B, T].
        features: name -> int64 or float32 [U], or int64 [U, W] (categories), static features of the items.
        content: float32 [U, dc] content vectors, NaN rows = none; or None.
        profile: name -> int64 or float32 [B], what is known of the users.
        position: int64 [N] the predicting position of each target, flattened over [B, T + 1].
        target: int64 [N] rows of `items`.
        head: int64 [N] the look-ahead that each target belongs to, 0 = the next item.
        wanted: name -> float32 [N], outcomes of the target events, NaN = unknown.
        negative: int64 [M] rows of `items` that were drawn as negatives, or None.
        time: int64 [B, T] microseconds since 1970 UTC, or `NO_TIME`.
        masked: bool [B, T], events whose item is hidden from the model, or None.
        dropped: int64 [B], positions of each window that the rule of the targets found none for, or None.
        skip: int64 [B], events of each window before this one are predicted by an earlier window, or not; None = 0.
    """

    items: Tensor
    item: Tensor
    length: Tensor
    gap: Tensor
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    content: Tensor | None = None
    profile: dict[str, Tensor] = field(default_factory=dict)
    position: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    target: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    head: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    wanted: dict[str, Tensor] = field(default_factory=dict)
    negative: Tensor | None = None
    time: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    masked: Tensor | None = None
    dropped: Tensor | None = None
    skip: Tensor | None = None


def on_device(value: Value, device: torch.device) -> Value:
    """A batch on a device: tensors, and dicts, lists and dataclasses of them; all else, and what is there, as it is."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=device.type != "cpu")  # back from a GPU it would be read too early
    elif isinstance(value, dict):
        moved = {name: on_device(part, device) for name, part in value.items()}
    elif isinstance(value, list):
        moved = [on_device(part, device) for part in value]
    elif is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{name: on_device(part, device) for name, part in vars(value).items()})
    return moved


def tensor(array: NDArray) -> Tensor:
    """A tensor over an array's memory, or over a copy where that is read-only (torch would warn)."""
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def gap_buckets(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Buckets 1 + floor(log2(1 + seconds)) of the gaps between successive events, int64 [..., N] below `N_GAP_BUCKETS`.

    The first event of a run, and any gap that touches an unknown time, is unknown (0); a backward step counts as 0
    seconds.

    Args:
        time: int64 [..., N] microseconds or `NO_TIME`.
    """
    buckets = np.zeros(time.shape, np.int64)
    if (time != NO_TIME).any():
        buckets[..., 1:] = gap_between(time[..., :-1], time[..., 1:])
    return buckets


def gap_between(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.int64]:
    """Buckets of gaps, as `gap_buckets`, int64 [...].

    Args:
        before: int64 [...] microseconds or `NO_TIME`.
        after: the same.
    """
    known = (after != NO_TIME) & (before != NO_TIME)
    seconds = np.where(known, after - np.where(known, before, 0), 0).clip(0) / 1e6
    log = np.floor(np.log2(1 + seconds)).astype(np.int64)
    return np.where(known, (1 + log).clip(1, N_GAP_BUCKETS - 1), UNKNOWN_GAP)


N_HOURS = 25
_HOUR = 3_600_000_000


def hours(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hour of the UTC day from 1, int64 [N] in [0, `N_HOURS`); 0 = unknown.

    Args:
        time: int64 [N] microseconds or `NO_TIME`.
    """
    return np.where(time == NO_TIME, 0, 1 + time // _HOUR % 24)


def pad(columns: Sequence[NDArray], width: int, fill: float | int) -> Tensor:
    """Right-pad B arrays of at most `width` values into [B, width]."""
    return padded(np.concatenate(columns), np.array([len(column) for column in columns]), width, fill)


def padded(values: NDArray, lengths: NDArray[np.int64], width: int, fill: float | int) -> Tensor:
    """B arrays that lie end to end, of `lengths` values each, as [B, width]."""
    out = np.full((len(lengths), width), fill, values.dtype)
    out[np.arange(width) < lengths[:, None]] = values
    return torch.from_numpy(out)


def collate(
    windows: Sequence[Events],
    items: ItemTable,
    targets: Sequence[Chosen] = (),
    width: int | None = None,
    negatives: Drawn | None = None,
) -> EventBatch:
    """Build a batch.

    Args:
        windows: the input events of each sequence.
        items: where static features and content vectors come from.
        targets: what each sequence is to predict.
        width: T; default the longest window.
        negatives: items drawn as negatives.
    """
    width = max(1, *(len(window) for window in windows)) if width is None else width
    drawn = np.zeros(0, np.int64) if negatives is None else negatives.hashes
    hashes = [window.item for window in windows] + [chosen.item for chosen in targets] + [drawn]
    distinct, inverse = np.unique(np.concatenate(hashes), return_inverse=True)
    if len(distinct) == 0:
        distinct = np.zeros(1, np.int64)
    lengths = np.array([len(window) for window in windows], np.int64)
    read = int(lengths.sum())
    wanted = inverse[read : len(inverse) - len(drawn)]
    features, content = item_columns(items, distinct)
    first = windows[0]
    time = pad([window.time for window in windows], width, NO_TIME)
    return EventBatch(
        items=torch.from_numpy(distinct),
        item=padded(inverse[:read], lengths, width, 0),
        length=torch.from_numpy(lengths),
        gap=torch.from_numpy(gap_buckets(time.numpy())),
        outcomes={name: pad([w.outcomes[name] for w in windows], width, np.nan) for name in first.outcomes},
        context={
            name: pad([w.context[name] for w in windows], width, _unknown(column))
            for name, column in first.context.items()
        },
        features=features,
        content=content,
        profile=profile_columns(windows),
        target=torch.from_numpy(wanted),
        negative=None if negatives is None else tensor(inverse[len(inverse) - len(drawn) :][negatives.rows]),
        time=time,
        **_target_columns(targets, width),
    )


def _target_columns(targets: Sequence[Chosen], width: int) -> dict[str, Any]:
    """What a batch tells of its targets besides their rows."""
    if not targets:
        return {}
    position = [row * (width + 1) + chosen.position for row, chosen in enumerate(targets)]
    masked = [chosen.masked for chosen in targets if chosen.masked is not None]
    return {
        "position": torch.from_numpy(np.concatenate(position)),
        "head": torch.from_numpy(np.concatenate([chosen.head for chosen in targets])),
        "wanted": {
            name: torch.from_numpy(np.concatenate([chosen.outcomes[name] for chosen in targets]))
            for name in targets[0].outcomes
        },
        "masked": pad(masked, width, False) if masked else None,
        "skip": torch.tensor([chosen.skip for chosen in targets]),
        "dropped": torch.tensor([chosen.dropped for chosen in targets]) if any(c.dropped for c in targets) else None,
    }


def chunk_batch(events: Events, gap: NDArray[np.int64], items: ItemTable, width: int) -> EventBatch:
    """One sequence padded to `width` events, every event with a row of its own in `items`: one shape.

    Args:
        events: at most `width` of them.
        gap: their buckets, which may look at events before these.
        items: where static features and content vectors come from.
        width: T, and U.
    """
    hashes = pad([events.item], width, 0)[0]
    features, content = item_columns(items, hashes.numpy())
    return EventBatch(
        items=hashes,
        item=torch.arange(width)[None],
        length=torch.tensor([len(events)]),
        gap=pad([gap], width, UNKNOWN_GAP),
        outcomes={name: pad([column], width, np.nan) for name, column in events.outcomes.items()},
        context={name: pad([column], width, _unknown(column)) for name, column in events.context.items()},
        features=features,
        content=content,
        time=pad([events.time], width, NO_TIME),
    )


def profile_columns(windows: Sequence[Events]) -> dict[str, Tensor]:
    """The profiles of B windows' users by name, [B]; a name is there if the first window's user has it."""
    return {
        name: torch.tensor([window.profile[name] for window in windows], dtype=_profile_dtype(value))
        for name, value in windows[0].profile.items()
    }


def _profile_dtype(value: int | float) -> torch.dtype:
    return torch.float32 if isinstance(value, float) else torch.int64


def _unknown(column: NDArray) -> int | float:
    return 0 if column.dtype == np.int64 else np.nan


def item_columns(items: ItemTable, hashes: NDArray[np.int64]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Static features [U] or [U, W] and content vectors [U, dc] of item hashes; unknown items have none."""
    if not items.features and items.embedding is None:
        return {}, None
    rows = items.rows(hashes)
    unknown = rows < 0
    features = {}
    for name, column in items.features.items():
        values = column[rows] if len(column) else np.zeros((len(rows), *column.shape[1:]), column.dtype)
        values[unknown] = _unknown(column)
        features[name] = torch.from_numpy(values)
    content = None
    if items.embedding is not None:
        vectors = items.embedding[rows]
        vectors[unknown] = np.nan
        content = torch.from_numpy(vectors)
    return features, content
