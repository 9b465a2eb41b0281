"""Posted values by the model's schema: held to what preparing a log demands, then read as `Events`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recgpt.data.columns import END_OF_TIME, FLOAT32_MAX
from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_ids
from recgpt.data.schema import DataSchema, time_point
from recgpt.errors import ConfigError

from .bodies import HistoryEvent, check_id
from .problems import kind_of, refuse, refuse_unknown, shown

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """One event as it is kept.

    Attributes:
        item: its id.
        time: microseconds since 1970 UTC, None = unknown.
        context, outcomes: values by the log's column names; what is unknown is left out.
        user, event_id: as text; None in a request's own history.
    """

    item: int | str
    time: int | None
    context: Mapping[str, int | float | str]
    outcomes: Mapping[str, int | float | str]
    user: str | None = None
    event_id: str | None = None


def read_event(body: HistoryEvent, schema: DataSchema, where: str) -> Event:
    """Check an event's values.

    Args:
        body: its keys and types are checked.
        schema: the log's columns.
        where: its place in the request, such as `events[3]`.

    Raises:
        Refused: 422 with the field.
    """
    return Event(
        item=body.item,
        time=_event_time(body, schema, where),
        context=_known(read_values(body.context, schema.context, f"{where}.context")),
        outcomes=_known(read_values(body.outcomes, schema.outcomes, f"{where}.outcomes")),
        user=None if body.user is None else str(body.user),
        event_id=None if body.event_id is None else str(body.event_id),
    )


def read_history(bodies: Sequence[HistoryEvent], schema: DataSchema) -> list[Event]:
    """A request's own events, oldest first; their times, where known, may not go backwards.

    Raises:
        Refused: 422 with the field.
    """
    events, newest = [], 0
    for place, body in enumerate(bodies):
        event = read_event(body, schema, f"history[{place}]")
        if event.time is not None and event.time < newest:
            refuse(f"history[{place}].time", f"{shown(body.time)} is before the events above it; give oldest first")
        newest = newest if event.time is None else event.time
        events.append(event)
    return events


def _event_time(body: HistoryEvent, schema: DataSchema, where: str) -> int | None:
    """Microseconds; a log with a clock asks for one, and only a history may say that it is unknown."""
    if body.time is None:
        stored = where.startswith("events")
        if schema.has_time and (stored or "time" not in body.model_fields_set):
            also = "" if stored else ", or null where it is unknown"
            refuse(f"{where}.time", f"missing; give an integer in {schema.time_unit} or ISO text{also}")
        return None
    return read_time(body.time, schema.time_unit, f"{where}.time")


def read_time(value: Any, unit: str, where: str) -> int:
    """Microseconds since 1970 UTC of an integer in `unit` or of ISO text.

    Raises:
        Refused: 422: another type, no date, or outside 1970 to 2099.
    """
    remedy = f"give an integer in {unit} or ISO text such as 2022-04-28T12:00:00"
    if isinstance(value, bool) or not isinstance(value, int | str):
        refuse(where, f"{shown(value)} is {kind_of(value)}; {remedy}")
    try:
        time = time_point(value, unit)
    except (ConfigError, OverflowError):
        refuse(where, f"{shown(value)} is no time; {remedy}")
    if not 0 <= time < END_OF_TIME * 10**6:
        refuse(where, f"{shown(value)} is no time from 1970 to 2099; {remedy}")
    return time


def read_values(values: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    """Values by name, checked by their kind; null and empty text become None.

    Raises:
        Refused: 422 with the field: an unknown name (the nearest is told), or a value that its kind does not allow.
    """
    checked = {}
    for name, value in values.items():
        if name not in kinds:
            refuse_unknown(where, name, kinds)
        problem = None if value is None else _problem(value, kinds[name])
        if problem:
            refuse(f"{where}.{name}", f"{shown(value)} {problem}")
        checked[name] = int(value) if isinstance(value, bool) else None if value == "" else value
    return checked


def _problem(value: Any, kind: str) -> str | None:
    """What is wrong with a known value."""
    if kind == "categorical":
        if isinstance(value, bool) or value == "":
            return None
        try:
            check_id(value)
        except ValueError:
            return "is no category; give an integer of 64 bits, text, or null where it is unknown"
        return None
    if not isinstance(value, int | float):
        return f"is {kind_of(value)}; give a number, or null where it is unknown"
    if not abs(value) <= FLOAT32_MAX:  # NaN neither
        return "is not finite; give null where it is unknown"
    if kind == "binary" and value not in (0, 1):
        return "is not 0 or 1; give 0, 1, or null where it is unknown"
    if kind == "watch_time" and value < 0:
        return "is a negative watch time; give zero or more"
    return None


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def to_events(events: Sequence[Event], schema: DataSchema) -> Events:
    """Events as the model reads them, in their order; values that the schema does not name are left out."""
    clock = schema.has_time
    return Events(
        item=hash_ids([event.item for event in events]),
        time=np.array([event.time if clock and event.time is not None else NO_TIME for event in events], np.int64),
        outcomes={
            name: _column([e.outcomes.get(name) for e in events], name, k) for name, k in schema.outcomes.items()
        },
        context={name: _column([e.context.get(name) for e in events], name, k) for name, k in schema.context.items()},
    )


def _column(values: Sequence[Any], name: str, kind: str) -> NDArray:
    """One outcome or context column; what a store kept for another schema and this one cannot read is unknown."""
    fits = [value is not None and _problem(value, kind) is None for value in values]
    if sum(fits) < sum(value is not None for value in values):
        logger.warning("store: some values of %s are not %s, as this run reads it; they count as unknown", name, kind)
    if kind == "categorical":
        known = dict.fromkeys(value for value, fit in zip(values, fits, strict=True) if fit)
        hashes = dict(zip(known, hash_ids(list(known)).tolist(), strict=True))
        return np.array([hashes[value] if fit else 0 for value, fit in zip(values, fits, strict=True)], np.int64)
    return np.array([value if fit else np.nan for value, fit in zip(values, fits, strict=True)], np.float64).astype(
        np.float32
    )
