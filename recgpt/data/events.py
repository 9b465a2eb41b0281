"""A run of events as columns: what passes from the prepared log to batches and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_TIME = int(np.iinfo(np.int64).min)
"""The time of an event whose clock is unknown."""


@dataclass(frozen=True, slots=True)  # one object for each user: the fewer parts, the fewer searches for garbage
class Events:
    """N consecutive events, oldest first.

    Attributes:
        item: int64 [N], the hash of the item id.
        time: int64 [N], microseconds since 1970 UTC, or `NO_TIME`.
        outcomes: name -> float32 [N]; NaN = unknown.
        context: name -> int64 [N] (categorical: hash, 0 = unknown) or float32 [N] (numeric, NaN = unknown).
        target: bool [N], whether the event is a next-item target.
        profile: name -> what is known of the user: a hash (categorical, 0 = unknown) or a number (NaN = unknown);
            it rides along with every slice.
    """

    item: NDArray[np.int64]
    time: NDArray[np.int64]
    outcomes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    context: Mapping[str, NDArray[np.int64] | NDArray[np.float32]] = field(default_factory=dict)
    target: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    profile: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.item)
        if len(self.target) != n:
            object.__setattr__(self, "target", np.ones(n, np.bool_))
        if len(self.time) != n or any(len(c) != n for part in (self.outcomes, self.context) for c in part.values()):
            name, column = next((name, column) for name, column in self.columns().items() if len(column) != n)
            raise ValueError(f"{name}: {len(column)} values for {n} events")

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, index: slice) -> Events:
        return Events(
            item=self.item[index],
            time=self.time[index],
            outcomes=_sliced(self.outcomes, index),
            context=_sliced(self.context, index),
            target=self.target[index],
            profile=self.profile,
        )

    def columns(self) -> dict[str, NDArray]:
        """All columns by name; outcomes as `o.NAME`, context as `c.NAME`."""
        return (
            {"item": self.item, "time": self.time, "target": self.target}
            | {f"o.{name}": column for name, column in self.outcomes.items()}
            | {f"c.{name}": column for name, column in self.context.items()}
        )

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray], profile: Mapping[str, int | float] | None = None) -> Events:
        """The inverse of `columns`."""
        return cls(
            item=columns["item"],
            time=columns["time"],
            target=columns["target"],
            outcomes={name[2:]: column for name, column in columns.items() if name.startswith("o.")},
            context={name[2:]: column for name, column in columns.items() if name.startswith("c.")},
            profile=profile or {},
        )

    def with_profile(self, profile: Mapping[str, int | float]) -> Events:
        """The same events of a user of whom this is known."""
        return replace(self, profile=profile) if profile or self.profile else self

    @classmethod
    def concat(cls, parts: Sequence[Events]) -> Events:
        """Join runs of one user's events that share their columns; the profile is the first part's."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].columns()
        columns = [part.columns() for part in parts]
        joined = {name: np.concatenate([c[name] for c in columns]) for name in names}
        return cls.from_columns(joined, parts[0].profile)


def _sliced(columns: Mapping[str, Any], index: slice) -> Mapping[str, Any]:
    return {name: column[index] for name, column in columns.items()} if columns else columns


def profile_rows(columns: Mapping[str, NDArray], count: int) -> list[dict[str, int | float]]:
    """Profiles of `count` users, one mapping each, from columns [count]."""
    names = list(columns)
    values = [columns[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)] if names else [{}] * count
