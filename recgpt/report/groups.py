"""Cutting users or rows into groups of similar size by a whole number: history length, popularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recgpt.report.blocks import Figure, Key, Table, count, mean_interval, ranged
from recgpt.report.charts import Axes, Line, draw

Bounds = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Value, low and high, float64 [G] each."""


@dataclass(frozen=True)
class Group:
    """Rows whose value lies in [low, high].

    Attributes:
        low, high: the least and the largest value that occur in the group.
        rows: bool [N].
    """

    low: int
    high: int
    rows: NDArray[np.bool_]

    @property
    def label(self) -> str:
        """The range, short."""
        low, high = short(self.low), short(self.high)
        return low if low == high else f"{low}\N{EN DASH}{high}"

    @property
    def n(self) -> int:
        """Rows of the group."""
        return int(self.rows.sum())


def short(value: int) -> str:
    """Five letters at most, below a billion: a tick label."""
    for size, unit in ((10**6, "M"), (10**3, "k")):
        if value >= size:
            return (
                f"{value / size:.1f}".removesuffix(".0") + unit if value < 100 * size else f"{value / size:.0f}{unit}"
            )
    return str(value)


def cut(values: NDArray[np.int64], most: int = 5, zero_apart: bool = False) -> list[Group]:
    """Groups of similar size, in rising order; equal values are never parted.

    Args:
        values: int64 [N], 0 or more.
        most: groups at most, the one of the zeros aside.
        zero_apart: zeros are a group of their own.
    """
    groups = []
    rest = np.ones(len(values), bool)
    if zero_apart and (values == 0).any():
        groups.append(Group(0, 0, values == 0))
        rest = values > 0
    if not rest.any():
        return groups
    edges = np.unique(np.quantile(values[rest], np.arange(1, most) / most, method="lower"))
    place = np.where(rest, np.searchsorted(edges, values), -1)
    for index in range(len(edges) + 1):
        rows = place == index
        if rows.any():
            groups.append(Group(int(values[rows].min()), int(values[rows].max()), rows))
    return groups


def means(groups: Sequence[Group], gains: NDArray[np.float64]) -> Bounds:
    """Mean over each group, with its normal 95 % interval."""
    value, low, high = np.array([mean_interval(gains[group.rows]) for group in groups]).T
    return value, low, high


def group_figure(
    name: str,
    words: tuple[str, str, str],
    groups: Sequence[Group],
    values: Mapping[Key, Bounds],
    y_zero: bool = True,
) -> Figure:
    """Values with intervals in each group, side by side.

    Args:
        name: unique on the page.
        words: title, how to read it, what the groups are ranges of.
        groups: in order.
        values: value, low and high of each group, for each entry of the legend.
        y_zero: the axis begins at 0.
    """
    title, reading, by = words
    lines = []
    for place, (key, (value, low, high)) in enumerate(values.items()):
        offset = (place - (len(values) - 1) / 2) * 0.22
        lines.append(Line(key.look, np.arange(len(groups)) + offset, value, low, high, dots=True))
    ticks = [(place, f"{group.label}\nn {short(group.n)}") for place, group in enumerate(groups)]
    svg = draw(name, f"{title}. {reading}", Axes(by, y_zero=y_zero, ticks=ticks), lines)
    return Figure(title, svg, reading, tuple(replace(key, dots=True) for key in values))


def group_table(
    title: str, by: str, groups: Sequence[Group], gains: Mapping[str, NDArray[np.float64]], names: Mapping[str, str]
) -> Table:
    """The numbers behind `group_figure`, for every system."""
    rows = []
    for group in groups:
        cells = [ranged(*mean_interval(gain[group.rows])) for gain in gains.values()]
        rows.append((group.label, count(group.n), *cells))
    return Table((by, "n", *(names[system] for system in gains)), tuple(rows), folded=True, title=title)
