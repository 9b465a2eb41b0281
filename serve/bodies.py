"""Request bodies: strict JSON, then the keys and types of the interface, told by field; answers as /docs shows them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainValidator, ValidationError, WithJsonSchema

from recgpt.data.columns import INT64_MAX

from .problems import Refused, ascii_only, kind_of, refuse, refuse_unknown, shown

MAX_ID = 1024
"""Characters of an id or of a categorical value."""
MAX_KEYS = 1000
"""Keys of one JSON object."""


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8: no NaN, no Infinity, no key twice.

    Raises:
        Refused: 400 for what is no JSON, 422 for another value than an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_each_once)
    except RecursionError:
        raise Refused(400, "not_json", "the body is nested too deeply") from None
    except ValueError as error:  # of UTF-8, of JSON, of an integer of thousands of digits
        detail = ascii_only(" ".join(str(error).split()))[:200]
        raise Refused(400, "not_json", f"the body is no JSON: {detail}") from error
    if not isinstance(value, dict):
        refuse(None, f"the body is {kind_of(value)}; give an object")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number there; give null where a value is unknown")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has {len(pairs):,} keys; at most {MAX_KEYS:,} are read")
    value = dict(pairs)
    for name in value:
        if not name.isascii():
            name.encode()  # half a surrogate pair is no Unicode, so it cannot be encoded
    if len(value) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise ValueError(f"the key {shown(name)} stands twice in one object")
            names.add(name)
    return value


# -- values ------------------------------------------------------------------------------------------------------------


def check_id(value: Any) -> int | str:
    """An id as it may stand in a log.

    Raises:
        ValueError: another type, empty, outside 64 bits, too long, or no Unicode text.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{shown(value)} is {kind_of(value)}; an id is an integer or text")
    if isinstance(value, int):
        if not -INT64_MAX - 1 <= value <= INT64_MAX:
            raise ValueError(f"{shown(value)} is outside 64 bits; give such ids as text")
        return value
    if not value:
        raise ValueError("empty, which means no id; give one")
    if len(value) > MAX_ID:
        raise ValueError(f"{len(value):,} characters; an id has at most {MAX_ID:,}")
    if "\x00" in value or any("\ud800" <= each <= "\udfff" for each in value):
        raise ValueError(f"{shown(value)} holds a null character or half a surrogate pair; give Unicode text")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{shown(value)} is {kind_of(value)}; give a whole number")
    if value < 1:
        raise ValueError(f"{shown(value)}; ask for at least 1 item")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is {kind_of(value)}; give true or false")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{kind_of(value)}; give an object of names and values")
    return value or {}


def _moment(value: Any) -> int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise ValueError(f"{shown(value)} is {kind_of(value)}; give an integer or ISO text such as 2022-04-28T12:00:00")
    return value


_ID = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": MAX_ID}]}
_SCALAR = {"anyOf": [{"type": each} for each in ("integer", "number", "string", "boolean", "null")]}
_MOMENT = {"anyOf": [{"type": each} for each in ("integer", "string", "null")]}

Id = Annotated[int | str, PlainValidator(check_id), WithJsonSchema(_ID)]
Moment = Annotated[int | str | None, PlainValidator(_moment), WithJsonSchema(_MOMENT)]
Count = Annotated[int, PlainValidator(_whole), WithJsonSchema({"type": "integer", "minimum": 1})]
Truth = Annotated[bool, PlainValidator(_truth), WithJsonSchema({"type": "boolean"})]
Values = Annotated[
    dict[str, Any], PlainValidator(_mapping), WithJsonSchema({"type": "object", "additionalProperties": _SCALAR})
]


# -- requests ----------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """A request body; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class HistoryEvent(Body):
    """One event of a request's own history."""

    item: Id
    """The item's id as in the log."""
    time: Moment = None
    """An integer in the log's unit, or ISO text (UTC unless it gives an offset)."""
    context: Values = {}
    """What was known when the item was shown, by the log's column names; null = unknown."""
    outcomes: Values = {}
    """What followed, by the log's column names; null = unknown."""
    user: Id | None = None
    """Not read here: a history is of one user."""
    event_id: Id | None = None
    """Not read here."""


class PostedEvent(HistoryEvent):
    """One event of one user, to be kept."""

    user: Id
    """The user's id as in the log; the integer 7 and the text "7" are one user."""
    event_id: Id | None = None
    """Makes posting safe to repeat: an event whose id is there already is counted as a duplicate."""


class EventsBody(Body):
    """POST /v1/events."""

    events: Annotated[list[PostedEvent], FailFast()]
    """They are all kept, or none."""


class UserBody(Body):
    """Whom a request is about: a user of the store, or a history that it brings along."""

    user: Id | None = None
    """A user's id; one without events has the empty state."""
    history: Annotated[list[HistoryEvent] | None, FailFast()] = None
    """Instead of `user`: the events, oldest first; nothing of them is kept."""
    profile: Values = {}
    """With `history`: what is known of the user, by the columns of the users table."""
    context: Values = {}
    """What is known of this request, by the log's column names; `time` is its moment."""


class RecommendBody(UserBody):
    """POST /v1/recommend; its scores do not depend on `context`."""

    k: Count = 10
    """How many items."""
    exclude_seen: Truth = True
    """Leave out every item of the user's events."""
    candidates: Annotated[list[Id] | None, FailFast()] = None
    """The ids to choose from; absent: every item of the run."""
    want: Values = {}
    """Outcomes that the items should have, by the log's column names; needs a run with `model.condition: true`."""


class RankBody(UserBody):
    """POST /v1/rank."""

    items: Annotated[list[Id], FailFast()]
    """The ids to score; the answer keeps their order."""


B = TypeVar("B", bound=Body)


def read(model: type[B], value: dict[str, Any], limits: dict[str, int]) -> B:
    """Check a parsed body.

    Args:
        model: what it must be.
        value: the object.
        limits: the most elements of its lists, by key.

    Raises:
        Refused: 422 with the field of the first problem.
    """
    for name, most in limits.items():
        given = value.get(name)
        if isinstance(given, list) and len(given) > most:
            refuse(name, f"{len(given):,} elements; one request may hold {most:,}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # A misspelt key is missing too: what stands there says more than what does not.
        first = min(error.errors(include_url=False), key=lambda each: _ORDER.get(each["type"], 1))
    path, kind, given = list(first["loc"]), first["type"], first["input"]
    if kind == "extra_forbidden":
        refuse_unknown(_dotted(path[:-1]), str(path[-1]), _names(model, path[:-1]))
    if kind == "missing":
        refuse(_dotted(path), f"missing; the keys here are {', '.join(_names(model, path[:-1]))}")
    if kind == "value_error":
        refuse(_dotted(path), first["msg"].removeprefix("Value error, "))
    refuse(_dotted(path), f"{kind_of(given)}; give {'a list' if kind == 'list_type' else 'an object'}")


_ORDER = {"extra_forbidden": 0, "missing": 2}


def _dotted(path: list[int | str]) -> str:
    """`events[3].item` for ("events", 3, "item")."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{ascii_only(part[:60])}" for part in path]
    return "".join(parts).removeprefix(".")


def _names(model: type[BaseModel], path: list[int | str]) -> list[str]:
    """The keys at a place of a body."""
    inner: dict[str, type[BaseModel]] = {"events": PostedEvent, "history": HistoryEvent}
    model = inner[str(path[0])] if path else model
    return [name for name in model.model_fields if model is not HistoryEvent or name not in ("user", "event_id")]


# -- answers -----------------------------------------------------------------------------------------------------------


class StateFields(BaseModel):
    """What an answer was computed from."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    events: int
    """The user's events ever."""
    last_time: int | None
    """The newest known time, microseconds since 1970 UTC."""
    source: Literal["hit", "append", "rebuild", "inline", "empty"]
    """The kept state; that and newer events; all events anew; the request's history; no events."""


class RecommendedItem(BaseModel):
    """One item; `title` where the run has titles."""

    item: int | str
    score: float
    title: str | None = None


class RankedItem(RecommendedItem):
    """One candidate with the probabilities of its outcomes."""

    known: bool
    outcomes: dict[str, float]


class EventsAnswer(BaseModel):
    """What became of the posted events."""

    accepted: int
    duplicates: int


class RecommendAnswer(BaseModel):
    """The best items, best first."""

    items: list[RecommendedItem]
    state: StateFields
    model: str


class RankAnswer(BaseModel):
    """The candidates in the request's order."""

    items: list[RankedItem]
    state: StateFields
    model: str


class EmbeddingAnswer(BaseModel):
    """A user's unit query vector; its product with an item's vector is that item's score."""

    user: str
    embedding: list[float]
    state: StateFields
    model: str


class ErrorFields(BaseModel):
    """What went wrong."""

    code: str = Field(examples=["invalid"])
    field: str | None = Field(examples=["events[3].item"])
    message: str


class ErrorAnswer(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorFields
