"""What is guessed of the columns that every log needs, and what their values are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recgpt.data.columns import END_OF_TIME
from recgpt.data.engine import quote_name
from recgpt.data.read import likely_unit
from recgpt.data.schema import UNITS_PER_SECOND
from recgpt.init.sample import Column

EDIT = {"user": "EDIT_USER", "item": "EDIT_ITEM", "order": "EDIT_ORDER"}
"""What stands in the config where nothing could be guessed; no log has such columns."""
REJECTED = 0.005
"""Part of the rows without a needed value from which on they are filtered; `prepare` refuses 1 %."""


@dataclass
class Roles:
    """What was guessed of the columns that every log needs.

    Attributes:
        user, item: columns, None = to be edited.
        time: column of the clock, if there is one, and its unit (empty for timestamps).
        order: column, `row` = the file order, None = the clock orders, `EDIT_ORDER` = to be edited.
        where: SQL that leaves out rows without a needed value.
        notes: config key -> why, or what else there is.
        checks: config key -> what to look at.
        candidates: config key -> columns to choose from, where something is to be edited.
        told: column -> what was found of it on the way.
    """

    user: str | None = None
    item: str | None = None
    time: str | None = None
    unit: str = ""
    order: str | None = None
    where: str | None = None
    notes: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    @property
    def used(self) -> set[str]:
        """The columns that have a role."""
        order = None if self.order == "row" else self.order
        return {name for name in (self.user, self.item, self.time, order) if name is not None}

    def check(self, key: str, text: str) -> None:
        """Add something to look at."""
        self.checks[key] = f"{self.checks[key]}; {text}" if key in self.checks else text


def clock_unit(column: Column, text: bool) -> str | None:
    """The unit of a clock, empty for timestamps; None for what is none or cannot be read as one."""
    if column.known == 0:
        return None
    if column.kind == "moment":
        return ""
    if column.kind not in ("integer", "float") or (column.kind == "float" and not text and column.stored != "float64"):
        return None
    known = column.numbers[~np.isnan(column.numbers)]
    low, high = (likely_unit(float(value)) for value in np.quantile(known, [0.01, 0.99]))
    if low is None or low != high:
        return None
    outside = (known < 0) | (known >= END_OF_TIME * UNITS_PER_SECOND[low])
    return low if outside.mean() <= REJECTED else None


def is_day_number(column: Column) -> bool:
    """Whether a column holds days as numbers such as 20220425."""
    if column.kind != "integer" or column.known == 0:
        return False
    some = column.coded[1][:200].to_pylist()
    return all(re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", str(value)) for value in some)


def is_text_date(column: Column) -> bool:
    """Whether a text column of a Parquet file holds dates."""
    if column.kind != "text" or column.known == 0:
        return False
    return all(re.match(r"\d{4}-\d\d-\d\d", str(value)) for value in column.coded[1][:200].to_pylist())


def depends(codes: NDArray[np.int64], on: NDArray[np.int64]) -> bool:
    """Whether each value of `on` goes with one value of `codes` alone, on ids that come several times."""
    known = (codes >= 0) & (on >= 0)
    if not known.any():
        return False
    ids, rows, counts = len(np.unique(on[known])), int(known.sum()), np.bincount(codes[known])
    pairs = len(np.unique(on[known] * len(counts) + codes[known]))
    varied = counts.max() <= 0.95 * rows  # all but constant: nothing can be told from it
    return bool(rows >= 1.5 * ids and pairs <= 1.01 * ids and varied)


def is_known(column: Column) -> str:
    """SQL: the column has a value. In a text file only what is a number throughout is null where it is empty."""
    name = quote_name(column.name)
    if column.stored == "text" and (column.kind not in ("integer", "float") or column.odd):
        return f"CAST({name} AS VARCHAR) <> ''"
    return f"{name} <> ''" if column.kind == "text" else f"{name} IS NOT NULL"
