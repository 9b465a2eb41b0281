"""Milliseconds of building user states: `encode` from scratch, `append` of one event, `encode_many` a user."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median wall milliseconds of a call, one warm-up left out."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    """Measure an untrained model of the given size."""
    import torch

    from recgpt.api import RecGPT
    from recgpt.data.hashing import hash_ids
    from recgpt.data.items import ItemTable
    from recgpt.data.schema import DataSchema
    from recgpt.model import EventModel, ModelConfig

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ids, one = np.arange(10_000), np.ones(10_000, np.int64)
    flags = np.ones(10_000, bool)
    items = ItemTable(pa.array(ids), hash_ids(ids), one, one, flags, flags, np.zeros(10_000, np.int64))
    sizes = {"dim": arguments.dim, "layers": arguments.layers, "window": {"length": arguments.window}}
    model = RecGPT(
        EventModel(ModelConfig.model_validate(sizes), DataSchema(user="user", item="item", time=None, time_unit="s")),
        items,
    )
    rng, rows = np.random.default_rng(0), []
    for n in (0, 50, 200, 768):
        events = {"item": rng.integers(0, 10_000, n)}
        state, many = model.encode(events), [events] * 64
        rows.append(
            {
                "events": n,
                "encode_ms": median_ms(lambda events=events: model.encode(events), 20),
                "append_one_ms": median_ms(lambda state=state: model.append(state, {"item": [7]}), 20),
                "encode_many_ms_a_user": median_ms(lambda many=many: model.encode_many(many), 3) / 64,
                "bytes": len(state.to_bytes()),
            }
        )
    print(json.dumps(vars(arguments) | {"states": rows}))


if __name__ == "__main__":
    main()
