"""Seconds of `prepare` beside DuckDB's own ORDER BY of the same columns to Parquet, under the same memory limit.

The log is random (users by a power law, as many items as a hundredth of the events, times, one outcome, one category),
in no order. Both run in processes of their own, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from benchmarks.process import printed


def write_log(path: Path, events: int) -> None:
    """The log, by DuckDB: its size is no matter of this process's memory."""
    users, items = max(1, events // 100), max(1, events // 100)
    duckdb.execute("SET threads = 2; SELECT setseed(.5)")
    duckdb.execute(
        f"COPY (SELECT cast({users} * random() ** 2 AS BIGINT) AS user, cast({items} ** random() AS BIGINT) AS item,"
        " cast(1600000000 + 100000000 * random() AS BIGINT) AS time, cast(random() < .3 AS TINYINT) AS click,"
        f" cast(8 * random() AS TINYINT) AS device FROM range({events})) TO '{path}' (FORMAT parquet)"
    )


def prepare(log: Path, folder: Path, memory: str) -> float:
    """Seconds of recgpt's `prepare`, its libraries loaded before the clock starts, as the peer's are."""
    import ibis

    from recgpt.data.prepare import prepare

    ibis.duckdb.connect().disconnect()
    outcomes, context = {"click": {"kind": "binary"}}, {"device": {"kind": "categorical"}}
    columns = {"user": "user", "item": "item", "time": "time", "outcomes": outcomes, "context": context}
    config = {"events": str(log), **columns, "memory_limit": memory, "prepared": str(folder / "prepared")}
    started = time.perf_counter()
    prepare({"data": config})
    return time.perf_counter() - started


def order_by(log: Path, folder: Path, memory: str) -> float:
    """Seconds of DuckDB's sort to a file."""
    started = time.perf_counter()
    connection = duckdb.connect(config={"memory_limit": memory, "threads": 2, "temp_directory": str(folder)})
    connection.execute(
        f"COPY (SELECT * FROM '{log}' ORDER BY user, time, item) TO '{folder / 'sorted.parquet'}' (FORMAT parquet)"
    )
    return time.perf_counter() - started


def main() -> None:
    """Measure in turn; a line each on stderr, medians and the ratio as one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare_speed", description=__doc__)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--memory", default="2GB", help="memory_limit of both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where there is room for some 5 times the log (default: /tmp)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, log = arguments.one
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            work = {"recgpt": prepare, "duckdb": order_by}[name]
            print(json.dumps(work(Path(log), Path(folder), arguments.memory)))
        return
    found: dict[str, list[float]] = {"recgpt": [], "duckdb": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        log = Path(folder) / "events.parquet"
        write_log(log, arguments.events)
        for _ in range(arguments.repeats):
            for name, seconds in found.items():
                words = ["benchmarks.prepare_speed", "--one", name, log, "--memory", arguments.memory]
                seconds.append(printed([*words, "--folder", folder]))
                print(f"{name}: {seconds[-1]:.1f} s", file=sys.stderr)
    ratios = [a / b for a, b in zip(found["recgpt"], found["duckdb"], strict=True)]
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(json.dumps({"events": arguments.events, "seconds": medians, "ratio": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
