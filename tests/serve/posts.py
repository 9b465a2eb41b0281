"""Events as clients post them."""

from __future__ import annotations

from typing import Any

TIME = 1_600_000_000


def bodies(table: dict[str, Any], user: int | str | None = None, start: int = 0) -> list[dict[str, Any]]:
    """Rows of `builders.columns` as event bodies; with `user` and an id of their own each, if there is a user."""
    made = []
    for row in range(len(table["item"])):
        body = {
            "item": table["item"][row],
            "time": table["time"][row],
            "context": {"device": table["device"][row], "volume": table["volume"][row]},
            "outcomes": {"click": table["click"][row], "seconds": table["seconds"][row]},
        }
        made.append(body if user is None else body | {"user": user, "event_id": f"{user} {start + row}"})
    return made


def event(user: int | str = 1, item: int | str = 2, time: Any = TIME, **more: Any) -> dict[str, Any]:
    """One event body."""
    return {"user": user, "item": item, "time": time} | more
