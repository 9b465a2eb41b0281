"""Recommendations for one user of a run's log: the body that the service answers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recgpt.data.events import NO_TIME
from recgpt.runs import TrainedRun


def recommend_user(run: str | Path, user: str, k: int) -> dict[str, Any]:
    """The k best unseen items for a user after all the events of the log.

    Args:
        run: a run folder.
        user: the id as it stands in the log.
        k: how many items.

    Returns:
        `{"items": [{item, score, title?}], "state": {events, last_time, source}, "model"}`; last_time in microseconds
        since 1970 UTC, or null.

    Raises:
        ConfigError: the log has no such user.
    """
    trained = TrainedRun.open(run)
    row = trained.prepared.find_user(user)
    first = int(trained.prepared.users.offset[row])
    events = trained.prepared.events(first, first + int(trained.prepared.users.n_events[row]))
    state = trained.model.encode(events)
    best = trained.model.recommend(state, k)
    return {
        "items": [{"item": item, "score": score} | _title(trained, item) for item, score in best],
        "state": {
            "events": state.n,
            "last_time": None if state.last_time == NO_TIME else state.last_time,
            "source": "rebuild",
        },
        "model": trained.model.fingerprint,
    }


def _title(trained: TrainedRun, item: int | str) -> dict[str, str | None]:
    from recgpt.data.hashing import hash_ids

    titles = trained.model.items.title
    if titles is None:
        return {}
    return {"title": titles[int(trained.model.items.rows(hash_ids([item]))[0])]}
