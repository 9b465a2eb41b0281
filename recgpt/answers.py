"""The bodies of answers, the same from the command line and from the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from recgpt.api import RecGPT
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_ids
from recgpt.index import ItemIndex, recommend_with_index
from recgpt.state import UserState

if TYPE_CHECKING:
    from recgpt.ranker import Ranker


def recommend_answer(
    model: RecGPT,
    state: UserState,
    source: str,
    k: int,
    exclude_seen: bool = True,
    candidates: Sequence[int | str] | None = None,
    index: ItemIndex | None = None,
    want: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The k best items for a state; see `RecGPT.recommend`. Of all items through `index`, if there is one.

    Returns:
        `{"items": [{item, score, title?}], "state": {events, last_time, source}, "model"}`, best first; `title` where
        the run has titles; `model` is the event model's fingerprint.
    """
    if index is None or candidates is not None:
        best = model.recommend(state, k, exclude_seen, candidates, want)
    else:
        best = recommend_with_index(model, index, state, k, exclude_seen, want)
    titles = _titles(model, [item for item, _ in best])
    items = [{"item": item, "score": score, **title} for (item, score), title in zip(best, titles, strict=True)]
    return {"items": items, "state": state_fields(state, source), "model": model.fingerprint}


def rank_answer(
    ranker: Ranker,
    state: UserState,
    source: str,
    items: Sequence[int | str],
    context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Outcomes and score of each item for a state; see `Ranker.rank`.

    Returns:
        `{"items": [{item, known, outcomes: {name: p}, score, title?}], "state": {events, last_time, source},
        "model"}`, in the order of `items`; `model` is the fingerprint of the event model and the heads.
    """
    ranked = ranker.rank(state, items, context) if len(items) else []
    titles = _titles(ranker.recgpt, [each.item for each in ranked])
    rows = [
        {"item": each.item, "known": each.known, "outcomes": dict(each.outcomes), "score": each.score, **title}
        for each, title in zip(ranked, titles, strict=True)
    ]
    return {"items": rows, "state": state_fields(state, source), "model": ranker.fingerprint}


def state_fields(state: UserState, source: str) -> dict[str, Any]:
    """What an answer was computed from.

    Args:
        state: the user's.
        source: hit, append, rebuild, inline or empty.

    Returns:
        `{events, last_time, source}`; last_time in microseconds since 1970 UTC, or None.
    """
    last_time = None if state.last_time == NO_TIME else state.last_time
    return {"events": state.n, "last_time": last_time, "source": source}


def _titles(model: RecGPT, ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """`{"title"}` of each item, or `{}` where the run has no titles."""
    titles = model.items.title
    if titles is None:
        return [{} for _ in ids]
    rows = model.items.rows(hash_ids(list(ids)))
    return [{"title": titles[int(row)] if row >= 0 else None} for row in rows]
