"""Milliseconds of ranking 1,000 candidates for a user: from the cached state, and encoding the user first.

In the process and over HTTP (one client, one connection): a user whose state is kept, one with a new event, and a
request that brings the user's history along, which is what a service without states does each time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

N_ITEMS = 10_000


def in_turn_ms(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall milliseconds of several calls, made in turn, the first two rounds left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(found[2:]) for name, found in times.items()}


def untrained(arguments: argparse.Namespace) -> Any:
    """A ranker of the given size with two outcomes."""
    from recgpt.api import RecGPT
    from recgpt.data.hashing import hash_ids
    from recgpt.data.items import ItemTable
    from recgpt.data.schema import DataSchema
    from recgpt.model import EventModel, ModelConfig
    from recgpt.ranker import Ranker, ScoreConfig
    from recgpt.ranking.network import HeadsConfig, RankingNetwork

    ids, one, flags = np.arange(N_ITEMS), np.ones(N_ITEMS, np.int64), np.ones(N_ITEMS, bool)
    items = ItemTable(pa.array(ids), hash_ids(ids), one, one, flags, flags, np.zeros(N_ITEMS, np.int64))
    schema = DataSchema(time="time", has_time=True, outcomes={"click": "binary", "like": "binary"})
    sizes = {"dim": arguments.dim, "layers": arguments.layers, "window": {"length": arguments.window}}
    heads = HeadsConfig(behaviour=arguments.head)
    network = RankingNetwork(heads, schema, arguments.dim, ["click", "like"])
    return Ranker(RecGPT(EventModel(ModelConfig.model_validate(sizes), schema), items), network, heads, ScoreConfig())


def in_process(ranker: Any, table: dict[str, list], ids: list[int], repeats: int) -> dict[str, float]:
    """The library's own calls."""
    state = ranker.recgpt.encode(table)
    newest = {"item": [7], "time": [table["time"][-1]]}
    calls = {
        "cached": lambda: ranker.rank(state, ids),
        "append": lambda: ranker.rank(ranker.recgpt.append(state, newest), ids),
        "encode": lambda: ranker.rank(ranker.recgpt.encode(table), ids),
    }
    found = in_turn_ms(calls, repeats)
    return found | {"encode_to_cached": found["encode"] / found["cached"]}


def over_http(url: str, table: dict[str, list], ids: list[int], repeats: int) -> dict[str, float]:
    """Requests to a running service, the answers' bodies read and parsed."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    rows = [{"item": i, "time": t} for i, t in zip(table["item"], table["time"], strict=True)]
    user, newest = f"of {len(rows)} events", iter(range(10**9))

    def post(path: str, body: dict[str, Any], source: str = "") -> None:
        connection.request("POST", path, json.dumps(body))
        answer = json.load(connection.getresponse())
        if source and answer["state"]["source"] != source:
            raise RuntimeError(f"expected a state by {source}, got {answer}")

    def grow() -> None:
        post("/v1/events", {"events": [{"user": user, "item": 7, "time": rows[-1]["time"] + next(newest)}]})

    post("/v1/events", {"events": [row | {"user": user} for row in rows]})
    post("/v1/rank", {"user": user, "items": ids}, "rebuild")
    calls = {
        "cached": lambda: post("/v1/rank", {"user": user, "items": ids}, "hit"),
        "post_one_event": grow,
        "append": lambda: post("/v1/rank", {"user": user, "items": ids}, "append"),
        "inline": lambda: post("/v1/rank", {"history": rows, "items": ids}, "inline"),
    }
    found = in_turn_ms(calls, repeats)
    connection.close()
    return found | {"inline_to_cached": found["inline"] / found["cached"]}


def main() -> None:
    """Measure an untrained ranker of the given size."""
    import torch

    from recgpt.stages import load_stage

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--head", choices=("pool", "din"), default="din")
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ranker, rng = untrained(arguments), np.random.default_rng(0)
    ids = rng.choice(N_ITEMS, arguments.candidates, replace=False).tolist()
    load_stage("serve")
    from recgpt.serve.main import serving

    users = []
    with tempfile.TemporaryDirectory() as folder:
        ranker.save_pretrained(Path(folder) / "model")
        with serving(folder, [f"serve.threads={arguments.threads}"]) as url:
            for n in (200, 768):
                times = (1_600_000_000 + np.sort(rng.integers(0, 10**7, n))).tolist()
                table = {"item": rng.integers(0, N_ITEMS, n).tolist(), "time": times}
                measured = {"events": n, "in_process": in_process(ranker, table, ids, arguments.repeats)}
                users.append(measured | {"over_http": over_http(url, table, ids, arguments.repeats)})
    print(json.dumps(vars(arguments) | {"milliseconds": users}))


if __name__ == "__main__":
    main()
