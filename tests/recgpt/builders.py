"""Small models, logs and events for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recgpt.api import RecGPT
from recgpt.data.events import Events
from recgpt.data.hashing import hash_ids
from recgpt.data.items import ItemTable
from recgpt.data.schema import DataSchema
from recgpt.model import EventModel, ModelConfig
from recgpt.ranker import Ranker, ScoreConfig
from recgpt.ranking.network import HeadsConfig, RankingNetwork

N_ITEMS = 40


def schema(**changes: Any) -> DataSchema:
    """A log with a clock, two outcomes, two context columns, a static feature and content vectors."""
    values = {
        "user": "user",
        "item": "item",
        "time": "time",
        "time_unit": "s",
        "outcomes": {"click": "binary", "seconds": "watch_time"},
        "context": {"device": "categorical", "volume": "numeric"},
        "features": {"brand": "categorical", "tags": "categories"},
        "profile": {"country": "categorical", "age": "numeric"},
        "content_dim": 6,
        "has_time": True,
        "has_category": True,
    }
    return DataSchema.model_validate(values | changes)


def items(n: int = N_ITEMS, untrained: int = 0, seed: int = 0) -> ItemTable:
    """Items 0 .. n - 1; the last `untrained` have no training event."""
    rng = np.random.default_rng(seed)
    ids = list(range(n))
    trained = np.arange(n) < n - untrained
    return ItemTable(
        ids=pa.array(ids, pa.int64()),
        hash=hash_ids(ids),
        n_events=np.full(n, 3),
        n_train_events=np.where(trained, 2, 0),
        valid_candidate=np.ones(n, bool),
        test_candidate=np.ones(n, bool),
        category=hash_ids([f"category {i % 5}" for i in ids]),
        title=[f"item {i}" for i in ids],
        features={"brand": hash_ids([f"brand {i % 7}" for i in ids]), "tags": tags(n)},
        embedding=rng.normal(size=(n, 6)).astype(np.float32),
    )


def tags(n: int) -> NDArray[np.int64]:
    """Three, two, one or no tags of n items, int64 [n, 3]."""
    found = hash_ids([f"tag {(i + place * (1 + i % 3)) % 5}" for i in range(n) for place in range(3)]).reshape(n, 3)
    return np.where(np.arange(3) < 3 - np.arange(n)[:, None] % 4, found, 0)


def recgpt(seed: int = 0, untrained: int = 0, log: DataSchema | None = None, **changes: Any) -> RecGPT:
    """An untrained model with weights far from their quiet start, so that every part matters."""
    log = schema() if log is None else log
    small = {"dim": 16, "layers": 2, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}}
    torch.manual_seed(seed)
    model = EventModel(ModelConfig.model_validate(small | changes), log, items(untrained=untrained).trained)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return RecGPT(model, items(untrained=untrained))


def ranker(seed: int = 0, untrained: int = 0, behaviour: str = "din", **score: Any) -> Ranker:
    """An untrained ranker of outcomes `click` and `like` over `recgpt`, with weights far from their quiet start."""
    events = recgpt(seed, untrained)
    heads = HeadsConfig.model_validate(
        {"behaviour": behaviour, "attention": 6, "features": 4, "id_rows": 53, "hidden": [12, 8]}
    )
    torch.manual_seed(seed + 1)
    network = RankingNetwork(heads, events.schema, events.config.dim, ("click", "like"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Ranker(events, network, heads, ScoreConfig.model_validate(score))


def columns(n: int, seed: int = 0) -> dict[str, Any]:
    """n random events as a caller would give them, some of their values unknown."""
    rng = np.random.default_rng(seed)
    return {
        "item": rng.integers(0, N_ITEMS, n).tolist(),
        "time": np.sort(rng.integers(1_600_000_000, 1_600_900_000, n)).tolist(),
        "click": [None if rng.random() < 0.2 else int(rng.random() < 0.5) for _ in range(n)],
        "seconds": [None if rng.random() < 0.2 else float(rng.exponential(30)) for _ in range(n)],
        "device": [None if rng.random() < 0.2 else ["phone", "tablet"][rng.integers(2)] for _ in range(n)],
        "volume": [None if rng.random() < 0.2 else float(rng.normal()) for _ in range(n)],
    }


def cut(table: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Rows start .. stop - 1 of a dict of columns."""
    return {name: column[start:stop] for name, column in table.items()}


def events(n: int, seed: int = 0) -> Events:
    """n random events, read."""
    return recgpt().events(columns(n, seed))


def write_log(folder: Path, lengths: list[int], seed: int = 0, n_items: int = N_ITEMS) -> dict[str, Any]:
    """A random log of one user per length, and its `data` section."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    user = np.repeat([f"user {i}" for i in range(len(lengths))], lengths)
    table = pa.table(
        {
            "user": user.tolist(),
            "item": rng.integers(0, n_items, total),
            "time": 1_600_000_000 + np.concatenate([np.sort(rng.integers(0, 10**6, n)) for n in lengths]),
            "click": [None if rng.random() < 0.2 else int(rng.random() < 0.5) for _ in range(total)],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "events.parquet")
    return {
        "events": str(folder / "events.parquet"),
        "user": "user",
        "item": "item",
        "time": "time",
        "outcomes": {"click": {"kind": "binary"}},
        "prepared": str(folder / "prepared"),
    }
