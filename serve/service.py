"""What the service answers, without HTTP: parsed bodies in, answers out. Thread-safe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recgpt import answers
from recgpt.api import RecGPT
from recgpt.data.schema import DataSchema
from recgpt.errors import ConfigError

from .bodies import EventsBody, RankBody, RecommendBody, UserBody, check_id, read
from .config import ServeSection
from .metrics import Metrics
from .problems import Refused, refuse
from .reading import read_event, read_history, read_time, read_values, to_events
from .states import Logged, Served, UserStates
from .store import EventStore

if TYPE_CHECKING:
    from recgpt.ranker import Ranker


class Service:
    """One run over one store.

    Args:
        model: of the run.
        store: the posted events.
        settings: limits and budgets.
        ranker: its ranking heads, if it has any.
        logged: where users begin, if not with nothing.
    """

    def __init__(
        self,
        model: RecGPT,
        store: EventStore,
        settings: ServeSection,
        ranker: Ranker | None = None,
        logged: Logged | None = None,
    ) -> None:
        self.model, self.store, self.settings, self.ranker = model, store, settings, ranker
        self.metrics = Metrics()
        self.states = UserStates(model, store, settings.state_bytes, logged, self.metrics.state)
        self.metrics.watch(self.states.cache)

    @property
    def schema(self) -> DataSchema:
        """The log's columns."""
        return self.model.schema

    def warm(self) -> None:
        """Compute what every request shares: the fingerprint and every item's vector."""
        answers.recommend_answer(self.model, self.states.empty, "empty", 1)

    def events(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/events."""
        posted = read(EventsBody, body, {"events": self.settings.max_events})
        events = [read_event(each, self.schema, f"events[{i}]") for i, each in enumerate(posted.events)]
        accepted, duplicates = self.store.add(events) if events else (0, 0)
        self.metrics.stored.inc(accepted)
        self.metrics.duplicates.inc(duplicates)
        return {"accepted": accepted, "duplicates": duplicates}

    def recommend(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/recommend."""
        limits = {"history": self.settings.max_history, "candidates": self.settings.max_candidates}
        asked = read(RecommendBody, body, limits)
        if asked.k > self.settings.max_k:
            refuse(
                "k", f"{asked.k if asked.k < 10**30 else 'too much'}; one request may ask for {self.settings.max_k:,}"
            )
        self._context(asked)
        want = read_values(asked.want, self.schema.outcomes, "want")
        if want and not self.model.config.condition:
            refuse("want", "this run cannot be asked for outcomes; leave it out, or train with model.condition: true")
        state, source = self._state(asked)
        return answers.recommend_answer(
            self.model, state, source, asked.k, asked.exclude_seen, asked.candidates, want=want
        )

    def rank(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/rank."""
        if self.ranker is None:
            raise Refused(404, "no_ranking_heads", "this run has no ranking heads; serve a run of `recgpt finetune`")
        limits = {"history": self.settings.max_history, "items": self.settings.max_candidates}
        asked = read(RankBody, body, limits)
        context = self._context(asked)
        state, source = self._state(asked)
        try:
            return answers.rank_answer(self.ranker, state, source, asked.items, context)
        except ConfigError as error:
            refuse("context", str(error))

    def embedding(self, user: str) -> dict[str, Any]:
        """GET /v1/users/{user}/embedding."""
        try:
            check_id(user)
        except ValueError as error:
            refuse("user", str(error))
        state, source = self.states.get(user)
        if source == "empty":
            raise Refused(404, "not_found", "no events of this user are known", "user")
        fields = {"embedding": state.embedding.tolist(), "state": answers.state_fields(state, source)}
        return {"user": user, **fields, "model": self.model.fingerprint}

    def _state(self, asked: UserBody) -> Served:
        if (asked.user is None) == (asked.history is None):
            both = "both user and history are given" if asked.user is not None else "missing"
            refuse("history" if asked.user is not None else "user", f"{both}; give user, or history in its place")
        if asked.history is None:
            if asked.profile:
                refuse("profile", "goes with history alone; a user's profile comes from the run's log")
            return self.states.get(str(asked.user))
        events = to_events(read_history(asked.history, self.schema), self.schema)
        profile = read_values(asked.profile, self.schema.profile, "profile")
        return self.states.inline(self.model.events(events, profile))

    def _context(self, asked: UserBody) -> dict[str, Any]:
        """The request's context as `Ranker.rank` takes it: by the log's names, its moment under the clock's."""
        clock = (self.schema.time or "time", "time") if self.schema.has_time else ()
        given = dict(asked.context)
        moments = {name: given.pop(name) for name in clock if name in given and name not in self.schema.context}
        for name, value in moments.items():
            if value is not None:
                read_time(value, self.schema.time_unit, f"context.{name}")
        kinds = dict(self.schema.context)
        return {**read_values(given, kinds, "context"), **moments}
