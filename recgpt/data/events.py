"""A run of events as columns: what passes from the prepared log to batches and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NO_TIME = int(np.iinfo(np.int64).min)
"""The time of an event whose clock is unknown."""


@dataclass(frozen=True)
class Events:
    """N consecutive events, oldest first.

    Attributes:
        item: int64 [N], the hash of the item id.
        time: int64 [N], microseconds since 1970 UTC, or `NO_TIME`.
        outcomes: name -> float32 [N]; NaN = unknown.
        context: name -> int64 [N] (categorical: hash, 0 = unknown) or float32 [N] (numeric, NaN = unknown).
        target: bool [N], whether the event is a next-item target.
    """

    item: NDArray[np.int64]
    time: NDArray[np.int64]
    outcomes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    context: Mapping[str, NDArray[np.int64] | NDArray[np.float32]] = field(default_factory=dict)
    target: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        if len(self.target) != len(self.item):
            object.__setattr__(self, "target", np.ones(len(self.item), np.bool_))
        for name, column in self.columns().items():
            if len(column) != len(self.item):
                raise ValueError(f"{name}: {len(column)} values for {len(self.item)} events")

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, index: slice) -> Events:
        return self._map(lambda column: column[index])

    def columns(self) -> dict[str, NDArray]:
        """All columns by name; outcomes as `o.NAME`, context as `c.NAME`."""
        return (
            {"item": self.item, "time": self.time, "target": self.target}
            | {f"o.{name}": column for name, column in self.outcomes.items()}
            | {f"c.{name}": column for name, column in self.context.items()}
        )

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray]) -> Events:
        """The inverse of `columns`."""
        return cls(
            item=columns["item"],
            time=columns["time"],
            target=columns["target"],
            outcomes={name[2:]: column for name, column in columns.items() if name.startswith("o.")},
            context={name[2:]: column for name, column in columns.items() if name.startswith("c.")},
        )

    def _map(self, function) -> Events:  # type: ignore[no-untyped-def]
        return Events.from_columns({name: function(column) for name, column in self.columns().items()})

    @classmethod
    def concat(cls, parts: Sequence[Events]) -> Events:
        """Join runs of events that share their columns."""
        if len(parts) == 1:
            return parts[0]
        names = parts[0].columns()
        columns = [part.columns() for part in parts]
        return cls.from_columns({name: np.concatenate([c[name] for c in columns]) for name in names})
