"""What /metrics counts, in a registry of the service's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .states import StateCache

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Prometheus counters of one service."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "recgpt_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "recgpt_request_seconds", "Wall time of requests.", ["route"], buckets=SECONDS, registry=registry
        )
        self.states = Counter("recgpt_states", "States by where they came from.", ["source"], registry=registry)
        self.stored = Counter("recgpt_events_stored", "Events kept since the start.", registry=registry)
        self.duplicates = Counter("recgpt_events_duplicate", "Events that were there already.", registry=registry)
        self.cache_bytes = Gauge("recgpt_state_cache_bytes", "Memory of the kept states.", registry=registry)
        self.cache_states = Gauge("recgpt_state_cache_states", "Kept states.", registry=registry)

    def watch(self, cache: StateCache) -> None:
        """Read the cache's gauges whenever someone asks."""
        self.cache_bytes.set_function(lambda: cache.size)
        self.cache_states.set_function(lambda: len(cache))

    def state(self, source: str) -> None:
        """Count one state."""
        self.states.labels(source).inc()

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
