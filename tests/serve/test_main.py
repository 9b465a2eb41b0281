"""The verb: real processes that are killed and stopped, settings, stores and ports that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from recgpt.answers import recommend_answer
from recgpt.cli import main
from recgpt.errors import ConfigError
from recgpt.ranker import Ranker
from recgpt.recommend import recommend_user
from recgpt.serve.main import resolve, serving
from recgpt.serve.reading import Event
from recgpt.serve.store import EventStore
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log
from tests.serve.posts import TIME, event

ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A server in a process of its own."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recgpt", "serve", *words, "--port", "0"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if line.startswith("serving http://"):
                self.url = line.split()[1].rstrip(";")
                return
        raise AssertionError("\n".join(self.lines))


@contextmanager
def server(*words: str) -> Iterator[Process]:
    started = Process(*words)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


def test_a_killed_server_has_kept_what_it_confirmed(run: Path, ranker: Ranker, tmp_path: Path) -> None:
    """SIGKILL while four clients post; what one of them did not see confirmed it posts again, to the next server."""
    store = f"serve.store={tmp_path / 'events.sqlite'}"
    confirmed: list[int] = []
    posting = 200

    def made(serial: int) -> list[dict[str, object]]:
        return [event(f"user {serial % 4}", i, TIME + serial, event_id=f"{serial} {i}") for i in range(3)]

    with server(str(run), store) as first:

        def post(client_number: int) -> None:
            with httpx.Client(base_url=first.url, timeout=20) as client:
                for serial in range(client_number, 10**6, 4):
                    try:
                        answer = client.post("/v1/events", json={"events": made(serial)})
                    except httpx.TransportError:
                        return
                    assert answer.json() == {"accepted": 3, "duplicates": 0}
                    confirmed.append(serial)
                    if len(confirmed) == posting:
                        first.process.kill()

        threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(confirmed) >= posting
        assert first.process.wait(10) == -signal.SIGKILL

    kept = EventStore(tmp_path / "events.sqlite")
    found = [each.event.event_id for user in range(4) for each in kept.since(f"user {user}")]
    kept.close()
    assert len(found) == len(set(found))  # none twice
    assert set(found) >= {f"{serial} {i}" for serial in confirmed for i in range(3)}  # none lost
    assert len(found) <= 3 * (len(confirmed) + 4)
    assert len(found) % 3 == 0  # requests whole or not at all

    with serving(run, [store]) as second, httpx.Client(base_url=second, timeout=20) as client:
        repeated = {"events": made(max(confirmed) + 1) + made(max(confirmed))}
        duplicates = sum(each["event_id"] in found for each in repeated["events"])
        assert client.post("/v1/events", json=repeated).json() == {"accepted": 6 - duplicates, "duplicates": duplicates}
        serials = sorted({int(each.split()[0]) for each in (*found, *(e["event_id"] for e in repeated["events"]))})
        for user in range(4):
            own = [serial for serial in serials if serial % 4 == user]
            table = {"item": [0, 1, 2] * len(own), "time": [TIME + serial for serial in own for _ in range(3)]}
            answer = client.post("/v1/recommend", json={"user": f"user {user}", "k": 5}).json()
            assert answer == recommend_answer(ranker.recgpt, ranker.recgpt.encode(table), "rebuild", 5)


@pytest.mark.parametrize(("number", "exits"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, exits: int
) -> None:
    """In this process, whose handlers must be there again afterwards."""
    kept = EventStore(tmp_path / "e.sqlite")
    kept.add([Event(item, TIME * 10**6, {}, {}, f"user {item % 2}") for item in range(3)])
    kept.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    statuses: list[int] = []

    def client() -> None:
        for _ in range(500):
            try:
                statuses.append(
                    httpx.post(f"http://127.0.0.1:{port}/v1/recommend", json={"user": 1, "k": 7}).status_code
                )
                break
            except httpx.ConnectError:
                time.sleep(0.02)
        os.kill(os.getpid(), number)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(number)
    thread = threading.Thread(target=client)
    thread.start()
    code = main(
        ["serve", str(run), f"serve.store={tmp_path / 'e.sqlite'}", "serve.max_k=7", "--port", str(port), "--json"]
    )
    thread.join()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert (code, statuses, captured.out) == (exits, [200], "")
    for line in ("serve.max_k: 7", "serve.workers: 2", f"serving http://127.0.0.1:{port}; Ctrl-C stops"):
        assert line in lines
    held = f"{tmp_path / 'e.sqlite'} holds 3 events of 2 users"
    assert any(line.startswith(f"store: {held}") for line in lines)
    assert lines[-1] == f"recgpt: stopped by {number.name}; {held}"
    assert signal.getsignal(number) is before


def test_settings() -> None:
    found = resolve("runs/a", ["serve.port=5", "serve.state_bytes=7"], host="::1")
    assert (found.host, found.port, found.state_bytes, found.store) == ("::1", 5, 7, "runs/a/serve/events.sqlite")
    assert resolve("runs/a", ["serve.port=5"], port=6, with_log=True).port == 6
    assert resolve("runs/a", ["serve.store=/x/y.sqlite"]).store == "/x/y.sqlite"
    for override, told in (
        ("serve.prot=5", "serve.prot: unknown key .* did you mean 'port'"),
        ("serve.port=70000", "serve.port"),
        ("serve.workers=0", "serve.workers"),
        ("port=5", "port: unknown key"),
    ):
        with pytest.raises(ConfigError, match=told):
            resolve("runs/a", [override])


def test_what_cannot_be_served(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = f"serve.store={tmp_path / 'e.sqlite'}"
    (tmp_path / "text.sqlite").write_text("x" * 1000)
    with serving(run, [store]) as url:
        taken = url.rpartition(":")[2]
        for words, told in (
            ([str(tmp_path)], "config.json: not there"),
            ([str(run), store, "--port", taken], f"serve.port: {taken} on 127.0.0.1"),
            ([str(run), store, "--host", "no.such.host.invalid", "--port", "0"], "serve.host: 'no.such.host.invalid'"),
            ([str(run), f"serve.store={tmp_path / 'text.sqlite'}", "--port", "0"], "serve.store:"),
            ([str(run), store, "--port", "0", "--with-log"], "no run folder (it holds no config.yaml)"),
        ):
            assert main(["serve", *words]) == 2
            assert told in capsys.readouterr().err


@pytest.mark.parametrize("package", ["uvicorn", "fastapi"])
def test_a_missing_package_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"serve: {package} is not installed; pip install 'recgpt\[serve\]'"):  # noqa: SIM117
        with serving(run, [f"serve.store={tmp_path / 'e.sqlite'}"]):
            pass


def test_users_of_the_log_begin_with_it_if_asked(tmp_path: Path) -> None:
    """A pretrained run; what is served equals what the command line says of the same user."""
    small = {"dim": 16, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}}
    config = {
        "data": write_log(tmp_path / "log", [3, 30, 8]),
        "model": small,
        "run": {"steps": 2, "dir": str(tmp_path / "run")},
    }
    load_stage("pretrain")(config)
    store = f"serve.store={tmp_path / 'e.sqlite'}"
    expected = recommend_user(tmp_path / "run", "user 1", 5)
    with serving(tmp_path / "run", [store, "serve.with_log=true"]) as url:
        asked = {"user": "user 1", "k": 5}
        assert httpx.post(f"{url}/v1/recommend", json=asked).json() == expected
        assert httpx.post(f"{url}/v1/recommend", json={"user": "user 9"}).json()["state"]["events"] == 0
        httpx.post(f"{url}/v1/events", json={"events": [event("user 1", 3, 1_700_000_000)]})
        assert httpx.post(f"{url}/v1/recommend", json=asked).json()["state"] == {
            "events": 31,
            "last_time": 1_700_000_000_000_000,
            "source": "append",
        }
        ranks = httpx.post(f"{url}/v1/rank", json={"user": "user 1", "items": [1]})
        assert (ranks.status_code, ranks.json()["error"]["code"]) == (404, "no_ranking_heads")
    # By default the log is not read, and so need not be there.
    (tmp_path / "log").rename(tmp_path / "gone")
    (tmp_path / "run").rename(tmp_path / "moved")
    with serving(tmp_path / "moved", [store]) as url:
        assert httpx.post(f"{url}/v1/recommend", json={"user": "user 1"}).json()["state"]["events"] == 1
        assert json.loads(httpx.get(f"{url}/readyz").text)["ranks"] is False
