"""What the columns beside user, item and clock are: outcomes, contexts, a split, or nothing that is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from recgpt.data.check import LEAK_AUC, predictive_auc
from recgpt.init import names
from recgpt.init.roles import REJECTED, Roles, depends, is_day_number, is_text_date
from recgpt.init.sample import Column, Sample

LEAK_ROWS = 20_000
CATEGORIES = 1000
"""Distinct values up to which a column may be a category of the request."""


class Use(NamedTuple):
    """One column's place in the config.

    Attributes:
        kind: of the outcome or the context.
        active: whether it stands there, else as a comment.
        note: what it looks like, or why it is a comment.
    """

    kind: str
    active: bool
    note: str


@dataclass
class Values:
    """The columns without which a log is still a log.

    Attributes:
        outcomes, context: column -> its use.
        part: the column that names the parts of a split, and its values by part.
        rest: column -> what it looks like, of those that are not used.
    """

    outcomes: dict[str, Use] = field(default_factory=dict)
    context: dict[str, Use] = field(default_factory=dict)
    part: tuple[str, dict[str, list[int | str]]] | None = None
    rest: dict[str, str] = field(default_factory=dict)

    def active(self, uses: dict[str, Use]) -> dict[str, str]:
        """Column -> kind of those that stand in the config."""
        return {name: use.kind for name, use in uses.items() if use.active}


def guess_values(sample: Sample, roles: Roles) -> Values:
    """Guess the outcomes, the context and the split column; describe the others."""
    return _Values(sample, roles).guess()


def describe(column: Column) -> str:
    """What a column looks like, in a few words; no example of values that may be personal."""
    if column.kind in ("list", "other"):
        return column.stored
    if column.known == 0:
        return f"{column.kind if column.kind != 'text' else column.stored}, always empty"
    words: list[str] = [column.kind]
    if column.distinct == 1:
        words.append(f"always {_value(column.coded[1][0].as_py())}")
    else:
        words.append(f"{column.distinct:,} distinct")
        few = column.kind == "text" and column.distinct <= 6
        if few:
            words[-1] += f" ({', '.join(_value(value) for value in column.coded[1].to_pylist())})"
        elif column.kind == "text":
            lengths = [len(text) for text in column.coded[1][:200].to_pylist()]
            words.append(f"{float(np.mean(lengths)):.0f} characters")
        elif column.range is not None:
            words.append(f"{_value(column.range[0])} to {_value(column.range[1])}")
    words += [f"{part:.1%} {what}" for part, what in ((column.missing, "unknown"), (column.nans, "NaN")) if part]
    if column.odd:
        words.append(f"{column.odd:.1%} something else")
    return ", ".join(words)


def _value(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 24 else text[:21] + "..."


class _Values:
    """Goes through the columns that have no role yet."""

    def __init__(self, sample: Sample, roles: Roles) -> None:
        self.sample, self.roles, self.found = sample, roles, Values()
        self.free = [column for column in sample.columns if column.name not in roles.used]

    def guess(self) -> Values:
        """Outcomes first: what tells one of them is no context."""
        for column in self.free:
            if self._is_part(column):
                break
        for column in self._left():
            self._outcome(column)
        if any(use.active and use.kind == "binary" for use in self.found.outcomes.values()):
            for name, use in self.found.outcomes.items():
                if use.kind == "watch_time":
                    note = f"{use.note}; measured after the event: an outcome, never a context"
                    self.found.outcomes[name] = use._replace(active=False, note=note)
        for column in self._left():
            self._context(column)
        for column in self._left():
            self.found.rest[column.name] = f"{describe(column)}{self._hint(column)}"
        return self.found

    def _left(self) -> list[Column]:
        found = self.found
        part = found.part[0] if found.part is not None else None
        taken = {*found.outcomes, *found.context, part}
        return [column for column in self.free if column.name not in taken]

    def _is_part(self, column: Column) -> bool:
        """Whether the column names the parts of a split."""
        if column.kind not in ("text", "integer") or not 2 <= column.distinct <= 8:
            return False
        parts: dict[str, list[int | str]] = {"train": [], "valid": [], "test": []}
        for value in column.coded[1].to_pylist():
            part = next((part for part, words in names.PARTS.items() if str(value).lower() in words), None)
            if part is None and column.kind == "text":
                return False
            if part is not None:
                parts[part].append(value)
        if not parts["test"] and not (column.kind == "text" and set(names.tokens(column.name)) & names.PART):
            return False
        self.found.part = (column.name, parts)
        return True

    # -- outcomes ------------------------------------------------------------------------------------------------------

    def _outcome(self, column: Column) -> None:
        """Take the column as an outcome if its name and its values say so."""
        words, name = set(names.tokens(column.name)), column.name
        if column.known == 0 or column.kind not in ("integer", "float", "boolean"):
            return
        spent = words & names.SPENT and (words & names.AMOUNT or not column.is_01)
        usable = not column.nans and column.odd <= REJECTED and not (self.sample.text and column.kind == "boolean")
        if column.is_01 and words & names.OUTCOME:
            kind, note = "binary", _rates(column)
        elif column.is_01 or "id" in words:
            return
        elif words & names.GRADE and not words & names.SPENT and column.distinct <= CATEGORIES:
            kind, note = "regression", describe(column)
        elif spent and not depends(column.codes, self._codes(self.roles.item)):
            low = column.range[0] if column.range is not None else 0
            ratio = bool(words & {"ratio", "rate", "share", "percent", "fraction"})
            kind, note = ("regression" if ratio or low < 0 else "watch_time"), describe(column)
        else:
            return
        copy = next((o for o in self.found.outcomes if self.sample.column(o).values.equals(column.values)), None)
        if copy is not None:
            self.found.outcomes[name] = Use(kind, False, f"the same as {names.shown(copy)}")
        elif not usable:
            note += "; `prepare` rejects rows with NaN or with text that is no number: write null or leave it empty"
            self.found.outcomes[name] = Use(kind, False, note)
        elif spent and kind == "regression":
            self.found.outcomes[name] = Use(
                kind, False, f"{note}; measured after the event: an outcome, never a context"
            )
        else:
            self.found.outcomes[name] = Use(kind, True, note)

    # -- context -------------------------------------------------------------------------------------------------------

    def _context(self, column: Column) -> None:
        """Take the column as context if its name says that it is known when the item is shown."""
        words = set(names.tokens(column.name))
        if not words & names.CONTEXT or names.is_after(column.name) or column.distinct < 2:
            return
        if column.kind not in ("integer", "text", "boolean") or column.distinct > CATEGORIES or column.odd:
            return
        leak = self._tells(column)
        if leak is not None:
            note = f"{describe(column)}; it tells {leak}: likely measured after the event, so no context"
            self.found.context[column.name] = Use("categorical", False, note)
        else:
            self.found.context[column.name] = Use("categorical", True, describe(column))

    def _tells(self, column: Column) -> str | None:
        """An outcome that the column alone all but tells."""
        if column.known == 0 or column.kind not in ("integer", "float", "boolean", "text"):
            return None
        for name, kind in self.found.active(self.found.outcomes).items():
            if kind != "binary":
                continue
            label = self.sample.column(name).numbers
            rows = np.flatnonzero(~np.isnan(label))
            rows = rows[:: max(1, len(rows) // LEAK_ROWS)]
            if len(rows) < 50:
                continue
            few = column.kind in ("text", "boolean") or (column.kind == "integer" and column.distinct <= 50)
            values = pa.array(column.codes if few else column.numbers)
            auc = predictive_auc(pa.chunked_array([values.take(pa.array(rows))]), label[rows] > 0, few)
            if auc > LEAK_AUC:
                return f"{names.shown(name)} (AUC {auc:.2f} alone)"
        return None

    # -- the rest ------------------------------------------------------------------------------------------------------

    def _codes(self, name: str | None) -> np.ndarray:
        return self.sample.column(name).codes if name is not None else np.zeros(self.sample.rows, np.int64) - 1

    def _hint(self, column: Column) -> str:
        """What an unused column may be good for, after a semicolon."""
        if any(column.name in candidates for candidates in self.roles.candidates.values()):
            return "; a candidate, see above"
        if column.name in self.roles.told:
            return f"; {self.roles.told[column.name]}"
        if column.kind == "list":
            return "; a content vector belongs into the table of the items (items.embedding)"
        if column.kind == "other" and "TIMESTAMP" in column.stored:
            return "; a clock if it is written in microseconds, or without a time zone"
        if column.kind == "other" or column.known == 0 or column.distinct == 1:
            return ""
        if is_day_number(column):
            return "; days written as numbers: no clock until they are dates"
        if column.kind == "moment" or is_text_date(column):
            return "; another clock" if column.kind == "moment" else "; dates as text: no clock until they are cast"
        leak = self._tells(column)
        if leak is not None:
            return f"; it tells {leak}: measured after the event, so never a context"
        words = set(names.tokens(column.name))
        for name, what in ((self.roles.item, "item"), (self.roles.user, "user")):
            if name is not None and depends(column.codes, self._codes(name)):
                return f"; one value per {what}: belongs into a table of the {what}s (data.{what}s)"
        if words & names.SESSION:
            return "; a session: not used"
        if names.is_after(column.name):
            return "; by its name measured after the event or counted over the whole log: an outcome at most"
        if column.is_01:
            return "; an outcome if it is known after the event (kind: binary), else a context"
        return self._hint_by_kind(column, words)

    def _hint_by_kind(self, column: Column, words: set[str]) -> str:
        if column.kind == "text" and words & names.ACTION and column.distinct <= 50:
            return "; what the user did is known after the event, so no context: choose rows by data.where"
        if column.kind == "text" and {str(v).lower() for v in column.coded[1].to_pylist()} <= _YES_NO:
            return "; an outcome must be written as 0 and 1"
        if column.kind != "float" and column.distinct <= CATEGORIES:
            return "; a context if it is known when the item is shown (kind: categorical)"
        return "; a context if it is known when the item is shown (kind: numeric)" if column.kind != "text" else ""


_YES_NO = {"true", "false", "yes", "no", "t", "f", "y", "n"}


def _rates(column: Column) -> str:
    rate = float(np.nanmean(column.numbers))
    unknown = f", {column.missing:.1%} unknown" if column.missing else ""
    return f"{rate:.1%} ones{unknown}"
