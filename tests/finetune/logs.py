"""Small logs with impressions, and configs of tiny finetuning runs on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recgpt.config import load_config
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.data.schema import DataConfig
from recgpt.stages import load_stage

load_stage("finetune")

from recgpt.finetune.config import FinetuneConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.finetune.main import build, complete  # noqa: E402
from recgpt.finetune.task import FinetuneTask  # noqa: E402

N_ITEMS = 90
LENGTHS = [1, 2, 3, 5, 8, 13, 21, 34, 6, 17, 60, 9, 26, 12, 45, 30]
Columns = dict[str, list[Any]]


def random_log(lengths: list[int] = LENGTHS, seed: int = 0) -> Columns:
    """One user a length; equal orders, equal, unknown and backward times, exact copies, unknown outcomes.

    A copy has another `order` than its original and nothing else, as in real logs.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for user, length in enumerate(lengths):
        order, time = 0, 1_600_000_000 + int(rng.integers(0, 10**6))
        mine: list[dict[str, Any]] = []
        while len(mine) < length:
            order += 10 if rng.random() < 0.9 else 0
            time += int(rng.integers(0, 3) * rng.integers(1, 4000)) - (500 if rng.random() < 0.1 else 0)
            row = {
                "user": f"user {user}",
                "item": int(rng.integers(0, N_ITEMS)),
                "order": order,
                "time": None if rng.random() < 0.15 else time,
                "click": None if rng.random() < 0.15 else int(rng.random() < 0.5),
                "like": None if rng.random() < 0.3 else int(rng.random() < 0.3),
                "device": None if rng.random() < 0.2 else ["phone", "tablet", "car"][rng.integers(3)],
                "volume": None if rng.random() < 0.2 else float(rng.normal()),
                "shown": bool(rng.random() < 0.85),
            }
            mine.append(row)
            if rng.random() < 0.15 and len(mine) < length:
                mine.append(row | {"order": order + 1 + int(rng.integers(0, 8))})
        mine.sort(key=lambda row: row["order"])
        last = mine[-1]["order"]
        for row in mine:
            row["part"] = 0 if row["order"] <= 0.7 * last else 1 if row["order"] <= 0.85 * last else 2
        rows += mine
    return {name: [row[name] for row in rows] for name in rows[0]}


def write(folder: Path, log: Columns, profiles: bool = True, **data: Any) -> dict[str, Any]:
    """Write a log with its side tables; the `data` section."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(9)
    pq.write_table(pa.table(log), folder / "events.parquet")
    brands = {"item": list(range(N_ITEMS)), "brand": [None if i % 9 == 8 else f"brand {i % 4}" for i in range(N_ITEMS)]}
    pq.write_table(pa.table(brands), folder / "items.parquet")
    users = sorted(set(log["user"]))[1:]  # the first is not in the table
    ages = [None if rng.random() < 0.2 else float(rng.integers(18, 80)) for _ in users]
    countries = [["NL", "CN", None][i % 3] for i in range(len(users))]
    pq.write_table(pa.table({"user": users, "country": countries, "age": ages}), folder / "users.parquet")
    values: dict[str, Any] = {
        "events": str(folder / "events.parquet"),
        "user": "user",
        "item": "item",
        "order": "order",
        "time": "time",
        "outcomes": {"click": {"kind": "binary"}, "like": {"kind": "binary"}},
        "context": {"device": {"kind": "categorical"}, "volume": {"kind": "numeric"}},
        "items": {
            "path": str(folder / "items.parquet"),
            "id": "item",
            "features": {"brand": {"kind": "categorical"}},
        },
        "split": {"kind": "column", "column": "part", "valid": [1], "test": [2]},
        "impressions": {"where": "shown"},
        "prepared": str(folder / "prepared"),
    }
    if profiles:
        features = {"country": {"kind": "categorical"}, "age": {"kind": "numeric"}}
        values["users"] = {"path": str(folder / "users.parquet"), "id": "user", "features": features}
    return values | data


def prepared_log(folder: Path, log: Columns, **data: Any) -> Prepared:
    """The log, prepared."""
    return prepare(DataConfig.model_validate(write(folder, log, **data)), progress=False)


def merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the second's values over the first's."""
    both = dict(a)
    for name, value in b.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def settings(data: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """A config of a tiny run: 12 steps in float32 unless told otherwise."""
    values: dict[str, Any] = {
        "data": data,
        "model": {
            "dim": 16,
            "layers": 1,
            "heads": 2,
            "id": {"rows": 97},
            "window": {"length": 16, "stride": 8, "chunk": 4},
        },
        "heads": {"attention": 6, "features": 4, "id_rows": 53, "hidden": [12, 8]},
        "tasks": {"outcomes": ["click", "like"]},
        "optim": {"precision": "fp32", "lr": 0.01, "warmup_steps": 2, "batch_tokens": 40},
        "run": {"threads": 1, "evaluate_every": 0, "select": "last", "patience": None},
    }
    values = merged(values, sections)
    if not {"steps", "epochs", "minutes"} & set(values["run"]):
        values["run"]["steps"] = 12
    return values


def make_task(values: Mapping[str, Any], prepared: Prepared, start: Any = None, noise: float = 0.0) -> FinetuneTask:
    """The task as the stage builds it; `noise` moves every weight away from its quiet start."""
    import torch

    config = complete(load_config(FinetuneConfig, values), start)
    task = FinetuneTask(config, prepared, *build(config, prepared, start))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += noise * torch.randn_like(parameter)
    task.model.train()
    return task


def flipped(log: Columns, rows: Iterable[int], names: tuple[str, ...] = ("click", "like")) -> Columns:
    """The log with the outcomes of some rows swapped: 0 for 1 and 1 for 0, unknown ones too (to 1)."""
    changed = {name: list(column) for name, column in log.items()}
    for row in rows:
        for name in names:
            changed[name][row] = 1 if log[name][row] is None else 1 - log[name][row]
    return changed


def rows_of(log: Columns, name: str, *values: Any) -> list[int]:
    """The rows whose column has one of these values."""
    return [row for row, value in enumerate(log[name]) if value in values]
