"""The simulated world: what users like, what the policy shows, what happens then.

One event is one exposure. Before it the policy's latent state of a user holds

- ``preference`` p [K]: the mood of the session (one of the user's few interests, which drift from
  session to session) plus a running mean of the latent vectors of the items clicked so far;
- open series: at most ``open_series`` next parts, each opened by a click on the part before it. A
  like opens it with more weight, age takes weight away, in the session that opened it it weighs
  only ``same_session`` of that; being shown closes it.

The policy continues an open series with probability ``c = continue_rate * (1 - exp(-sum w))`` and
else draws from all items::

    P(j) = (1 - c) softmax_j(log popularity_j + affinity_scale p.z_j - repeat_penalty [seen])
           + c sum_{open parts = j} w / sum w

Outcomes follow with known probability: click = sigmoid(appeal), appeal being linear in p.z and in
what the session's device adds, and higher for a continued series; like only after a click; seconds
watched with a known mean. So order, outcomes, context, gaps and content all carry information.

The generator is numpy's PCG64 and every random number is drawn before the simulation starts, so a
log does not depend on how the users are cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recgpt.config import Section
from recgpt.data.catalogue import Catalogue
from recgpt.errors import ConfigError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

DEVICES = ("phone", "tablet", "tv")
START_MS = 1_767_225_600_000  # 2026-01-01 UTC
_CHUNK = 256
_DAY_MS = 86_400_000


class SimulatorConfig(Section):
    """The constants of the simulated world."""

    n_users: int = Field(6_000, ge=1)
    """Users."""
    n_items: int = Field(1_000, ge=20)
    """Items."""
    min_events: int = Field(60, ge=3)
    """The shortest history."""
    max_events: int = Field(100, ge=3)
    """The longest history; lengths are uniform between the two."""
    n_categories: int = Field(25, ge=1)
    """Item categories."""
    series_length: int = Field(16, ge=2)
    """Parts in a series; the last series of a category may be shorter."""
    latent_dim: int = Field(16, ge=2)
    """K, the dimension of interests and items."""
    content_dim: int = Field(32, ge=2)
    """The dimension of the content vectors."""
    content_noise: float = Field(0.15, ge=0)
    """Noise beside the signal in a content vector."""
    popularity_scale: float = Field(2.1, ge=0)
    """Standard deviation of an item's log popularity."""
    affinity_scale: float = Field(7.5, ge=0)
    """How much the policy follows the preference."""
    mood_weight: float = Field(0.3, ge=0)
    """What the mood of the session adds to the preference."""
    clicked_weight: float = Field(1.1, ge=0)
    """What the running mean of clicked items adds to it."""
    like_weight: float = Field(3.0, ge=1)
    """The weight of a series opened by a like; a mere click opens it with 1."""
    n_interests: int = Field(3, ge=1)
    """Interests of a user; a session has one of them as its mood."""
    drift: float = Field(0.1, ge=0)
    """Change of every interest from one session to the next."""
    memory: float = Field(0.9, ge=0, lt=1)
    """What the running mean of clicked items keeps at a click."""
    repeat_penalty: float = Field(6.0, ge=0)
    """Log probability taken from an item that the user has seen."""
    continue_rate: float = Field(0.85, ge=0, lt=1)
    """The largest probability of continuing a series."""
    open_series: int = Field(4, ge=1)
    """Series that a user may have open."""
    series_decay: float = Field(0.97, gt=0, le=1)
    """What an open series keeps of its weight at each event."""
    same_session: float = Field(0.65, gt=0, le=1)
    """What a series weighs in the session that opened it, beside later ones."""
    session_events: float = Field(7.0, gt=1)
    """Mean events in a session."""
    seed: int = Field(0, ge=0)
    """Seed of everything."""

    @classmethod
    def preset(cls, size: Literal["tiny", "small"], seed: int = 0) -> Self:
        """``tiny``: 300 users and 200 items. ``small``: the defaults, about 480,000 events."""
        if size == "small":
            return cls(seed=seed)
        if size == "tiny":
            return cls(n_users=300, n_items=200, n_categories=10, min_events=20, max_events=40, seed=seed)
        raise ConfigError(f"size: {size!r} is unknown; choose tiny or small")


@dataclass(frozen=True)
class State:
    """The latent state of B users before an event.

    preference: float32 [B, K].
    open_item: int64 [B, S], the row of the next part of an open series, -1 = free.
    open_weight: float32 [B, S], 0 where free.
    """

    preference: Floats
    open_item: Ints
    open_weight: Floats

    def take(self, rows: Any) -> State:
        """The state of some of the users."""
        return State(self.preference[rows], self.open_item[rows], self.open_weight[rows])


@dataclass(frozen=True)
class Log:
    """The events, user by user in order; N events, all arrays [N]."""

    user: Ints
    item: Ints
    time_ms: Ints
    device: Ints
    click: Floats
    like: Floats
    watch_seconds: Floats
    p_exposure: Floats
    p_click: Floats
    p_like: Floats
    mean_watch_seconds: Floats


def base_logits(config: SimulatorConfig, catalogue: Catalogue, preference: Floats, seen: Any) -> Floats:
    """Log probabilities up to a constant where no series is continued, float32 [B, I]."""
    logits = preference @ (config.affinity_scale * catalogue.latent).T
    logits += catalogue.log_popularity
    logits -= np.float32(config.repeat_penalty) * seen
    return logits


def continue_probability(config: SimulatorConfig, open_weight: Floats) -> Floats:
    """The probability of continuing a series, float32 [B]."""
    return np.float32(config.continue_rate) * (1 - np.exp(-open_weight.sum(axis=1)))


class World:
    """A chunk of users, advanced by one event at a time."""

    def __init__(self, config: SimulatorConfig, catalogue: Catalogue, interests: Floats) -> None:
        n_users = len(interests)
        self.config, self.catalogue, self.interests = config, catalogue, interests
        self.everyone = np.arange(n_users)
        self.mood = np.zeros(n_users, dtype=np.int64)
        self.device = np.zeros(n_users, dtype=np.int64)
        self.clicked = np.zeros((n_users, config.latent_dim), dtype=np.float32)
        self.seen = np.zeros((n_users, config.n_items), dtype=np.float32)
        self.open_item = np.full((n_users, config.open_series), -1, dtype=np.int64)
        self.open_weight = np.zeros((n_users, config.open_series), dtype=np.float32)
        self.opened_now = np.zeros((n_users, config.open_series), dtype=bool)

    def start_sessions(self, users: NDArray[np.bool_], draw: dict[str, Any]) -> None:
        """Give these users a new mood and device, and let their interests drift."""
        drifted = self.interests + np.float32(self.config.drift) * draw["drift"][:, None, :]
        drifted /= np.linalg.norm(drifted, axis=-1, keepdims=True)
        self.interests[users] = drifted[users]
        self.mood[users] = (draw["mood"] * self.config.n_interests).astype(np.int64)[users]
        self.device[users] = draw["device"][users]
        waiting = self.opened_now & users[:, None]
        self.open_weight[waiting] /= np.float32(self.config.same_session)
        self.opened_now[waiting] = False

    def state(self) -> State:
        """The latent state before the next event."""
        config = self.config
        preference = np.float32(config.mood_weight) * self.interests[self.everyone, self.mood]
        preference += np.float32(config.clicked_weight) * self.clicked
        return State(preference, self.open_item.copy(), self.open_weight.copy())

    def expose(self, state: State, draw: dict[str, Any]) -> tuple[Ints, NDArray[np.bool_], Floats]:
        """Draw an item for every user: its row, whether it continues a series, P(item)."""
        config, users = self.config, self.everyone
        mass = base_logits(config, self.catalogue, state.preference, self.seen)
        mass -= mass.max(axis=1, keepdims=True)
        np.exp(mass, out=mass)
        below = np.cumsum(mass, axis=1)
        total = below[:, -1]
        item = np.count_nonzero(below < (draw["item"] * total)[:, None], axis=1)
        item = np.minimum(item, config.n_items - 1)
        rate = continue_probability(config, state.open_weight)
        goes_on = draw["continue"] < rate
        open_below = np.cumsum(state.open_weight, axis=1)
        slot = np.count_nonzero(open_below <= (draw["slot"] * open_below[:, -1])[:, None], axis=1)
        slot = np.minimum(slot, config.open_series - 1)
        # Rounding may point at a free slot: such a user draws from all items instead.
        goes_on &= state.open_item[users, slot] >= 0
        item = np.where(goes_on, state.open_item[users, slot], item)
        share = (state.open_weight * (state.open_item == item[:, None])).sum(axis=1)
        share /= np.maximum(open_below[:, -1], np.float32(1e-30))
        return item, goes_on, (1 - rate) * mass[users, item] / total + rate * share

    def react(self, state: State, item: Ints, goes_on: Any, draw: dict[str, Any]) -> dict[str, Any]:
        """Draw the outcomes, with their probabilities."""
        affinity = np.einsum("bk,bk->b", state.preference, self.catalogue.latent[item])
        appeal = 6.0 * affinity - 2.2 + 1.5 * goes_on + np.array([0.2, 0.0, -0.4])[self.device]
        p_click = 1 / (1 + np.exp(-appeal))
        click = draw["click"] < p_click
        p_like = p_click / (1 + np.exp(2.5 - 1.5 * affinity))
        like = click & (draw["like"] * p_click < p_like)
        kept = np.where(click, 0.6, 0.05) * self.catalogue.seconds[item]
        mean = (0.6 * p_click + 0.05 * (1 - p_click)) * self.catalogue.seconds[item]
        # exp(s n - s^2 / 2) has mean 1.
        watch = kept * np.exp(0.4 * draw["watch"] - 0.08)
        return {
            "click": click, "like": like, "watch_seconds": watch,
            "p_click": p_click, "p_like": p_like, "mean_watch_seconds": mean,
        }  # fmt: skip

    def learn(self, item: Ints, click: Any, like: Any) -> None:
        """Move the state past the event."""
        users, config = self.everyone, self.config
        self.seen[users, item] = 1
        latent = self.catalogue.latent[item]
        kept = np.float32(config.memory)
        self.clicked = np.where(click[:, None], kept * self.clicked + (1 - kept) * latent, self.clicked)
        self.open_weight *= np.float32(config.series_decay)
        shown = self.open_item == item[:, None]
        self.open_item[shown], self.open_weight[shown] = -1, 0
        following = self.catalogue.successor[item]
        opens = click & (following >= 0)
        opens &= self.seen[users, np.maximum(following, 0)] == 0
        opens &= ~(self.open_item == following[:, None]).any(axis=1)
        slot = (self.open_item >= 0).argmin(axis=1)
        full = (self.open_item >= 0).all(axis=1)
        slot = np.where(full, self.open_weight.argmin(axis=1), slot)
        place = users[opens], slot[opens]
        self.open_item[place] = following[opens]
        self.open_weight[place] = config.same_session * np.where(like, config.like_weight, 1)[opens]
        self.opened_now[place] = True


def _draws(config: SimulatorConfig, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Every random number of every user's events, [U, T] each ("drift": [U, T, K])."""
    shape = (config.n_users, config.max_events)
    uniform = ("session", "mood", "item", "continue", "slot", "click", "like")
    draws: dict[str, NDArray[Any]] = {name: rng.random(shape) for name in uniform}
    draws["device"] = _devices(rng, shape)
    draws["watch"] = rng.standard_normal(shape)
    draws["gap"] = rng.standard_normal(shape)
    draws["drift"] = rng.standard_normal((*shape, config.latent_dim), dtype=np.float32)
    draws["drift"] /= np.float32(config.latent_dim**0.5)
    return draws


def _devices(rng: np.random.Generator, shape: tuple[int, int]) -> Ints:
    """A device for each event, drawn from each user's own habits."""
    habit = np.cumsum(rng.dirichlet((1.0, 0.4, 0.6), size=shape[0]), axis=1)
    return np.count_nonzero(rng.random(shape)[..., None] > habit[:, None, :-1], axis=-1)


def _times(new_session: NDArray[np.bool_], draws: dict[str, NDArray[Any]], start: Ints) -> NDArray[np.int64]:
    """Milliseconds [U, T]: about a minute between events, about a day between sessions."""
    minutes = np.where(new_session, np.exp(6.8 + 0.7 * draws["gap"]), np.exp(0.3 + 0.8 * draws["gap"]))
    gap = np.maximum(1_000, np.round(minutes * 60_000)).astype(np.int64)
    gap[:, 0] = 0
    return START_MS + start[:, None] + np.cumsum(gap, axis=1)


def _simulate_chunk(
    world: World, draws: dict[str, NDArray[Any]], new_session: NDArray[np.bool_], n_steps: int
) -> tuple[dict[str, list[NDArray[Any]]], list[State]]:
    """Advance a chunk by ``n_steps`` events: columns as lists over steps, and the states."""
    columns: dict[str, list[NDArray[Any]]] = {}
    states = []
    for step in range(n_steps):
        draw = {name: values[:, step] for name, values in draws.items()}
        world.start_sessions(new_session[:, step], draw)
        state = world.state()
        item, goes_on, p_exposure = world.expose(state, draw)
        event = world.react(state, item, goes_on, draw)
        event |= {"item": item, "device": world.device.copy(), "p_exposure": p_exposure}
        for name, values in event.items():
            columns.setdefault(name, []).append(values)
        states.append(state)
        world.learn(item, event["click"], event["like"])
    return columns, states


def _stack_states(states: Sequence[State]) -> State:
    return State(*(np.stack([getattr(s, f.name) for s in states], 1) for f in fields(State)))


def _join_states(states: Sequence[State]) -> State:
    return State(*(np.concatenate([getattr(s, f.name) for s in states]) for f in fields(State)))


def generate(config: SimulatorConfig, catalogue: Catalogue) -> tuple[Log, State, State]:
    """The log and the states before each user's second last and last event."""
    rng = np.random.Generator(np.random.PCG64([config.seed, 1]))
    n_users, top = config.n_users, config.max_events
    length = rng.integers(config.min_events, top + 1, n_users)
    start = rng.integers(0, 30 * _DAY_MS, n_users)
    interests = rng.standard_normal((n_users, config.n_interests, config.latent_dim))
    interests /= np.linalg.norm(interests, axis=-1, keepdims=True)
    draws = _draws(config, rng)
    new_session = draws["session"] < 1 / config.session_events
    new_session[:, 0] = True
    times = _times(new_session, draws, start)
    # Users of like lengths share a chunk, so that few steps are simulated in vain.
    order = np.argsort(-length, kind="stable")
    columns: dict[str, list[NDArray[Any]]] = {}
    last: list[list[State]] = [[], []]
    for low in range(0, n_users, _CHUNK):
        users = order[low : low + _CHUNK]
        world = World(config, catalogue, interests[users].astype(np.float32))
        mine = {name: values[users] for name, values in draws.items()}
        steps = int(length[users].max())
        done, states = _simulate_chunk(world, mine, new_session[users], steps)
        for name, values in done.items():
            padded = np.zeros((len(users), top), dtype=values[0].dtype)
            padded[:, :steps] = np.stack(values, axis=1)
            columns.setdefault(name, []).append(padded)
        stacked, row = _stack_states(states), np.arange(len(users))
        for back in (2, 1):
            last[2 - back].append(stacked.take((row, length[users] - back)))
    place = np.argsort(order)
    real = np.arange(top) < length[:, None]
    flat = {name: np.concatenate(parts)[place][real] for name, parts in columns.items()}
    floats = {f.name for f in fields(Log)} - {"user", "item", "time_ms", "device"}
    log = Log(
        user=np.repeat(np.arange(n_users), length),
        item=flat["item"].astype(np.int64),
        time_ms=times[real],
        device=flat["device"].astype(np.int64),
        **{name: flat[name].astype(np.float32) for name in floats},
    )
    valid, test = (_join_states(states).take(place) for states in last)
    return log, valid, test
