"""Batch export of user and item vectors to Parquet, part by part, so that a killed export goes on where it stopped.

And of the item index, which is made in one piece.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recgpt.api import InferencePrecision, RecGPT, inference_dtype
from recgpt.config import read_config
from recgpt.data.events import NO_TIME, Events
from recgpt.data.schema import time_point
from recgpt.errors import ConfigError
from recgpt.files import atomic_write_bytes, remove_leftovers, write_json
from recgpt.index import MANIFEST, QUERIES, IndexChoice, import_faiss, write_index
from recgpt.progress import Told, progress_bar
from recgpt.runs import TrainedRun, user_blocks
from recgpt.state import last_time

PART = 8192  # users or items of one file
STARTED = "started.json"


def export(
    run: str | Path,
    out: str | Path,
    users: bool = True,
    items: bool = True,
    as_of: int | str | None = None,
    index: IndexChoice | None = None,
    precision: InferencePrecision = "fp32",
    want: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `users/part-*.parquet`, `items/part-*.parquet`, the index and, last, `manifest.json`.

    The dot product of a user's and an item's embedding is the score that `recommend` ranks by, asked for `want`.

    Args:
        run: a run folder.
        out: the folder to write; whole parts of the same export that are there already are kept.
        users: write (user, embedding, last_time, n_events).
        items: write (item, embedding, n_events).
        as_of: leave out events at or after this moment (ISO date, or an integer in the log's time unit).
        index: write `index.faiss` and `index_ids.parquet` (row, item): `flat`, `hnsw`, or `auto` by the number of
            items; see `recgpt.index`.
        precision: of the products that make the users' vectors; `bf16` is about 1e-2 from `fp32`.
        want: outcomes that the users' vectors ask the items for; see `RecGPT.query`.

    Returns:
        The manifest.

    Raises:
        ConfigError: `out` holds another export, faiss is missing, or the model cannot be asked for `want`.
    """
    _check_asked(users, index, precision, want)
    trained, out = TrainedRun.open(run), Path(out)
    embed = _Embedding(trained.model, inference_dtype(precision), trained.model.asked(want))
    moment = _moment(trained, as_of)
    head = {
        "model": trained.model.fingerprint,
        "log": trained.prepared.content,
        "dim": trained.model.config.dim,
        "users": users,
        "items": items,
        "as_of": moment,
        "part": PART,
        "index_kind": index,
        "precision": precision,
        "want": embed.want,
    }
    finished = _claim(out, head)
    if finished is not None:
        return finished
    manifest = (
        head | _write(trained, out, head, embed) | {"written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    )
    write_json(out / MANIFEST, manifest)
    (out / STARTED).unlink()
    return manifest


@dataclass(frozen=True)
class _Embedding:
    """How users become vectors."""

    model: RecGPT
    dtype: torch.dtype = torch.float32
    want: dict[str, float] = field(default_factory=dict)

    def __call__(self, histories: list[Events]) -> np.ndarray:
        return self.model.embed_users(histories, self.dtype, self.want).numpy()


def _check_asked(
    users: bool, index: IndexChoice | None, precision: InferencePrecision, want: Mapping[str, Any] | None
) -> None:
    """Tell what cannot be had before the hours of work."""
    for name, given in (("precision", precision if precision != "fp32" else None), ("want", want)):
        if given and not users:
            raise ConfigError(f"{name}: {given} is of users' vectors, and none are asked for; leave it out")
    inference_dtype(precision)
    if index is not None:
        import_faiss()


def _moment(trained: TrainedRun, as_of: int | str | None) -> int | None:
    """Microseconds since 1970 UTC."""
    if as_of is None:
        return None
    if not trained.model.schema.has_time:
        raise ConfigError("--as-of: this log has no clock (data.time); leave it out")
    if isinstance(as_of, str) and as_of.lstrip("-").isdecimal():
        as_of = int(as_of)
    return time_point(as_of, trained.model.schema.time_unit)


def _claim(out: Path, head: dict[str, Any]) -> dict[str, Any] | None:
    """Begin an export or go on with it; the manifest if it is finished. Two exports are never mixed.

    Raises:
        ConfigError: `out` is a file, holds another export, or holds what is no export.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file; name a folder")
    for name in (MANIFEST, STARTED):
        if (out / name).is_file():
            there = {"precision": "fp32", "want": {}} | read_config(out / name)
            differing = [key for key in head if there.get(key) != head[key]]
            if differing:
                key = differing[0]
                raise ConfigError(
                    f"{out}: holds another export ({key}: {there.get(key)} there, {head[key]} here); "
                    "choose another --out or remove it"
                )
            if name == MANIFEST:
                return there
    if out.is_dir() and any(out.iterdir()) and not (out / STARTED).is_file():
        raise ConfigError(f"{out}: is not empty and holds no export; choose another --out")
    write_json(out / STARTED, head)
    for folder in (out, out / "users", out / "items"):
        remove_leftovers(folder)
    return None


def _write_part(path: Path, columns: dict[str, Any]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    atomic_write_bytes(path, sink.getvalue().to_pybytes())


def _embeddings(vectors: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.ListArray.from_arrays(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1], flat)


def _write(trained: TrainedRun, out: Path, head: dict[str, Any], embed: _Embedding) -> dict[str, Any]:
    """Write what the head of the manifest tells, as far as it is not there; its counts."""
    counts: dict[str, Any] = {}
    with progress_bar() as told:
        if head["items"]:
            counts["n_items"] = _export_items(trained, out / "items")
        if head["users"]:
            counts["n_users"] = _export_users(trained, out / "users", head["as_of"], embed, told)
        if head["index_kind"] is not None:
            told("building the index", 0, 0)
            counts["index"] = write_index(out, trained.model, head["index_kind"], _some_users(trained, embed))
    return counts


def _export_items(trained: TrainedRun, folder: Path) -> int:
    table, vectors = trained.model.items, trained.model.catalogue.numpy()
    for part, first in enumerate(range(0, len(table), PART)):
        path = folder / f"part-{part:05d}.parquet"
        if not path.exists():
            rows = slice(first, first + PART)
            _write_part(
                path,
                {"item": table.ids[rows], "embedding": _embeddings(vectors[rows]), "n_events": table.n_events[rows]},
            )
    return len(table)


def _export_users(trained: TrainedRun, folder: Path, moment: int | None, embed: _Embedding, told: Told) -> int:
    prepared = trained.prepared
    lengths = prepared.users.n_events if moment is None else _events_before(trained, moment, told)
    for part, first in enumerate(range(0, prepared.n_users, PART)):
        path = folder / f"part-{part:05d}.parquet"
        if path.exists():
            continue
        told("embedding users", first, prepared.n_users)
        rows = np.arange(first, min(first + PART, prepared.n_users))
        vectors, times = [], []
        for _, histories, _ in user_blocks(prepared, rows, lengths[rows], PART):
            vectors.append(embed(histories))
            times += [None if (time := last_time(history)) == NO_TIME else time for history in histories]
        _write_part(
            path,
            {
                "user": pa.array(prepared.user_ids(rows)),
                "embedding": _embeddings(np.concatenate(vectors)),
                "last_time": pa.array(times, pa.timestamp("us", "UTC")),
                "n_events": lengths[rows],
            },
        )
    return prepared.n_users


def _some_users(trained: TrainedRun, embed: _Embedding) -> np.ndarray:
    """Embeddings of users spread over the log, float32 [Q, D]: what an index will be asked."""
    prepared = trained.prepared
    n = min(QUERIES, prepared.n_users)
    rows = np.unique(np.linspace(0, prepared.n_users - 1, n).astype(np.int64)) if n else np.zeros(0, np.int64)
    blocks = user_blocks(prepared, rows, prepared.users.n_events[rows], 1)  # one by one: a block reads all between
    histories = [history for _, block, _ in blocks for history in block]
    return embed(histories)


def _events_before(trained: TrainedRun, moment: int, told: Told) -> np.ndarray:
    """How many events of each user come before a moment, by the newest known time so far."""
    prepared = trained.prepared
    counts = np.zeros(prepared.n_users, np.int64)
    rows = np.arange(prepared.n_users)
    for block, histories, _ in user_blocks(prepared, rows, prepared.users.n_events, PART):
        told("events before the moment", int(block[0]), prepared.n_users)
        for row, history in zip(block, histories, strict=True):
            late: Any = np.flatnonzero(np.maximum.accumulate(history.time) >= moment) if len(history) else []
            counts[row] = late[0] if len(late) else len(history)
    return counts
