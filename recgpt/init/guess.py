"""Which column is the user and which the item: by names, then by values."""

from __future__ import annotations

import numpy as np

from recgpt.init import names
from recgpt.init.clock import Clock
from recgpt.init.roles import REJECTED, Roles, clock_unit, is_known
from recgpt.init.sample import Column, Sample

LONG_TEXT = 64
"""Characters on average up to which texts may be ids."""


def guess_roles(sample: Sample) -> Roles:
    """Guess the user, the item, the clock and the order."""
    roles = Roles()
    _Ids(sample, roles).guess()
    Clock(sample, roles).guess()
    for key, candidates in roles.candidates.items():
        roles.candidates[key] = [name for name in candidates if name not in roles.used]
    _leave_out_empty(sample, roles)
    return roles


def _leave_out_empty(sample: Sample, roles: Roles) -> None:
    """A condition on the needed columns that are empty too often for `prepare`."""
    needed = [roles.user, roles.item, roles.time if roles.order is None else None, roles.order]
    parts = []
    for name in needed:
        column = next((column for column in sample.columns if column.name == name), None)
        if column is not None and column.missing > REJECTED:
            parts.append(is_known(column))
    if parts:
        roles.where = " and ".join(parts)
        roles.checks["where"] = "leaves out the rows without one of these"


def can_be_id(column: Column) -> bool:
    """Whether `prepare` could read the column as ids, and they are no free text."""
    if column.known == 0 or column.kind not in ("integer", "text"):
        return False
    if column.kind == "integer":
        return True
    some = [text for text in column.coded[1][:200].to_pylist() if text]
    return bool(some) and float(np.mean([len(text) for text in some])) <= LONG_TEXT


class _Ids:
    """Chooses the columns of the user and the item."""

    def __init__(self, sample: Sample, roles: Roles) -> None:
        self.sample, self.roles = sample, roles
        self.able = [column for column in sample.columns if can_be_id(column)]

    def guess(self) -> None:
        """By names first, then by values."""
        roles = self.roles
        user = self._by_name("user", names.USER, names.USER_WEAK, None)
        item = self._by_name("item", names.ITEM, names.ITEM_WEAK, user)
        roles.user = user.name if user else None
        roles.item = item.name if item else None
        if user is None:
            user = self._in_runs()
            roles.user = user.name if user else None
        if item is None:
            roles.item = self._left_over("item")
        if user is None and item is not None:
            roles.user = self._left_over("user")
        for key, name in (("user", roles.user), ("item", roles.item)):
            if name is None:
                able = self._plain() or [column for column in self.able if column.distinct > 2]
                roles.candidates[key] = [column.name for column in sorted(able, key=lambda c: -c.distinct)][:8]
            else:
                self._look_at(key, self.sample.column(name))

    def _by_name(self, key: str, words: list[str], weak: set[str], taken: Column | None) -> Column | None:
        scores = {column.name: names.id_score(column.name, words, weak) for column in self.sample.columns}
        for column in self.sample.columns:
            if scores[column.name] and column.kind == "float":
                self.roles.told[column.name] = (
                    f"by its name the {key}, but floating point: write integers or text (pandas: astype('Int64'))"
                )
        able = [
            column for column in self.able if scores[column.name] > 0 and column is not taken and column.distinct > 1
        ]
        able = able or [column for column in self.able if scores[column.name] >= 2.5 and column is not taken]
        if not able:
            return None
        best = max(able, key=lambda column: scores[column.name])
        floats = [n for n in self.roles.told if scores[n] > scores[best.name] + 0.4]
        if floats:
            return None
        also = [c.name for c in able if c is not best and scores[best.name] - scores[c.name] < 0.1]
        if also:
            self.roles.checks[key] = f"or {', '.join(names.shown(name) for name in also[:4])}?"
        return best

    def _plain(self) -> list[Column]:
        """Columns that may be ids by their values and whose names say nothing else."""
        return [
            column
            for column in self.able
            if column.name not in self.roles.used
            and column.distinct >= 3
            and not column.is_01
            and clock_unit(column, self.sample.text) is None
            and not set(names.tokens(column.name))
            & (names.NO_ID | names.CONTEXT | names.OUTCOME | names.GRADE | names.SPENT | names.PART)
        ]

    def _in_runs(self) -> Column | None:
        """The one column whose equal values stand together: most logs are sorted by user."""
        found = []
        for column in self._plain():
            runs = 1 + int((np.diff(column.codes) != 0).sum())
            if runs <= 1.02 * column.distinct + 1 and self.sample.rows >= 2 * column.distinct:
                found.append(column)
        if len(found) != 1:
            return None
        self.roles.checks["user"] = "its name says nothing; its equal values stand together, as in a log sorted by user"
        return found[0]

    def _left_over(self, key: str) -> str | None:
        """The one column that may be it by its values, or the one with by far the most of them."""
        left = sorted(self._plain(), key=lambda column: -column.distinct)
        left = [column for column in left if names.order_score(column.name) == 0 and column.distinct < self.sample.rows]
        if not left or (len(left) > 1 and left[0].distinct < 5 * left[1].distinct):
            return None
        if self.roles.user is None and self.roles.item is None:
            return None
        self.roles.checks[key] = "its name says nothing; of the columns left it is the likeliest by its values"
        return left[0].name

    def _look_at(self, key: str, column: Column) -> None:
        roles, rows = self.roles, self.sample.rows
        roles.notes[key] = f"{column.kind}, {column.distinct:,} distinct in {rows:,} rows"
        if column.distinct == column.known > 20:
            roles.check(key, "every row has its own value, so there are no histories")
