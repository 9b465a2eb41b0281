"""Answers equal the library's for the same events, whatever came between: growth, eviction, restarts, late events."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from recgpt.answers import rank_answer, recommend_answer, state_fields
from recgpt.api import RecGPT
from recgpt.ranker import Ranker
from recgpt.serve.problems import Refused
from recgpt.serve.service import Service
from recgpt.state import UserState
from tests.recgpt.builders import columns, cut
from tests.serve.posts import TIME, bodies, event

Services = Callable[..., Service]


def without_source(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"state": {name: value for name, value in answer["state"].items() if name != "source"}}


def refused(call: Callable[[], Any]) -> tuple[int, str | None, str]:
    with pytest.raises(Refused) as error:
        call()
    body = error.value.body["error"]
    return error.value.status, body["field"], body["message"]


def test_answers_equal_the_librarys(service: Services, ranker: Ranker) -> None:
    served, model, table = service(), ranker.recgpt, columns(45)
    for start, stop in ((0, 0), (0, 3), (3, 20), (20, 21), (21, 45)):
        served.events({"events": bodies(cut(table, start, stop), "u", start)})
        state = model.encode(cut(table, 0, stop))
        source = "empty" if stop == 0 else "rebuild" if start == 0 else "append"
        assert served.recommend({"user": "u", "k": 7}) == recommend_answer(model, state, source, 7)
        source = "hit" if stop else "empty"
        asked = {"user": "u", "k": 5, "exclude_seen": False, "candidates": [3, "4", "new", 3]}
        expected = recommend_answer(model, state, source, 5, False, [3, "4", "new", 3])
        assert served.recommend(asked) == expected
        context = {"device": "phone", "time": TIME + 10**6}
        ranked = served.rank({"user": "u", "items": [5, "5", 38, "new", 5], "context": context})
        assert ranked == rank_answer(ranker, state, source, [5, "5", 38, "new", 5], context)
        assert [each["known"] for each in ranked["items"]] == [True, True, False, False, True]
    assert served.recommend({"user": "u", "k": 7}) != served.recommend({"user": "v", "k": 7})


def test_a_request_may_bring_its_history(service: Services, ranker: Ranker) -> None:
    served, table = service(), columns(30)
    state = ranker.recgpt.encode(table)
    answer = served.recommend({"history": bodies(table), "k": 4})
    assert answer == recommend_answer(ranker.recgpt, state, "inline", 4)
    assert served.rank({"history": bodies(table), "items": [1, 2]}) == rank_answer(ranker, state, "inline", [1, 2])
    assert served.recommend({"history": [], "k": 1})["state"] == {"events": 0, "last_time": None, "source": "inline"}
    assert served.store.counts() == (0, 0)


def test_an_embedding(service: Services, ranker: Ranker) -> None:
    served, table = service(), columns(9)
    served.events({"events": bodies(table, "a/b -1")})
    state = ranker.recgpt.encode(table)
    assert served.embedding("a/b -1") == {
        "user": "a/b -1",
        "embedding": state.embedding.tolist(),
        "state": state_fields(state, "rebuild"),
        "model": ranker.recgpt.fingerprint,
    }
    assert refused(lambda: served.embedding("nobody"))[:2] == (404, "user")


def test_ids_of_both_types_are_one_user(service: Services) -> None:
    served = service()
    served.events({"events": [event(7), event("7"), event("07")]})
    assert served.recommend({"user": 7})["state"]["events"] == 2
    assert served.recommend({"user": "7"})["state"] == {
        "events": 2,
        "last_time": TIME * 10**6,
        "source": "hit",
    }


def test_posting_twice_keeps_once(service: Services) -> None:
    served, posted = service(), bodies(columns(5), "u")
    assert served.events({"events": posted}) == {"accepted": 5, "duplicates": 0}
    assert served.events({"events": posted[2:]}) == {"accepted": 0, "duplicates": 3}
    changed = [event("v"), posted[0] | {"outcomes": {"click": None}}]
    changed[1]["outcomes"]["click"] = 0 if posted[0]["outcomes"]["click"] else 1
    status, field, _ = refused(lambda: served.events({"events": changed}))
    assert (status, field) == (422, "events[1].event_id")
    assert served.store.counts() == (5, 1)


def test_a_run_without_heads_recommends_and_says_why_it_does_not_rank(service: Services) -> None:
    served = service(ranked=False)
    assert len(served.recommend({"user": 1, "k": 3})["items"]) == 3
    assert refused(lambda: served.rank({"user": 1, "items": [1]})) == (
        404,
        None,
        "this run has no ranking heads; serve a run of `recgpt finetune`",
    )


@pytest.mark.parametrize(
    ("verb", "body", "field", "told"),
    [
        ("recommend", {}, "user", "missing; give user, or history"),
        ("recommend", {"user": 1, "history": []}, "history", "both"),
        ("recommend", {"user": 1, "k": 11}, "k", "11; one request may ask for 10"),
        ("recommend", {"user": 1, "k": 10**400}, "k", "may ask for 10"),
        ("recommend", {"user": 1, "candidates": [1] * 6}, "candidates", "6 elements; one request may hold 5"),
        ("rank", {"user": 1, "items": [1] * 6}, "items", "6 elements"),
        ("recommend", {"history": [event()] * 5}, "history", "5 elements; one request may hold 4"),
        ("events", {"events": [event()] * 4}, "events", "4 elements; one request may hold 3"),
        ("recommend", {"user": 1, "profile": {"age": 3}}, "profile", "goes with history"),
        ("recommend", {"history": [], "profile": {"aeg": 3}}, "profile.aeg", "did you mean 'age'"),
        ("recommend", {"user": 1, "context": {"devise": 3}}, "context.devise", "did you mean 'device'"),
        ("rank", {"user": 1, "items": [1], "context": {"time": "now"}}, "context.time", "no time"),
        ("rank", {"user": 1, "items": [1], "context": {"volume": "loud"}}, "context.volume", "give a number"),
        ("recommend", {"history": [event(user=True)]}, "history[0].user", "true is a boolean"),
    ],
)
def test_requests_are_held_to_the_limits(
    service: Services, verb: str, body: dict[str, Any], field: str, told: str
) -> None:
    served = service(max_k=10, max_candidates=5, max_history=4, max_events=3)
    status, named, message = refused(lambda: getattr(served, verb)(body))
    assert (status, named) == (422, field)
    assert told in message
    assert served.store.counts() == (0, 0)


class Reference:
    """Every user's events in a plain list, sorted by time, encoded anew for every question."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker, self.model = ranker, ranker.recgpt
        self.posted: dict[str, list[dict[str, Any]]] = {}
        self.ids: set[str] = set()
        self.encoded: dict[tuple[str, int], UserState] = {}

    def post(self, events: list[dict[str, Any]]) -> dict[str, int]:
        accepted = 0
        for each in events:
            if each["event_id"] not in self.ids:
                self.ids.add(each["event_id"])
                self.posted.setdefault(str(each["user"]), []).append(each)
                accepted += 1
        return {"accepted": accepted, "duplicates": len(events) - accepted}

    def state(self, user: int | str) -> UserState:
        key = str(user), len(self.posted.get(str(user), []))
        if key not in self.encoded:
            self.encoded[key] = self.encode(str(user))
        return self.encoded[key]

    def encode(self, user: str) -> UserState:
        events = sorted(self.posted.get(user, []), key=lambda each: each["time"])  # stable: then by arrival
        table: dict[str, list[Any]] = {name: [each[name] for each in events] for name in ("item", "time")}
        table |= {name: [each["context"].get(name) for each in events] for name in ("device", "volume")}
        table |= {name: [each["outcomes"].get(name) for each in events] for name in ("click", "seconds")}
        return self.model.encode(table)


class Sequence:
    """Posts, questions, evictions and restarts in a random order over one store, beside the reference."""

    def __init__(self, seed: int, make: Services, ranker: Ranker) -> None:
        self.rng, self.seed, self.serial = random.Random(seed), seed, 0
        self.make, self.reference = make, Reference(ranker)
        self.budget = self.rng.choice([0, 30_000, 10**9, 10**9])  # no state, some two, all
        self.served = make(state_bytes=self.budget)
        self.users: list[int | str] = [seed, f"{seed} a/b"]
        self.posted: list[dict[str, Any]] = []
        self.sources: dict[str, int] = {}

    def step(self) -> None:
        act = self.rng.choices(["post", "recommend", "rank", "evict", "restart"], [8, 6, 6, 1, 1])[0]
        if act == "post":
            self.post()
        elif act == "evict":
            self.served.states.cache.clear()
        elif act == "restart":
            self.served.store.close()
            self.served = self.make(state_bytes=self.budget)
        else:
            self.ask(act, self.rng.choices([str(self.seed), *self.users], [2, 2, 1])[0])

    def post(self) -> None:
        made = [self.some_event() for _ in range(self.rng.randint(1, 3))]
        assert self.served.events({"events": made}) == self.reference.post(made)

    def some_event(self) -> dict[str, Any]:
        """A new event, which may be late or of an equal time, or one that was posted before."""
        rng, self.serial = self.rng, self.serial + 1
        if self.posted and rng.random() < 0.15:
            return rng.choice(self.posted)
        late = rng.randrange(200) if rng.random() < 0.05 else 0
        made = event(rng.choices(self.users, [4, 1])[0], rng.randrange(45), TIME + self.serial // 2 - late)
        made["event_id"] = f"{self.seed} {self.serial}"
        made["context"] = {"device": rng.choice(["phone", "tablet", None]), "volume": rng.choice([None, rng.random()])}
        made["outcomes"] = {"click": rng.choice([0, 1, None]), "seconds": rng.choice([None, 3])}
        self.posted.append(made)
        return made

    def ask(self, act: str, user: int | str) -> None:
        """One question; the answer must be the reference's."""
        state, ranker = self.reference.state(user), self.reference.ranker
        if act == "rank":
            context, items = {"time": TIME + 10**5, "device": "phone"}, [0, 39, "5", "new"]
            answer = self.served.rank({"user": user, "items": items, "context": context})
            expected = rank_answer(ranker, state, "", items, context)
        else:
            answer = self.served.recommend({"user": user, "k": 5})
            expected = recommend_answer(ranker.recgpt, state, "", 5)
        source = answer["state"]["source"]
        self.sources[source] = self.sources.get(source, 0) + 1
        assert without_source(answer) == without_source(expected)


def test_random_interleavings_agree_with_encoding_anew(service: Services, ranker: Ranker) -> None:
    """200 sequences on one store; every sequence has users of its own."""
    sources: dict[str, int] = {}
    for seed in range(200):
        sequence = Sequence(seed, service, ranker)
        sequence.post()
        for _ in range(6):
            sequence.step()
        sequence.served.store.close()
        sequence.served = service()  # a fresh one on what the file holds
        sequence.ask("rank", seed)
        for source, count in sequence.sources.items():
            sources[source] = sources.get(source, 0) + count
        sequence.served.store.close()
    assert set(sources) == {"hit", "append", "rebuild", "empty"}
    assert min(sources.values()) >= 30, sources


def test_threads_at_once_agree_with_encoding_anew(service: Services, ranker: Ranker) -> None:
    """Posts and questions of the same two users from four threads; every answer is of some whole prefix."""
    served, failures = service(state_bytes=40_000), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for step in range(15):
                user, moment = rng.choice(["a", "b"]), TIME + rng.randrange(5)
                served.events({"events": [event(user, rng.randrange(40), moment, event_id=f"{seed} {step}")]})
                answer = served.recommend({"user": user, "k": 3})
                assert answer["state"]["events"] >= 1
                served.rank({"user": user, "items": [1, 2]})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert served.store.counts() == (60, 2)
    for user in ("a", "b"):
        kept = sorted((each.event for each in served.store.since(user)), key=lambda each: each.time or 0)
        table = {"item": [each.item for each in kept], "time": [(each.time or 0) // 10**6 for each in kept]}
        expected = recommend_answer(ranker.recgpt, ranker.recgpt.encode(table), "", 5)
        for _ in range(2):
            assert without_source(served.recommend({"user": user, "k": 5})) == without_source(expected)


def test_the_reference_tells_orders_apart(ranker: Ranker) -> None:
    """What the interleavings compare depends on the order of events and on their values."""
    model: RecGPT = ranker.recgpt
    events = [event("u", 1, TIME, event_id="a"), event("u", 2, TIME, event_id="b")]
    states = []
    for order in (events, events[::-1]):
        reference = Reference(ranker)
        reference.post([each | {"context": {}, "outcomes": {}} for each in order])
        states.append(recommend_answer(model, reference.state("u"), "", 5))
    assert states[0] != states[1]
