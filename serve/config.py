"""The settings of a service."""

from __future__ import annotations

from pydantic import Field

from recgpt.config import Section

MIB = 1 << 20


class ServeSection(Section):
    """One service over one run."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 = every interface."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; 0 = a free one, which the first lines name."""
    store: str | None = None
    """The SQLite file of the posted events; null = serve/events.sqlite in the run's folder."""
    with_log: bool = False
    """Whether users of the run's own prepared log begin with their events there, and their profile; false: what is
    served is what was posted. An event that is in the log and posted too counts twice."""
    token_variable: str = "RECGPT_TOKEN"
    """The environment variable whose value, if it has one, every request under /v1 and of /metrics must bring as
    `Authorization: Bearer VALUE`."""
    state_bytes: int = Field(default=512 * MIB, ge=0)
    """Memory of the kept user states; the least recently used go first."""
    workers: int = Field(default=2, ge=1)
    """Requests that are computed at the same time."""
    waiting: int = Field(default=128, ge=0)
    """Requests that may wait for a worker; further ones are answered 429."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch; null = torch's own choice."""
    max_body_bytes: int = Field(default=4 * MIB, ge=1)
    """The largest request body."""
    body_seconds: float = Field(default=30, gt=0)
    """How long a request body may take to arrive."""
    max_events: int = Field(default=10_000, ge=1)
    """Events of one POST /v1/events."""
    max_history: int = Field(default=10_000, ge=1)
    """Events of a request's own `history`."""
    max_candidates: int = Field(default=10_000, ge=1)
    """Ids in `candidates` or `items`."""
    max_k: int = Field(default=1_000, ge=1)
    """The largest `k`."""


class ServeConfig(Section):
    """What `serve.key=value` replaces."""

    serve: ServeSection = ServeSection()
    """The service."""
