"""What a report is made of: sections of text, tables, figures and users' stories; the template lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from recgpt.metrics import Z_95

MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NO-BREAK SPACE}%"
NOTHING = "\N{EN DASH}"
"""Stands where a number is not known."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Notice:
    """Something that is missing, and the command that brings it."""

    kind: ClassVar[str] = "notice"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of finished texts; the first column names the row. What follows a line break is set smaller, below.

    Attributes:
        columns: the head.
        rows: the cells.
        note: how to read it.
        folded: hidden until asked for (the numbers behind a figure).
        title: what the table, or the fold, is called.
        texts: columns of text, by number, beside the first: aligned left, each in its own direction.
        marked: rows that stand out, by number.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False
    title: str = ""
    texts: tuple[int, ...] = ()
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Key:
    """A line of a figure's legend: how the series looks (one of `charts.LOOKS`), its name, whether it is dots."""

    look: str
    name: str
    dots: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
        title: what it shows.
        svg: trusted markup, made by `charts.draw`.
        reading: how to read it, in one line.
        keys: the legend; empty where one line needs none.
    """

    title: str
    svg: str
    reading: str
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Figures:
    """Charts side by side as far as the page is wide."""

    kind: ClassVar[str] = "figures"
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Story:
    """One user: what was done, what is recommended, what came next.

    Attributes:
        user: the id.
        summary: how long the history is and why this user was chosen.
        events: the last events, oldest first.
        recommended: the first items, best first; those that came next are marked.
        following: what came next, and where the model had it.
    """

    kind: ClassVar[str] = "story"
    user: str
    summary: str
    events: Table
    recommended: Table
    following: Table


Block = Text | Notice | Heading | Table | Figures | Story


@dataclass(frozen=True)
class Section:
    """A part of the page with an anchor of its own."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Head:
    """The top of the page.

    Attributes:
        name: the run's.
        kind: what kind of run it is.
        verdict: what came out, in one sentence.
        figures: the key figures.
        facts: name and value of what the run is.
        notices: what is missing.
    """

    name: str
    kind: Literal["pretrained", "fine-tuned"]
    verdict: str
    figures: Table | None
    facts: tuple[tuple[str, str], ...]
    notices: tuple[Notice, ...] = field(default=())


def count(value: float) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}"


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` decimals; tiny ones to two significant figures, unknown ones as a dash."""
    if value is None or not np.isfinite(value):
        return NOTHING
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        text = f"{value:.1e}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 4) -> str:
    """A difference, its sign always shown."""
    text = number(value, digits)
    return text if text == NOTHING or text.startswith(MINUS) else f"+{text}"


def percent(value: Any) -> str:
    """A share as per cent, to a tenth; a tiny one to one significant figure."""
    if value is None or not np.isfinite(value):
        return NOTHING
    return f"{100 * value:.1f}{PERCENT}" if value == 0 or abs(value) >= 0.0005 else f"{100 * value:.1g}{PERCENT}"


def ranged(value: Any, low: Any, high: Any, show: Callable[[Any], str] = number) -> str:
    """A value with its interval on a second line; the value alone where there is no interval."""
    text = show(value)
    known = None not in (low, high) and bool(np.isfinite([low, high]).all())
    return f"{text}\n{show(low)} to {show(high)}" if known and text != NOTHING else text


def mean_interval(gains: NDArray[np.float64]) -> tuple[float, float, float]:
    """A mean of gains, 0 or more, and its normal 95 % interval (NaN for fewer than two)."""
    if len(gains) < 2:
        return (float(gains.mean()) if len(gains) else np.nan), np.nan, np.nan
    mean = float(gains.mean())
    half = Z_95 * float(gains.std(ddof=1)) / len(gains) ** 0.5
    return mean, max(0.0, mean - half), mean + half
