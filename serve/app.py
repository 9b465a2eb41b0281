"""The service over HTTP: routes, bodies within limits, errors as one shape, metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from recgpt import __version__

from . import bodies
from .metrics import Metrics
from .problems import Refused
from .service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

logger = logging.getLogger(__name__)

PROTECTED = ("/v1/", "/metrics")
"""What asks for the token; health and docs do not."""


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        service: answers the bodies.
        token: what requests under /v1 and of /metrics must bring as `Authorization: Bearer TOKEN`; None = nothing.
    """
    from fastapi import FastAPI

    app = FastAPI(
        title="recgpt", version=__version__, redoc_url=None, redirect_slashes=False, description=_ABOUT
    )  # fmt: skip
    routes = _Routes(service)
    for path, call, name, request, answer in (
        ("/v1/events", service.events, "Keep events", bodies.EventsBody, bodies.EventsAnswer),
        ("/v1/recommend", service.recommend, "The best items", bodies.RecommendBody, bodies.RecommendAnswer),
        ("/v1/rank", service.rank, "Outcomes of given items", bodies.RankBody, bodies.RankAnswer),
    ):
        app.add_api_route(
            path,
            _endpoint(routes.posted(call)),
            methods=["POST"],
            name=path.rpartition("/")[2],
            summary=name,
            responses=_responses(answer, 400, 401, 413, 422, 429, 503),
            openapi_extra={"requestBody": {"required": True, "content": _json_schema(request.__name__)}},
        )
    app.add_api_route(
        "/v1/users/{user:path}/embedding",
        _endpoint(routes.embedding),
        methods=["GET"],
        summary="A user's vector",
        responses=_responses(bodies.EmbeddingAnswer, 401, 404, 422, 429, 503),
        openapi_extra={"parameters": [{"name": "user", "in": "path", "required": True, "schema": {"type": "string"}}]},
    )
    # An id may hold anything: `path` lets slashes through, but no line ends.
    route: Any = app.router.routes[-1]
    route.path_regex = re.compile("/v1/users/(?P<user>.*)/embedding\\Z", re.DOTALL)
    app.add_api_route("/healthz", _endpoint(routes.alive), methods=["GET"], summary="Whether the process answers")
    app.add_api_route(
        "/readyz",
        _endpoint(routes.ready),
        methods=["GET"],
        summary="Whether requests can be answered",
        responses=_errors(503),
    )
    app.add_api_route("/metrics", _endpoint(routes.metrics), methods=["GET"], summary="Prometheus counters")
    for status in _CODES:
        app.add_exception_handler(status, _no_route)
    app.add_middleware(_Outside, metrics=service.metrics, token=token)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


class Answer(NamedTuple):
    """What goes back."""

    content: bytes
    status: int = 200
    headers: Mapping[str, str] = {}
    media_type: str = "application/json"

    def response(self) -> Response:
        """As FastAPI sends it."""
        from fastapi import Response

        return Response(self.content, self.status, self.headers, self.media_type)


Handler = Callable[..., Awaitable[Answer]]


def _endpoint(handle: Handler) -> Callable[..., Any]:
    """An endpoint as FastAPI reads it: by its annotations, here of classes that are imported late."""
    from fastapi import Request, Response

    async def endpoint(request: Any) -> Any:
        return (await handle(request)).response()

    endpoint.__annotations__ = {"request": Request, "return": Response}
    return endpoint


class _Routes:
    """The endpoints: read the body, compute in a worker thread, answer."""

    def __init__(self, service: Service) -> None:
        self.service, self.settings = service, service.settings
        self.workers = ThreadPoolExecutor(self.settings.workers, "recgpt-worker")
        self.probe = ThreadPoolExecutor(1, "recgpt-probe")
        self.pending = 0

    def posted(self, call: Callable[[dict[str, Any]], dict[str, Any]]) -> Handler:
        """The endpoint of a call that takes a body."""

        async def handle(request: Request) -> Answer:
            try:
                data = await self._body(request)
            except Refused as problem:
                return _answer(problem.body, problem.status)
            return await self._computed(lambda: call(bodies.parse(data)))

        return handle

    async def embedding(self, request: Request) -> Answer:
        user: str = request.path_params["user"]
        return await self._computed(lambda: self.service.embedding(user))

    async def alive(self, request: Request) -> Answer:
        return _answer({"status": "ok"})

    async def ready(self, request: Request) -> Answer:
        return await _in_thread(self.probe, self._ready)

    def _ready(self) -> dict[str, Any]:
        self.service.store.check_writable()
        return {"status": "ready", "model": self.service.model.fingerprint, "ranks": self.service.ranker is not None}

    async def metrics(self, request: Request) -> Answer:
        return Answer(self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _body(self, request: Request) -> bytes:
        """The request's bytes, refused as soon as they are too many."""
        most = self.settings.max_body_bytes
        coding, length = request.headers.get("content-encoding", ""), request.headers.get("content-length", "")
        if coding.strip().lower() not in ("", "identity"):
            raise Refused(400, "not_json", "the body is compressed; send plain JSON", "content-encoding")
        too_large = Refused(413, "too_large", f"the body is larger than {most:,} bytes; send less at once")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        data, more = bytearray(), True
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "not_json", "the body ended early")
                    data += message.get("body", b"")
                    if len(data) > most:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            problem = f"the body did not arrive within {self.settings.body_seconds:g} s"
            raise Refused(408, "too_slow", problem) from None
        return bytes(data)

    async def _computed(self, call: Callable[[], dict[str, Any]]) -> Answer:
        """What a worker thread answers; 429 where too many wait for one."""
        if self.pending >= self.settings.workers + self.settings.waiting:
            problem = Refused(429, "busy", f"{self.pending} requests are being computed or wait; try again in a second")
            return _answer(problem.body, problem.status, {"Retry-After": "1"})
        self.pending += 1
        try:
            return await _in_thread(self.workers, call)
        finally:
            self.pending -= 1


async def _in_thread(threads: Executor, call: Callable[[], dict[str, Any]]) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(threads, _guarded, call)


def _guarded(call: Callable[[], dict[str, Any]]) -> Answer:
    """The answer of a call, or the error that stands for what it raised."""
    try:
        return _answer(call())
    except Refused as refused:
        problem = refused
    except sqlite3.Error as error:
        logger.exception("store: %s", error)
        problem = Refused(503, "unavailable", f"the event store cannot be used now ({error}); try again later")
    except Exception as error:
        logger.exception("request: %s", error)
        problem = Refused(500, "internal", "this request met a fault of the service; its log has the traceback")
    return _answer(problem.body, problem.status)


def _answer(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Answer(text.encode(), status, headers or {})


_CODES = {404: "not_found", 405: "method_not_allowed"}


async def _no_route(request: Request, error: Exception) -> Response:
    """What routing refuses, in the shape of all errors."""
    status, headers = getattr(error, "status_code", 404), dict(getattr(error, "headers", None) or {})
    says = "no such path; /docs lists them" if status == 404 else f"this path takes {headers.get('Allow')}"
    return _answer(Refused(status, _CODES[status], says).body, status, headers).response()


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Outside:
    """Asks for the token, counts and times every request."""

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], metrics: Metrics, token: str | None
    ) -> None:
        self.app, self.metrics = app, metrics
        self.expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._allowed(scope):
                await self.app(scope, receive, noted)
            else:
                problem = Refused(401, "unauthorized", "give the service's token as `Authorization: Bearer TOKEN`")
                answer = _answer(problem.body, 401, {"WWW-Authenticate": "Bearer"})
                await answer.response()(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _allowed(self, scope: Message) -> bool:
        if self.expected is None or not scope["path"].startswith(PROTECTED):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)


# -- /docs -------------------------------------------------------------------------------------------------------------

_ABOUT = """Events of users come in, recommendations and ranks go out; the expensive part, a user's state, is computed
once and kept. Times are integers in the log's unit, or ISO text. Errors: `{"error": {code, field, message}}`."""
_REQUESTS = (bodies.EventsBody, bodies.RecommendBody, bodies.RankBody, bodies.ErrorAnswer)
_REF = "#/components/schemas/{model}"


def _json_schema(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "Refused", "content": _json_schema("ErrorAnswer")} for status in statuses}


def _responses(answer: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": answer}, **_errors(*statuses)}


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the interface, the request bodies' schemas included."""
    from fastapi.openapi.utils import get_openapi

    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, schemas = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_REF)
        parts = described.setdefault("components", {})
        parts.setdefault("schemas", {}).update(schemas["$defs"])
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{}, {"token": []}]
        app.openapi_schema = described
    return app.openapi_schema
