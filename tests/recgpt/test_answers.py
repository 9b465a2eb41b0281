"""The bodies of answers, against the library's own values put together by hand."""

from __future__ import annotations

import dataclasses
import json

import pytest

from recgpt.answers import rank_answer, recommend_answer, state_fields
from recgpt.api import RecGPT
from recgpt.ranker import Ranker
from tests.recgpt.builders import columns, ranker, recgpt


@pytest.fixture(scope="module")
def heads() -> Ranker:
    return ranker(untrained=3)


def test_recommendations(heads: Ranker) -> None:
    model, table = heads.recgpt, columns(20)
    state = model.encode(table)
    answer = recommend_answer(model, state, "rebuild", 3)
    best = model.recommend(state, 3)
    assert answer == {
        "items": [{"item": item, "score": score, "title": f"item {item}"} for item, score in best],
        "state": {"events": 20, "last_time": table["time"][-1] * 10**6, "source": "rebuild"},
        "model": model.fingerprint,
    }
    assert json.loads(json.dumps(answer)) == answer
    chosen = recommend_answer(model, state, "hit", 5, exclude_seen=False, candidates=["new", 3, "4"])
    assert {each["item"]: each["title"] for each in chosen["items"]} == {3: "item 3", "4": "item 4", "new": None}
    assert chosen["items"] == sorted(chosen["items"], key=lambda each: -each["score"])
    assert recommend_answer(model, state, "hit", 5, candidates=[])["items"] == []


def test_ranks_keep_the_order_and_the_repeats(heads: Ranker) -> None:
    state, ids = heads.recgpt.encode(columns(20)), [39, 3, "new", 3, "4"]
    answer = rank_answer(heads, state, "hit", ids, {"device": "phone"})
    expected = heads.rank(state, ids, {"device": "phone"})
    titles = {39: "item 39", 3: "item 3", "4": "item 4", "new": None}
    assert answer["items"] == [
        {"item": each.item, "known": each.known, "outcomes": each.outcomes, "score": each.score, "title": titles[id]}
        for each, id in zip(expected, ids, strict=True)
    ]
    assert [each["item"] for each in answer["items"]] == ids
    assert [each["known"] for each in answer["items"]] == [False, True, False, True, True]
    assert set(answer["items"][0]["outcomes"]) == {"click", "like"}
    assert answer["model"] == heads.fingerprint != heads.recgpt.fingerprint
    assert answer["state"]["source"] == "hit"
    assert rank_answer(heads, state, "hit", [])["items"] == []


def test_a_run_without_titles_says_none() -> None:
    model = recgpt()
    plain = RecGPT(model.model, dataclasses.replace(model.items, title=None))
    answer = recommend_answer(plain, plain.encode({}), "empty", 2)
    assert [set(each) for each in answer["items"]] == [{"item", "score"}] * 2


def test_the_empty_state_has_no_time() -> None:
    assert state_fields(recgpt().encode({}), "empty") == {"events": 0, "last_time": None, "source": "empty"}
