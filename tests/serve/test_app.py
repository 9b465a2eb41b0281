"""The service over HTTP: a real server on a free port, and bodies of all kinds."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from recgpt.answers import rank_answer, recommend_answer, state_fields
from recgpt.ranker import Ranker
from recgpt.serve.main import serving
from recgpt.serve.service import Service
from recgpt.serve.states import UserStates
from recgpt.serve.store import EventStore
from tests.recgpt.builders import columns
from tests.serve.posts import TIME, bodies, event

POSTED = ("/v1/events", "/v1/recommend", "/v1/rank")


@pytest.fixture(scope="module")
def url(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("store") / "events.sqlite"
    with serving(run, [f"serve.store={store}", "serve.max_body_bytes=2000000", "serve.body_seconds=1"]) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as opened:
        yield opened


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error's fields; the body holds them and nothing else."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "field", "message"}
    assert body["error"]["message"]
    assert answer.headers["content-type"] == "application/json"
    return body["error"]


def test_what_it_answers_equals_the_library(client: httpx.Client, ranker: Ranker) -> None:
    table, user = columns(33), "ключ/a -1"
    posted = client.post("/v1/events", json={"events": bodies(table, user)})
    assert (posted.status_code, posted.json()) == (200, {"accepted": 33, "duplicates": 0})
    state = ranker.recgpt.encode(table)
    recommended = client.post("/v1/recommend", json={"user": user, "k": 6}).json()
    assert recommended == recommend_answer(ranker.recgpt, state, "rebuild", 6)
    ranked = client.post("/v1/rank", json={"user": user, "items": [3, "new"], "context": {"time": TIME}}).json()
    assert ranked == rank_answer(ranker, state, "hit", [3, "new"], {"time": TIME})
    assert list(ranked["items"][0]) == ["item", "known", "outcomes", "score", "title"]
    found = client.get(f"/v1/users/{quote(user, safe='')}/embedding").json()
    assert found == {
        "user": user,
        "embedding": state.embedding.tolist(),
        "state": state_fields(state, "hit"),
        "model": ranker.recgpt.fingerprint,
    }


@pytest.mark.parametrize(
    "user", ["a/b", "/", "//x/", "-5", "007", "é b", "你好", "a\nb\n", "x/embedding", "a%2Fb", "?#&"]
)
def test_every_id_fits_into_a_path(client: httpx.Client, user: str) -> None:
    path = f"/v1/users/{quote(user, safe='')}/embedding"
    assert client.get(path).status_code == 404
    client.post("/v1/events", json={"events": [event(user)]})
    found = client.get(path)
    assert (found.status_code, found.json()["user"], found.json()["state"]["events"]) == (200, user, 1)


def test_unknown_users_have_the_empty_state(client: httpx.Client, ranker: Ranker) -> None:
    empty = recommend_answer(ranker.recgpt, ranker.recgpt.encode({}), "empty", 3)
    assert client.post("/v1/recommend", json={"user": "nobody", "k": 3}).json() == empty
    assert error_of(client.get("/v1/users/nobody/embedding"))["code"] == "not_found"
    assert client.get("/v1/users//embedding").status_code == 422


DEEP = b"[" * 100_000
HOSTILE: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"{}x", 400),
    (b"\xff\xfe{}", 400),
    ('{"user": 1}'.encode("utf-16"), 400),
    (b'\xef\xbb\xbf{"user": 1}', 400),
    (b'{"user": NaN}', 400),
    (b'{"user": -Infinity}', 400),
    (b'{"user": 1, "user": 2}', 400),
    (b'{"a": {"b": 1, "b": 1}}', 400),
    (DEEP, 400),
    (b'{"user":' + DEEP, 400),
    (b'{"a":' * 5000, 400),
    (b'{"user": ' + b"9" * 5000 + b"}", 400),
    (b'{"\\ud800": 1}', 400),
    (b'{"context": {"\\udfff": 1}}', 400),
    (b"{" + b",".join(b'"%d":1' % i for i in range(2000)) + b"}", 400),
    (b"null", 422),
    (b"[]", 422),
    (b"7", 422),
    (b'"text"', 422),
    (b"{}", 422),
    (b'{"usr": 1}', 422),
    (b'{"user": null}', 422),
    (b'{"user": true}', 422),
    (b'{"user": 1.0}', 422),
    (b'{"user": 1e999}', 422),
    (b'{"user": ""}', 422),
    (b'{"user": []}', 422),
    (b'{"user": {}}', 422),
    (b'{"user": 9223372036854775808}', 422),
    (b'{"user": -9223372036854775809}', 422),
    (b'{"user": ' + b"9" * 400 + b"}", 422),
    (b'{"user": "\\u0000"}', 422),
    (b'{"user": "a\\ud800"}', 422),
    (b'{"user": "' + b"x" * 5000 + b'"}', 422),
    (b'{"' + b"k" * 500_000 + b'": 1}', 422),
    (b'{"events": null, "history": null, "items": null}', 422),
    (b'{"events": {}, "history": {}, "items": {}}', 422),
    (b'{"events": [1], "history": [1], "items": [{}]}', 422),
    (b'{"events": [[]], "history": [[]], "items": [[]]}', 422),
    (b'{"events": [' + b"1," * 999_990 + b"1]}", 422),
    (b'{"user": 1, "items": [' + b"1," * 999_980 + b"1]}", 422),
    (b'{"user": 1, "candidates": [' + b"1," * 999_980 + b"1]}", 422),
]


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(("body", "status"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_are_refused(client: httpx.Client, path: str, body: bytes, status: int) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    assert error_of(answer)["code"] == ("not_json" if status == 400 else "invalid")
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("events", {"events": [event(), event(item=None)]}, "events[1].item"),
        ("events", {"events": [event(item=2.0)]}, "events[0].item"),
        ("events", {"events": [event(item=False)]}, "events[0].item"),
        ("events", {"events": [event(user="")]}, "events[0].user"),
        ("events", {"events": [event(item=2**63)]}, "events[0].item"),
        ("events", {"events": [event(time=None)]}, "events[0].time"),
        ("events", {"events": [event(time=True)]}, "events[0].time"),
        ("events", {"events": [event(time=1.5)]}, "events[0].time"),
        ("events", {"events": [event(time=-1)]}, "events[0].time"),
        ("events", {"events": [event(time=10**18)]}, "events[0].time"),
        ("events", {"events": [event(time="soon")]}, "events[0].time"),
        ("events", {"events": [event(event_id=[])]}, "events[0].event_id"),
        ("events", {"events": [event(event_id=1.5)]}, "events[0].event_id"),
        ("events", {"events": [event(tme=1)]}, "events[0].tme"),
        ("events", {"events": [{"item": 1, "time": TIME}]}, "events[0].user"),
        ("events", {"events": [event(), event(), event(), event(context={"devise": 1})]}, "events[3].context.devise"),
        ("events", {"events": [event(context=[])]}, "events[0].context"),
        ("events", {"events": [event(context={"device": {}})]}, "events[0].context.device"),
        ("events", {"events": [event(outcomes={"click": 2})]}, "events[0].outcomes.click"),
        ("events", {"events": [event(outcomes={"click": "1"})]}, "events[0].outcomes.click"),
        ("events", {"events": [event(outcomes={"seconds": -1})]}, "events[0].outcomes.seconds"),
        ("events", {"events": [event(outcomes={"device": "phone"})]}, "events[0].outcomes.device"),
        ("events", {"events": [], "user": 1}, "user"),
        ("recommend", {"user": 1, "k": 0}, "k"),
        ("recommend", {"user": 1, "k": -5}, "k"),
        ("recommend", {"user": 1, "k": True}, "k"),
        ("recommend", {"user": 1, "k": "5"}, "k"),
        ("recommend", {"user": 1, "k": 10**30}, "k"),
        ("recommend", {"user": 1, "exclude_seen": 1}, "exclude_seen"),
        ("recommend", {"user": 1, "candidates": "abc"}, "candidates"),
        ("recommend", {"user": 1, "candidates": [1, None]}, "candidates[1]"),
        ("recommend", {"user": 1, "items": [1]}, "items"),
        ("recommend", {"history": [{"item": 1, "time": 5}, {"item": 1, "time": 4}]}, "history[1].time"),
        ("recommend", {"history": [{"item": 1}]}, "history[0].time"),
        ("recommend", {"history": [], "profile": {"age": "old"}}, "profile.age"),
        ("recommend", {"history": [], "profile": []}, "profile"),
        ("recommend", {"user": 1, "want": {"clik": 1}}, "want.clik"),
        ("recommend", {"user": 1, "want": {"click": 2}}, "want.click"),
        ("recommend", {"user": 1, "want": {"click": 1}}, "want"),
        ("rank", {"user": 1}, "items"),
        ("rank", {"user": 1, "items": [1, 2.5]}, "items[1]"),
        ("rank", {"user": 1, "items": [1], "k": 1}, "k"),
        ("rank", {"user": 1, "items": [1], "context": {"time": []}}, "context.time"),
        ("rank", {"user": 1, "items": [1], "context": {"volume": "loud"}}, "context.volume"),
        ("rank", {"user": 1, "items": [1], "context": {"click": 1}}, "context.click"),
    ],
)  # fmt: skip
def test_the_field_is_named(client: httpx.Client, path: str, body: dict[str, Any], field: str) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert (answer.status_code, error_of(answer)["field"]) == (422, field)


def test_a_refused_request_keeps_nothing(client: httpx.Client) -> None:
    client.post("/v1/events", json={"events": [event("whole"), event("whole", time="soon")]})
    assert client.get("/v1/users/whole/embedding").status_code == 404


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * 100_000


def test_large_bodies_are_refused_before_they_are_read(client: httpx.Client) -> None:
    for path in POSTED:
        for body in (b" " * 2_000_001, pieces(21)):  # with its length, and in chunks
            answer = client.post(path, content=body)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")
    assert client.post("/v1/recommend", content=pieces(19)).status_code == 400  # within the limit, but no JSON
    packed = client.post("/v1/recommend", content=gzip.compress(b" " * 10**8), headers={"content-encoding": "gzip"})
    assert (packed.status_code, error_of(packed)["field"]) == (400, "content-encoding")


def raw(url: str, text: bytes, close: bool = False) -> bytes:
    """What comes back for these bytes; with `close` we stop sending."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(text)
        if close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and answer.endswith(b"}"):
                break
        return answer


def test_lengths_that_lie(url: str, client: httpx.Client) -> None:
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\n"
    # More is announced than comes: the request ends after body_seconds, or when the client leaves.
    slow = raw(url, head + b"Content-Length: 100\r\n\r\n{}")
    assert slow.startswith(b"HTTP/1.1 408")
    assert json.loads(slow.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
    assert raw(url, head + b"Content-Length: 100\r\n\r\n{}", close=True) in (b"", slow)
    # Even if what came is whole: nothing is kept of a request that ended early.
    body = json.dumps({"events": [event("early")]}).encode()
    length = b"Content-Length: %d\r\n\r\n" % (len(body) + 1)
    raw(url, head.replace(b"recommend", b"events") + length + body, close=True)
    assert client.get("/v1/users/early/embedding").status_code == 404
    # Less is announced than comes: the rest is no request.
    short = raw(url, head + b"Content-Length: 2\r\n\r\n{}GARBAGE\r\n\r\n")
    assert short.startswith(b"HTTP/1.1 422")
    for lie in (b"-1", b"abc", b"9" * 30, b"5, 6"):
        assert raw(url, head + b"Content-Length: " + lie + b"\r\n\r\n{}").startswith(b"HTTP/1.1 4")
    assert client.get("/healthz").status_code == 200


def test_other_paths_and_methods(client: httpx.Client) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v1/events/", "/v2/recommend"):
        answer = client.get(path)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    for method, path in (
        ("GET", "/v1/events"),
        ("DELETE", "/v1/rank"),
        ("POST", "/healthz"),
        ("PUT", "/v1/users/1/embedding"),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] in error_of(answer)["message"]


def test_health_readiness_and_docs(client: httpx.Client, ranker: Ranker) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "model": ranker.recgpt.fingerprint, "ranks": True}
    assert "swagger" in client.get("/docs").text.lower()
    described = client.get("/openapi.json").json()
    text = json.dumps(described)
    schemas = described["components"]["schemas"]
    assert {"EventsBody", "PostedEvent", "RankBody", "RankAnswer", "ErrorAnswer"} <= set(schemas)
    for name in set(text.split('"#/components/schemas/')[1:]):
        assert name.partition('"')[0] in schemas
    assert set(schemas["RecommendBody"]["properties"]) == {
        "user", "history", "profile", "context", "k", "exclude_seen", "candidates", "want",
    }  # fmt: skip
    assert schemas["PostedEvent"]["required"] == ["item", "user"]
    assert set(described["paths"]) == {
        *POSTED, "/v1/users/{user}/embedding", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip


def counters(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_metrics_count(run: Path, tmp_path: Path) -> None:
    with serving(run, [f"serve.store={tmp_path / 'e.sqlite'}"]) as url, httpx.Client(base_url=url) as client:
        client.post("/v1/events", json={"events": [event(event_id="a"), event(event_id="a"), event()]})
        for _ in range(2):
            client.post("/v1/recommend", json={"user": 1})
        client.post("/v1/recommend", content=b"{")
        client.get("/v1/users/2/embedding")
        client.get("/wp-admin.php")
        found = counters(client.get("/metrics").text)
    assert found['recgpt_requests_total{route="/v1/events",status="200"}'] == 1
    assert found['recgpt_requests_total{route="/v1/recommend",status="200"}'] == 2
    assert found['recgpt_requests_total{route="/v1/recommend",status="400"}'] == 1
    assert found['recgpt_requests_total{route="/v1/users/{user}/embedding",status="404"}'] == 1
    assert found['recgpt_requests_total{route="other",status="404"}'] == 1
    assert found['recgpt_request_seconds_count{route="/v1/recommend"}'] == 3
    assert (found["recgpt_events_stored_total"], found["recgpt_events_duplicate_total"]) == (2, 1)
    assert [found[f'recgpt_states_total{{source="{each}"}}'] for each in ("rebuild", "hit", "empty")] == [1, 1, 1]
    assert found["recgpt_state_cache_states"] == 1
    assert found["recgpt_state_cache_bytes"] > 1000


def test_a_token_guards_what_is_the_users(run: Path, tmp_path: Path) -> None:
    store = f"serve.store={tmp_path / 'e.sqlite'}"
    with serving(run, [store], token="séc ret") as url, httpx.Client(base_url=url) as client:
        guarded = [("POST", path) for path in POSTED] + [("GET", "/v1/users/1/embedding"), ("GET", "/metrics")]
        for method, path in guarded:
            for given in (
                {},
                *(
                    {"Authorization": a}
                    for a in ("séc ret", "Bearer", "Bearer séc", "bearer séc ret", "Bearer séc rett")
                ),
            ):
                headers = {name: value.encode() for name, value in given.items()}
                answer = client.request(method, path, headers=headers, content=b"{}" if method == "POST" else None)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
            answer = client.request(method, path, headers={"Authorization": "Bearer séc ret".encode()})
            assert answer.status_code in (200, 400, 404)
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_too_many_at_once_are_sent_away(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(self: Service, body: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        assert release.wait(10)
        return {"slow": True}

    monkeypatch.setattr(Service, "recommend", slow)
    settings = [f"serve.store={tmp_path / 'e.sqlite'}", "serve.workers=1", "serve.waiting=1"]
    with serving(run, settings) as url, httpx.Client(base_url=url, timeout=20) as client:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/recommend", json={}, timeout=20))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        threads[0].start()
        assert entered.wait(10)
        for thread in threads[1:]:
            thread.start()
        for _ in range(500):  # one is computed, one waits, two are sent away at once
            if len(answers) == 2:
                break
            time.sleep(0.02)
        for answer in list(answers):
            assert (answer.status_code, error_of(answer)["code"]) == (429, "busy")
            assert answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        release.set()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        assert client.post("/v1/events", json={"events": []}).status_code == 200


def test_a_store_that_fails_is_503_and_a_fault_is_500(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "e.sqlite"
    with serving(run, [f"serve.store={path}"]) as url, httpx.Client(base_url=url, timeout=20) as client:
        monkeypatch.setattr(EventStore, "_add_one", lambda *_: EventStore._missing)  # type: ignore[attr-defined]
        fault = client.post("/v1/events", json={"events": [event()]})
        assert (fault.status_code, error_of(fault)["code"]) == (500, "internal")
        assert "_missing" in caplog.text
        assert "_missing" not in fault.text
        monkeypatch.undo()
        other = EventStore(path)
        monkeypatch.setattr("recgpt.serve.store.BUSY_SECONDS", 0.1)
        with other._transaction():  # another process that does not let go
            monkeypatch.setattr(UserStates, "get", lambda *_: other._writer.execute("SELECT nothing"))
            answer = client.post("/v1/recommend", json={"user": 1})
            assert (answer.status_code, error_of(answer)["code"]) == (503, "unavailable")
        other.close()
        monkeypatch.undo()
        monkeypatch.setattr(
            EventStore, "check_writable", lambda self: self._writer.execute("INSERT INTO nothing VALUES (1)")
        )
        ready = client.get("/readyz")
        assert (ready.status_code, error_of(ready)["code"]) == (503, "unavailable")
        assert client.get("/healthz").status_code == 200
