"""How training speed and memory grow with the window, the catalogue and the batch: `docs/performance.md` shows it.

One thing at a time, from one shape (window 200, 10,000 items, batches of 12,800 padded events; dim 64, 2 layers, 2
heads; a random log). Every measurement is a process of its own; what is measured already stays in the results' file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.process import ROOT, printed
from benchmarks.steps import Steps, peak, prepared_alone, random_log, targets
from benchmarks.svg import svg
from recgpt.files import atomic_write_text, write_json

RESULTS, PICTURE = ROOT / "benchmarks" / "growth.json", ROOT / "docs" / "growth.svg"
BASE = {"length": 200, "items": 10_000, "batch": 12_800}
GROWN = {
    "length": [50, 100, 200, 500, 1000, 2000],
    "items": [10**3, 10**4, 10**5, 10**6, 10**7],
    "batch": [1600, 3200, 6400, 12_800, 25_600, 51_200],
}
LABELS = {"length": "window (events)", "items": "items in the catalogue", "batch": "padded events of a batch"}
EVENTS = 600_000
"""Of the log; a larger catalogue has two for each item, so that every one occurs."""


def measure(length: int, items: int, batch: int, seconds: float) -> dict[str, float]:
    """Events per second and peak MiB beyond the imports and the prepared log."""
    window = {"length": length, "stride": length // 2, "chunk": max(1, length // 10)}
    users = max(8, max(EVENTS, 2 * items) // length)
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "data": random_log(Path(folder), np.full(users, length), items),
            "model": {"dim": 64, "layers": 2, "heads": 2, "window": window, "id": {"rows": 16_384}},
            "optim": {"batch_tokens": batch},
            "run": {"steps": 1},
        }
        prepared_alone(config)
        steps = Steps.of(config, [])
        wall, _ = steps.timed(seconds, targets)
        return {"events_per_second": wall, "peak_mib": peak() - steps.imported, "items": steps.n_items}


def shapes() -> list[dict[str, int]]:
    """Each distinct shape once."""
    every = [BASE | {name: value} for name, values in GROWN.items() for value in values]
    return list({json.dumps(shape): shape for shape in every}.values())


def short(number: int) -> str:
    """1,600 as 1.6k."""
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def picture(found: dict[str, dict[str, float]]) -> str:
    """Two rows (speed, memory) and a column for each thing that grows, as SVG."""
    return svg("growth", (9, 4.6), lambda figure: _draw(figure, found), "constrained")


def _draw(figure: Any, found: dict[str, dict[str, float]]) -> None:
    grid = figure.subplots(2, len(GROWN), sharey="row")
    rows = (("events_per_second", "events per second", 1.0), ("peak_mib", "peak memory (GiB)", 1 / 1024))
    for row, (key, label, scale) in enumerate(rows):
        for column, (name, values) in enumerate(GROWN.items()):
            axes = grid[row, column]
            there = [value for value in values if json.dumps(BASE | {name: value}) in found]
            heights = [found[json.dumps(BASE | {name: value})][key] * scale for value in there]
            axes.plot(there, heights, marker="o", markersize=4, color="#0f5f9c")
            axes.set_xscale("log")
            axes.set_xticks(values, [short(value) for value in values])
            axes.set_xticks([], minor=True)
            axes.grid(color="#d0d7de", linewidth=0.6)
            axes.set_xlabel(LABELS[name] if row else "")
            axes.set_ylabel(label if column == 0 else "")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
    for axes in grid[:, 0]:  # a row has one scale, known when all is drawn
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")


def main() -> None:
    """Measure what is missing, then draw; the results as one JSON object on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="training time of one measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=list(GROWN), help="one thing that grows")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure(**arguments.one, seconds=arguments.seconds)))
        return
    found = json.loads(arguments.results.read_text("utf-8")) if arguments.results.is_file() else {}
    for shape in shapes():
        name = json.dumps(shape)
        wanted = arguments.only is None or shape[arguments.only] != BASE[arguments.only] or shape == BASE
        if name in found or not wanted:
            continue
        limits = ["--seconds", arguments.seconds, "--threads", arguments.threads]
        found[name] = printed(["benchmarks.growth", "--one", name, *limits])
        write_json(arguments.results, found)
        print(shape, {key: round(value) for key, value in found[name].items()}, file=sys.stderr)
    atomic_write_text(arguments.picture, picture(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
