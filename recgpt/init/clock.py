"""Which column is the clock, and what orders a user's events."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recgpt.data.read import likely_unit
from recgpt.data.schema import UNITS_PER_SECOND
from recgpt.init import names
from recgpt.init.roles import EDIT, REJECTED, Roles, clock_unit, depends, is_text_date
from recgpt.init.sample import Column, Sample

TIES = 0.05
BACKWARD = 0.02
"""Parts of the steps from event to event of a user: at the same moment; back in time."""
SINCE, UNTIL = 946_684_800, 2_208_988_800
"""2000 to 2040 in seconds: where a clock without a telling name must lie."""


class Clock:
    """Chooses the clock and the order."""

    def __init__(self, sample: Sample, roles: Roles) -> None:
        self.sample, self.roles = sample, roles
        self.user = sample.column(roles.user).codes if roles.user is not None else None
        self.free = [column for column in sample.columns if column.name not in (roles.user, roles.item)]

    def guess(self) -> None:
        """The clock first, then what orders where the clock does not."""
        time = self._time()
        if time is not None:
            self.roles.time, self.roles.unit = time.name, clock_unit(time, self.sample.text) or ""
            self._look_at(time)
        self._order(time)

    def _time(self) -> Column | None:
        item = self.sample.column(self.roles.item).codes if self.roles.item is not None else None
        scored: list[tuple[float, int, Column]] = []
        for column in self.free:
            unit = clock_unit(column, self.sample.text)
            if unit is None:
                continue
            score = names.time_score(column.name)
            if score == 0 and (not set(names.tokens(column.name)) & names.NO_TIME) and self._is_plausible(column, unit):
                score = 1.0
            if score and not (score < 3 and item is not None and depends(column.codes, item)):
                scored.append((score, column.distinct, column))
        if not scored:
            return None
        score, _, best = max(scored, key=lambda entry: entry[:2])
        others = [names.shown(c.name) for s, _, c in scored if c is not best and int(s) == int(score)]
        if others:
            self.roles.checks["time"] = f"or {', '.join(others[:4])}?"
        elif score < 2:
            self.roles.checks["time"] = "its name says nothing; its values look like a clock"
        return best

    def _is_plausible(self, column: Column, unit: str) -> bool:
        """Whether values alone make a clock: from 2000 to 2040, and many."""
        if column.kind == "moment":
            return True
        known = column.numbers[~np.isnan(column.numbers)]
        per_second = UNITS_PER_SECOND[unit]
        inside = SINCE * per_second <= known.min() and known.max() < UNTIL * per_second
        return bool(inside) and column.distinct >= min(10, 0.5 * self.sample.rows)

    def _look_at(self, time: Column) -> None:
        roles = self.roles
        if time.range is not None:
            low, high = (_day(value, roles.unit) for value in time.range)
            where = "" if time.span is not None or self.sample.total == self.sample.rows else " in these rows"
            roles.notes["time"] = f"{low} to {high} UTC{where}" + _missing(time)
            if roles.unit and (time.range[0] < 0 or likely_unit(time.range[0]) != roles.unit):
                roles.check("time", f"its smallest value is {time.range[0]}: if that means unknown, write null")

    # Order: a column that numbers a user's events; else the clock; else the file.

    def _order(self, time: Column | None) -> None:
        roles = self.roles
        named = sorted(self.free, key=lambda column: -names.order_score(column.name))
        for column in named:
            if names.order_score(column.name) and column is not time and self._numbers_events(column, time):
                roles.order = column.name
                if self.user is None:
                    roles.checks["order"] = "by its name alone: it must number each user's events"
                else:
                    roles.notes["order"] = "numbers each user's events" + _missing(column)
                return
        ties = self._ties(time)
        if time is not None and time.missing <= REJECTED and ties <= TIES:
            roles.notes["order"] = "the clock orders the events"
            return
        dense = next((column for column in self.free if column is not time and self._is_dense(column, time)), None)
        if dense is not None:
            roles.order = dense.name
            roles.checks["order"] = "its name says nothing; it numbers each user's events without gaps"
        elif time is not None and time.missing <= REJECTED:
            roles.checks["order"] = (
                f"{ties:.0%} of neighbouring events of a user share their time: name a column that orders them"
            )
        else:
            self._without_clock(time)

    def _without_clock(self, time: Column | None) -> None:
        """No column numbers the events and the clock is missing, wholly or on some rows."""
        roles, single = self.roles, len(self.sample.files) == 1
        ticks = [c for c in self.free if names.time_score(c.name) and c is not time and c.kind in ("integer", "float")]
        ticks = [c for c in ticks if not c.nans and c.missing <= REJECTED]
        in_file = np.arange(self.sample.rows)
        if (
            time is None
            and ticks
            and not (single and self._ties(ticks[0]) > TIES and not self._backward(in_file, ticks[0]))
        ):
            roles.order = ticks[0].name
            roles.checks["order"] = "by its name a clock, but its values are no moments from 1990 on: it only orders"
        elif single and (time is None or self._backward(in_file, time) <= BACKWARD):
            roles.order = "row"
            roles.checks["order"] = "the order of the file: each user's events must stand in it from old to new"
        elif time is not None:
            roles.checks["order"] = (
                "rows without a time are left out by `where`: name a column that orders them instead"
            )
        else:
            roles.order = EDIT["order"]
            able = [c for c in self.free if c.kind in ("integer", "float", "moment") and c.known and not c.is_01]
            roles.candidates["order"] = [column.name for column in able][:8]
        for column in self.free if time is None else ():
            name = names.shown(column.name)
            if is_text_date(column):
                if not self.sample.text:
                    roles.check("order", f"{name} holds dates as text: cast it, then set time to it")
            elif column.kind == "text" and names.time_score(column.name):
                roles.check("order", f"{name} is named as a clock, but holds neither numbers nor ISO dates: rewrite it")

    def _numbers_events(self, column: Column, time: Column | None) -> bool:
        """Whether the column has its own value for each event of a user and runs with the clock."""
        if column.kind not in ("integer", "moment") or column.known == 0 or column.missing > REJECTED:
            return False
        if column.name == "row":
            self.roles.told["row"] = "`order: row` means the order of the file, not this column"
            return False
        if self.user is None:
            return column.distinct > 2
        if self._twice(column) > 0.001:
            return False
        backward = self._backward(column.numbers, time) if time is not None else 0.0
        if backward > BACKWARD:
            self.roles.told[column.name] = f"no order: the time runs backwards along it in {backward:.0%} of the steps"
        return backward <= BACKWARD

    def _is_dense(self, column: Column, time: Column | None) -> bool:
        """Whether the column numbers each user's events without gaps: then its name does not matter."""
        if self.user is None or column.kind != "integer" or column.missing > REJECTED or column.name == "row":
            return False
        if self._twice(column) > 0.001:
            return False
        known = (self.user >= 0) & ~np.isnan(column.numbers)
        if not known.any():
            return False
        user, values = self.user[known], column.numbers[known]
        size = int(user.max()) + 1
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        np.minimum.at(low, user, values)
        np.maximum.at(high, user, values)
        count = np.bincount(user, minlength=size)
        several = count >= 2
        dense = float(np.mean(high[several] - low[several] + 1 == count[several])) if several.any() else 0.0
        return dense >= 0.9 and (time is None or self._backward(column.numbers, time) <= BACKWARD)

    def _twice(self, column: Column) -> float:
        """Part of the rows whose value another row of the user has."""
        assert self.user is not None
        known = (self.user >= 0) & (column.codes >= 0)
        pairs = self.user[known] * (column.distinct + 1) + column.codes[known]
        return 1 - len(np.unique(pairs)) / max(1, len(pairs))

    def _steps(self, key: NDArray, time: Column) -> NDArray[np.float64]:
        """Differences of the clock from event to event of a user, along `key`."""
        if self.user is None:
            return np.zeros(0)
        known = (self.user >= 0) & ~np.isnan(time.numbers) & ~np.isnan(np.asarray(key, np.float64))
        user, key, clock = self.user[known], np.asarray(key)[known], time.numbers[known]
        order = np.lexsort((key, user))
        return np.diff(clock[order])[np.diff(user[order]) == 0]

    def _backward(self, key: NDArray, time: Column) -> float:
        steps = self._steps(key, time)
        return float((steps < 0).mean()) if len(steps) else 0.0

    def _ties(self, time: Column | None) -> float:
        steps = self._steps(time.numbers, time) if time is not None else np.zeros(0)
        return float((steps == 0).mean()) if len(steps) else 0.0


def _missing(column: Column) -> str:
    return f", {column.missing:.1%} unknown" if column.missing else ""


def _day(value: object, unit: str) -> str:
    """A clock's value as a day."""
    if isinstance(value, (int, float)) and unit:
        return str(np.datetime64(int(value // UNITS_PER_SECOND[unit]), "s"))[:10]
    return str(value)[:10]
