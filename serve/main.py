"""`recgpt serve RUN`: open a finished run and its event store, answer over HTTP until stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from recgpt.config import flatten, load_config
from recgpt.errors import ConfigError, RecGPTError, Stopped

from .config import ServeConfig, ServeSection

if TYPE_CHECKING:
    from .service import Service

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def resolve(
    folder: str | Path,
    overrides: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    with_log: bool | None = None,
) -> ServeSection:
    """The settings with what the command line gave, and the store's place, filled in."""
    settings = load_config(ServeConfig, {}, overrides).serve
    given = {"host": host, "port": port, "with_log": with_log, "store": settings.store}
    given["store"] = given["store"] or str(Path(folder) / "serve" / "events.sqlite")
    values = settings.model_dump() | {name: value for name, value in given.items() if value is not None}
    return load_config(ServeConfig, {"serve": values}).serve


def run(
    config: str | Path,
    overrides: Sequence[str] = (),
    host: str | None = None,
    port: int | None = None,
    with_log: bool | None = None,
) -> None:
    """Serve a finished run until SIGINT or SIGTERM; requests that have begun are answered first.

    Args:
        config: the run's folder.
        overrides: `serve.key=value` strings.
        host: in the place of `serve.host`.
        port: in the place of `serve.port`.
        with_log: in the place of `serve.with_log`.

    Raises:
        ConfigError: no finished run, a wrong setting, a store that cannot be used, a port that is taken.
        Stopped: at the end, with exit code 130 or 143.
    """
    settings = resolve(config, overrides, host, port, with_log)
    token = os.environ.get(settings.token_variable) or None
    with bound(settings) as listener, opened(config, settings) as service:
        for key, value in flatten({"serve": settings.model_dump()}).items():
            logger.info("%s: %s", key, "null" if value is None else value)
        for line in _told(service, settings, token):
            logger.info(line)
        server = _server(service, token)
        logger.info("serving %s; Ctrl-C stops", _url(listener))
        stopped_by = _serve(server, listener)
        events, users = service.store.counts()
    raise Stopped(
        f"stopped by {signal.Signals(stopped_by).name}; {settings.store} holds {events:,} events of {users:,} users",
        128 + stopped_by,
    )


@contextlib.contextmanager
def opened(folder: str | Path, settings: ServeSection) -> Iterator[Service]:
    """The service of a run folder; its store is closed at the end.

    Raises:
        ConfigError: no finished run, a log that is gone (with_log), a store that cannot be used, packages missing.
    """
    try:
        from .logged import LoggedUsers
        from .service import Service
        from .store import EventStore
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    import torch

    from recgpt.api import RecGPT

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    ranker = _ranker(folder)
    model = RecGPT.from_pretrained(folder) if ranker is None else ranker.recgpt
    logged = LoggedUsers.open(Path(folder)) if settings.with_log else None
    store = EventStore(str(settings.store))
    try:
        service = Service(model, store, settings, ranker, logged)
        service.warm()
        yield service
    finally:
        store.close()


@contextlib.contextmanager
def serving(folder: str | Path, overrides: Sequence[str] = (), token: str | None = None) -> Iterator[str]:
    """Serve a run from a thread of this process, on a free port unless `serve.port` is given; yields the URL."""
    settings = resolve(folder, ["serve.port=0", *overrides])
    with bound(settings) as listener, opened(folder, settings) as service:
        server = _server(service, token)
        listener.listen()
        thread = threading.Thread(target=_serve, args=(server, listener), name="recgpt-serve", daemon=True)
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _ranker(folder: str | Path) -> Any:
    """The run's ranking heads, None where it has none."""
    from recgpt.ranker import Ranker, is_ranker

    return Ranker.from_pretrained(folder) if is_ranker(folder) else None


def _missing(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(f"serve: {error.name} is not installed; pip install 'recgpt[serve]'")


def _told(service: Service, settings: ServeSection, token: str | None) -> Iterator[str]:
    """What a person should know when the service starts."""
    events, users = service.store.counts()
    begin = (
        "begin with their events there" if settings.with_log else "begin empty (--with-log: with their events there)"
    )
    yield f"store: {settings.store} holds {events:,} events of {users:,} users; users of the training log {begin}"
    if service.ranker is None:
        yield "this run has no ranking heads: /v1/rank answers 404 (`recgpt finetune` makes them)"
    if token is not None:
        yield f"requests must bring `Authorization: Bearer TOKEN` with the value of {settings.token_variable}"
    elif settings.host not in LOOPBACK:
        yield f"anyone who reaches {settings.host} may read and write: no token is set in {settings.token_variable}"


@contextlib.contextmanager
def bound(settings: ServeSection) -> Iterator[socket.socket]:
    """A socket that holds the settings' address; it listens once the server does.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"serve.host: {settings.host!r}: {error}; name an address of this machine") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"serve.port: {settings.port} on {settings.host}: {error.strerror}; choose another --port or --host"
            ) from error
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(service: Service, token: str | None) -> Any:
    """A uvicorn server whose signals end it without killing the process."""
    try:
        import uvicorn

        from .app import create_app

        app = create_app(service, token)
    except ModuleNotFoundError as error:
        raise _missing(error) from error

    class Server(uvicorn.Server):
        stopped_by = 0

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.stopped_by, self.should_exit = self.stopped_by or sig, True

    config = uvicorn.Config(
        app,
        http="h11",  # the one that is always there; it bounds the size of headers
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    return Server(config)


def _serve(server: Any, listener: socket.socket) -> int:
    """Run the server until it is stopped; returns the signal that did it, 0 = none."""
    try:
        server.run(sockets=[listener])
    except SystemExit as error:  # uvicorn's way of saying that it could not start
        raise RecGPTError("serve: uvicorn could not start; its lines above say why") from error
    return server.stopped_by
