"""A log whose truth is known, for the quickstart and for tests.

`recgpt.data.world` tells what happens in it; this module writes it to a folder and answers as the
oracle: the best that any model can do under the same protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from recgpt.config import dump_config, load_config
from recgpt.data.catalogue import Catalogue, make_catalogue
from recgpt.data.world import (
    DEVICES,
    Floats,
    Ints,
    Log,
    SimulatorConfig,
    State,
    base_logits,
    continue_probability,
    generate,
)
from recgpt.errors import ConfigError, RecGPTError
from recgpt.files import atomic_dir, require_folder

__all__ = ["Simulation", "SimulatorConfig", "open_simulation", "simulate"]

_STATES = "truth/states.npz"
_OUTCOMES = ("click", "like", "watch_seconds")
_PROBABILITIES = ("p_exposure", "p_click", "p_like", "mean_watch_seconds")


class Simulation:
    """A simulated log and its truth.

    user_ids: [U] strings; row r of the truth is user_ids[r].
    item_ids: int64 [I]; column i of the oracle's scores is item_ids[i].
    """

    def __init__(self, config: SimulatorConfig, catalogue: Catalogue, log: Log, valid: State, test: State) -> None:
        self.config, self.catalogue, self.log = config, catalogue, log
        self.states = {"valid": valid, "test": test}
        self.user_ids = [f"user-{row:06d}" for row in range(config.n_users)]
        self.item_ids = catalogue.ids
        self._start = np.searchsorted(log.user, np.arange(config.n_users + 1))

    def user_rows(self, user_ids: Sequence[str]) -> Ints:
        """The rows of users, by id."""
        known = {user: row for row, user in enumerate(self.user_ids)}
        missing = [user for user in user_ids if user not in known]
        if missing:
            raise RecGPTError(
                f"user: {missing[0]!r} is not simulated; ids run from {self.user_ids[0]} to {self.user_ids[-1]}"
            )
        return np.array([known[user] for user in user_ids], dtype=np.int64)

    def oracle_scores(self, rows: Any, part: str) -> Floats:
        """The true log probability that each item is the event held out.

        Args:
            rows: int64 [B], users.
            part: ``test``, the last event of a user, or ``valid``, the one before.

        Returns:
            float32 [B, I] in the order of ``item_ids``; exp of a row sums to 1.
        """
        if part not in self.states:
            raise RecGPTError(f"part: {part!r} has no oracle; choose valid or test")
        rows = np.asarray(rows, dtype=np.int64)
        state = self.states[part].take(rows)
        seen = np.zeros((len(rows), self.config.n_items), dtype=np.float32)
        for place, row in enumerate(rows):
            end = self._start[row + 1] - (1 if part == "test" else 2)
            seen[place, self.log.item[self._start[row] : end]] = 1
        mass = base_logits(self.config, self.catalogue, state.preference, seen).astype(np.float64)
        mass = np.exp(mass - mass.max(axis=1, keepdims=True))
        mass /= mass.sum(axis=1, keepdims=True)
        rate = continue_probability(self.config, state.open_weight).astype(np.float64)
        mass *= (1 - rate)[:, None]
        user, slot = np.nonzero(state.open_item >= 0)
        share = state.open_weight / np.maximum(state.open_weight.sum(1, keepdims=True), 1e-30)
        np.add.at(mass, (user, state.open_item[user, slot]), (rate[:, None] * share)[user, slot])
        return np.log(mass).astype(np.float32)


def simulate(config: SimulatorConfig, out: str | Path) -> Simulation:
    """Generate a log and write it with its truth to the folder ``out``.

    The folder holds ``events.parquet`` (user, item, time in ms, device, click, like,
    watch_seconds), ``items.parquet`` (item, category, title, embedding), ``config.yaml`` and
    ``truth/``: ``outcomes.parquet`` (the policy's and the outcomes' probabilities, row by row
    beside events.parquet) and ``states.npz`` (the latent states that the oracle needs).

    Raises:
        ConfigError: min_events above max_events; ``out`` is a file, or a folder that holds something else.
        RecGPTError: the disk is full.
    """
    if config.min_events > config.max_events:
        raise ConfigError(f"min_events: {config.min_events} is above max_events {config.max_events}; lower it")
    catalogue = _catalogue(config)
    simulation = Simulation(config, catalogue, *generate(config, catalogue))
    require_folder(out, "out")
    with atomic_dir(out, _STATES) as folder:
        _write(simulation, folder)
    return simulation


def open_simulation(folder: str | Path) -> Simulation:
    """Read a folder that `simulate` wrote, for the oracle.

    Raises:
        ConfigError: the folder is not one.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    if not (folder / _STATES).is_file():
        raise ConfigError(f"{folder}: holds no simulation; write one with simulate(config, folder)")
    config = load_config(SimulatorConfig, folder / "config.yaml")
    catalogue = _catalogue(config)
    events = pq.read_table(folder / "events.parquet")
    truth = pq.read_table(folder / "truth" / "outcomes.parquet")
    rows = {int(id_): row for row, id_ in enumerate(catalogue.ids)}
    numbers = {
        name: table[name].to_numpy().astype(np.float32)
        for table, names in ((events, _OUTCOMES), (truth, _PROBABILITIES))
        for name in names
    }
    log = Log(
        user=np.array([int(user[len("user-") :]) for user in events["user"].to_pylist()]),
        item=np.array([rows[item] for item in events["item"].to_pylist()]),
        time_ms=events["time"].to_numpy(),
        device=np.array([DEVICES.index(name) for name in events["device"].to_pylist()]),
        **numbers,
    )
    with np.load(folder / _STATES, allow_pickle=False) as arrays:
        valid, test = (State(*(arrays[f"{part}_{f.name}"] for f in fields(State))) for part in ("valid", "test"))
    return Simulation(config, catalogue, log, valid, test)


def _catalogue(config: SimulatorConfig) -> Catalogue:
    rng = np.random.Generator(np.random.PCG64([config.seed, 0]))
    return make_catalogue(
        rng, config.n_items, config.n_categories, config.series_length,
        config.latent_dim, config.content_dim, config.content_noise, config.popularity_scale,
    )  # fmt: skip


def _write(simulation: Simulation, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    log, catalogue = simulation.log, simulation.catalogue
    users = pa.array(simulation.user_ids)
    events = {
        "user": users.take(pa.array(log.user)),
        "item": catalogue.ids[log.item],
        "time": log.time_ms,
        "device": pa.array(DEVICES).take(pa.array(log.device)),
        "click": log.click.astype(np.int8),
        "like": log.like.astype(np.int8),
        "watch_seconds": log.watch_seconds,
    }
    items = {
        "item": catalogue.ids,
        "category": catalogue.category,
        "title": catalogue.titles,
        "embedding": pa.array(list(catalogue.content), type=pa.list_(pa.float32())),
    }
    truth = folder / "truth"
    truth.mkdir()
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table(items), folder / "items.parquet")
    probabilities = {name: getattr(log, name) for name in _PROBABILITIES}
    pq.write_table(pa.table(probabilities), truth / "outcomes.parquet")
    states = {
        f"{part}_{f.name}": getattr(state, f.name) for part, state in simulation.states.items() for f in fields(State)
    }
    np.savez(folder / _STATES, **states)
    (folder / "config.yaml").write_text(dump_config(simulation.config), encoding="utf-8")
