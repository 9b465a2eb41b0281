"""A few users: what they did, what the model recommends, what came next. Chosen by a rule, never by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_id
from recgpt.data.prepared import Prepared
from recgpt.data.schema import DataSchema, ItemsConfig
from recgpt.data.split import VALID
from recgpt.errors import RecGPTError
from recgpt.report.blocks import NOTHING, PERCENT, Block, Section, Story, Table, Text, count, number
from recgpt.report.material import Material
from recgpt.report.validation import SHOWN, Lists
from recgpt.runs import user_blocks

QUANTILES = (0.1, 0.35, 0.65, 0.9)
PAST, AHEAD = 8, 5
"""Events shown before and after the recommendation."""
MOST_CATEGORIES = 1_000_000


def stories(material: Material, lists: Lists | None) -> Section:
    """The section."""
    if lists is None:
        return Section("users", "A few users", [Text("This log has no validation part, so nobody's next events.")])
    picked = pick(lists.history, lists.rows)
    teller = _Teller(material)
    shares = ", ".join(f"{100 * q:.0f}{PERCENT}" for q in QUANTILES)
    text = (
        f"Nobody is picked by hand: these are the users at {shares} of {lists.who}, sorted by the length of their "
        "history. Each is shown with the history that the model reads there, and what came next in that part; the test "
        "part is not shown. Items that the user has met are not recommended."
    )
    if material.ranker is not None:
        text += " The outcome probabilities are those of a request of which nothing else (time, context) is known."
    blocks: list[Block] = [Text(text)]
    if teller.note:
        blocks.append(Text(teller.note))
    blocks += [teller.tell(int(lists.rows[place]), int(lists.history[place]), q) for q, place in picked]
    return Section("users", "A few users", blocks)


def pick(history: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[float, int]]:
    """Quantile and place of the users to tell of; each user once."""
    order = np.lexsort((rows, history))
    places = {int(order[int(q * (len(order) - 1))]): q for q in reversed(QUANTILES)}
    return [(q, place) for place, q in reversed(places.items())]


def ahead(prepared: Prepared, row: int) -> tuple[int, int]:
    """Global positions [begin, end) of a user's validation target and the few events after it in the same part.

    Where the log does not tell for certain that an event is still of the validation part, it is left out.
    """
    users = prepared.users
    begin = int(users.offset[row] + users.valid_target[row])
    last = min(begin + AHEAD, int(users.offset[row] + users.n_events[row]))
    if prepared.summary["split"]["kind"] in ("leave_one_out", "time"):
        # Here the parts are ranges, and the history of the test target ends where the test part begins.
        known = users.test_target[row] >= 0
        return begin, max(
            begin + 1, min(last, int(users.offset[row] + users.test_history[row]))
        ) if known else begin + 1
    shown = prepared.impressions(begin, last)
    end = begin + 1
    for place, part in zip(shown.place.tolist(), shown.part.tolist(), strict=True):
        if place == end and part == VALID:
            end += 1
    return begin, end


class _Teller:
    """Tells of one user after the other."""

    def __init__(self, material: Material) -> None:
        self.trained, self.ranker = material.trained, material.ranker
        self.items = material.trained.prepared.items
        self.schema: DataSchema = material.trained.model.schema
        self.categories, self.note = category_names(material)
        self.outcomes: tuple[str, ...] = () if self.ranker is None else self.ranker.outcomes

    def tell(self, row: int, history: int, quantile: float) -> Story:
        """The story of a user row."""
        prepared = self.trained.prepared
        [(_, [events], [met])] = user_blocks(prepared, np.array([row]), np.array([history]), 1)
        after, following = self._ahead(row)
        scores, open_rows = self._scores(events, met)
        best = [int(place) for place in np.argsort(-scores, kind="stable")[:SHOWN] if np.isfinite(scores[place])]
        first = max(0, history - PAST)
        return Story(
            user=str(prepared.user_ids([row])[0]),
            summary=f"{count(history)} events; {100 * quantile:.0f}{PERCENT} of the users have no more",
            events=self._events(events[first:], met[first:], history - first, history),
            recommended=self._recommended(events, best, scores, set(following.tolist())),
            following=self._following(after, following, scores, open_rows),
        )

    def _ahead(self, row: int) -> tuple[Events, NDArray[np.int64]]:
        """The user's next events in the validation part."""
        begin, end = ahead(self.trained.prepared, row)
        return self.trained.prepared.events(begin, end), self.trained.prepared.item_rows(begin, end)

    def _scores(self, events: Events, met: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scores of all items, -inf for what may not be recommended; and what may."""
        model = self.trained.model
        query = model.query(model.encode(events), self.trained.want)
        scores = (model.catalogue @ query).numpy().copy()
        free = self.items.valid_candidate.copy()
        free[met] = False
        scores[~free] = -np.inf
        return scores, free

    # -- tables --------------------------------------------------------------------------------------------------------

    def _name(self, row: int) -> str:
        """Title (the id where there is none), the category below."""
        title = None if self.items.title is None else self.items.title[row]
        name = " ".join((str(self.items.id(row)) if title is None else title).split())
        category = self.categories.get(int(self.items.category[row]))
        return name if category is None else f"{name}\n{' '.join(category.split())}"

    def _events(self, events: Events, rows: NDArray[np.int64], shown: int, total: int) -> Table:
        cells = [
            (_when(int(events.time[i])), self._name(int(row)), self._happened(events, i))
            for i, row in enumerate(rows.tolist())
        ]
        title = f"The last {shown} of {count(total)} events" if shown < total else "All events"
        return _known(Table(("when", "item", "outcomes"), tuple(cells), title=title if cells else "No event yet"))

    def _recommended(self, events: Events, best: list[int], scores: NDArray[np.float32], ahead: set[int]) -> Table:
        likely: list[tuple[str, ...]] = [()] * len(best)
        if self.ranker is not None and best:
            state = self.ranker.recgpt.encode(events)
            ranked = self.ranker.rank(state, [self.items.id(row) for row in best])
            likely = [tuple(number(one.outcomes[name], 3) for name in self.outcomes) for one in ranked]
        cells = [
            (str(place), self._name(row), number(float(scores[row]), 3), *p)
            for place, (row, p) in enumerate(zip(best, likely, strict=True), 1)
        ]
        return Table(
            ("", "item", "score", *(f"p({name})" for name in self.outcomes)),
            tuple(cells),
            title="Recommended",
            texts=(1,),
            marked=frozenset(place for place, row in enumerate(best) if row in ahead),
        )

    def _following(
        self, events: Events, rows: NDArray[np.int64], scores: NDArray[np.float32], free: NDArray[np.bool_]
    ) -> Table:
        cells, marked = [], set()
        for i, row in enumerate(rows.tolist()):
            rank = int((scores >= scores[row]).sum())
            if free[row] and rank <= SHOWN:
                marked.add(i)
            if free[row]:
                where = f"{count(rank)} of {count(free.sum())}"
            else:
                where = "met before" if self.items.valid_candidate[row] else "no candidate"
            cells.append((_when(int(events.time[i])), self._name(row), where, self._happened(events, i)))
        columns = ("when", "item", "model's place", "outcomes")
        return _known(Table(columns, tuple(cells), title="What came next", marked=frozenset(marked)))

    def _happened(self, events: Events, i: int) -> str:
        """The outcomes of an event: binary ones by name where they happened, numbers with their value."""
        parts = []
        known = {name: float(column[i]) for name, column in events.outcomes.items() if not np.isnan(column[i])}
        for name, value in known.items():
            if self.schema.outcomes.get(name) != "binary":
                parts.append(f"{name} {value:.3g}")
            elif value > 0:
                parts.append(name)
        return ", ".join(parts) or ("none" if known else NOTHING)


def _known(table: Table) -> Table:
    """Without the columns of which nothing is known (a log without a clock, say); items and outcomes are text."""
    kept = [i for i in range(len(table.columns)) if any(row[i] != NOTHING for row in table.rows)]
    columns = tuple(table.columns[i] for i in kept)
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    texts = tuple(place for place, name in enumerate(columns) if name in ("item", "outcomes"))
    return replace(table, columns=columns, rows=rows, texts=texts)


def _when(time: int) -> str:
    if time == NO_TIME:
        return NOTHING
    try:
        return datetime.fromtimestamp(time / 1e6, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):  # a clock far outside the calendar
        return str(time)


def category_names(material: Material) -> tuple[dict[int, str], str]:
    """Hash of a category -> its name, read from the side table (a prepared log keeps hashes alone), and a note.

    The dict is empty, and the note says why, where the table is not readable any more.
    """
    from recgpt.data.engine import Engine
    from recgpt.data.logs import find_files
    from recgpt.data.source import open_source

    values: dict[str, Any] | None = material.trained.prepared.summary["config"].get("items")
    config = None if values is None else ItemsConfig.model_validate(values)
    if config is None or config.category is None:
        return {}, ""
    try:
        files = find_files([config.path], "data.items.path")
        with TemporaryDirectory() as scratch, Engine("1GB", Path(scratch)) as engine:
            used = {"data.items.category": config.category}
            source = open_source(engine, "items", files, config.format, "data.items.path", Path(scratch), used)
            distinct = source.table.select(config.category).distinct().limit(MOST_CATEGORIES)
            column = engine.fetch(distinct)[config.category]
    except RecGPTError as error:
        return {}, f"Categories are not shown, for the item table cannot be read ({error})."
    names: dict[int, str] = {}
    for value in column.to_pylist():
        if value is None or value == "":
            continue
        names[hash_id(str(value))] = str(value)
        if isinstance(value, str) and value.strip().isdecimal():  # a text table's integers are hashed without zeros
            names[hash_id(int(value))] = value
    return names, ""
