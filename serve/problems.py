"""What is answered instead of a result, and how the values that people sent are shown in it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, NoReturn

_SCALARS = (str, int, float, type(None))
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a boolean", float: "a number with a fraction"}
_SHOWN = 60


class Refused(Exception):
    """A request that gets an error instead of an answer.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: a line for people: what is wrong and the remedy.
        field: the place in the request, such as `events[3].item`.
    """

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "field": field, "message": message}}


def refuse(field: str | None, message: str) -> NoReturn:
    """Answer 422 for a field."""
    raise Refused(422, "invalid", message, field)


def refuse_unknown(field: str, name: str, known: Collection[str]) -> NoReturn:
    """Answer 422 for a key that means nothing here, with the nearest one that does."""
    near = difflib.get_close_matches(name[:_SHOWN], known, 1)  # its time grows with the square of the length
    listed = f"known here: {', '.join(known)}" if known else "none is known here"
    hint = f"did you mean {near[0]!r}?" if near else listed
    place = ascii_only(name[:_SHOWN])
    refuse(f"{field}.{place}" if field else place, f"unknown key {shown(name)}; {hint}")


def ascii_only(text: str) -> str:
    """`text` with escapes for what an encoder or a terminal may choke on."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def shown(value: Any) -> str:
    """A value for a message, at most 60 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    if not isinstance(value, _SCALARS):
        return kind_of(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return ascii_only(text) if not isinstance(value, str) or len(value) <= _SHOWN else f"{ascii_only(text)[:_SHOWN]}..."


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    return _KINDS.get(type(value), "null" if value is None else "a number")
