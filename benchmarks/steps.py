"""What the training benchmarks share: the loop's own step on a config, a random log, memory."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.flop_counter import FlopCounterMode

from recgpt.config import load_config
from recgpt.data.prepare import prepare
from recgpt.model import EventModel
from recgpt.stages import load_stage
from recgpt.train.optim import build_optimizer, clip_gradients, gradient_norm

WARM_UP = 5
"""Steps that are not timed: they import and allocate."""


def settled() -> float:
    """MiB of this process in memory when what it has freed is given back; `peak` counts from here on (Linux)."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """MiB of this process in memory at most since `settled`."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["VmHWM"].split()[0]) / 1024


def random_log(folder: Path, lengths: np.ndarray, n_items: int) -> dict[str, Any]:
    """A log whose users have so many training events, and its `data` section.

    Every item has an event where there are as many; the others are drawn by a power law (P(item) about 1 / item).
    """
    rng = np.random.default_rng(0)
    events = lengths + 2  # the last two of each user are for validation and test
    item = np.floor(n_items ** rng.random(events.sum())).astype(np.int64)
    once = min(n_items, len(item))
    item[rng.permutation(len(item))[:once]] = np.arange(once)
    columns = {"user": np.repeat(np.arange(len(events)), events), "item": item}
    pq.write_table(pa.table(columns), folder / "events.parquet")
    files = {"events": str(folder / "events.parquet"), "prepared": str(folder / "prepared")}
    return files | {"user": "user", "item": "item", "order": "row"}


def prepared_alone(config: str | dict[str, Any], overrides: Sequence[str] = ()) -> None:
    """Prepare a config's log in a process of its own, so that its memory is not the caller's."""
    script = (
        "import json, sys; from recgpt.data.prepare import prepare; config, words = json.loads(sys.argv[1]);"
        " prepare(config, overrides=words, progress=False)"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps([config, list(overrides)])], check=True)


@dataclass
class Steps:
    """A pretraining run that is stepped by hand.

    Attributes:
        batches: its batches, epoch after epoch, without an end.
        step: forward, backward and update for one batch.
        device: where it computes.
        n_items: items of the prepared log.
        imported: MiB of the process after the imports, before the log was opened; `peak` counts from then. What
            `prepare` takes is not in it where the log was prepared before.
    """

    batches: Iterator[Any]
    step: Callable[[Any], None]
    device: torch.device
    n_items: int
    imported: float

    @classmethod
    def of(cls, config: str | dict[str, Any], overrides: list[str]) -> Steps:
        """Those of a pretraining config."""
        load_stage("pretrain")
        from recgpt.pretrain.config import PretrainConfig  # type: ignore[import-not-found]
        from recgpt.pretrain.task import PretrainTask  # type: ignore[import-not-found]

        read = load_config(PretrainConfig, config, overrides)
        imported = settled()
        prepared = prepare(read.data, progress=False)
        torch.manual_seed(0)
        task = PretrainTask(read, prepared, EventModel(read.model, prepared.schema, prepared.items.trained))
        optimizer = build_optimizer(task.model, read.optim)
        task.model.train()

        def step(batch: Any) -> None:
            optimizer.zero_grad(set_to_none=True)
            task.step(batch).loss.backward()
            clip_gradients(optimizer, float(gradient_norm(optimizer)), read.optim.clip_norm)
            optimizer.step()

        return cls(_endless(task.batches), step, task.device, prepared.n_items, imported)

    def timed(self, seconds: float, count: Callable[[Any], int]) -> tuple[float, float]:
        """What `count` counts in batches, a second of wall-clock and of process time."""
        for _ in range(WARM_UP):
            self.step(next(self.batches))
        wait(self.device)
        done, started, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            batch = next(self.batches)
            self.step(batch)
            done += count(batch)
        wait(self.device)
        return done / (time.perf_counter() - started), done / (time.process_time() - used)

    def flops(self, count: Callable[[Any], int], steps: int = 10) -> float:
        """FLOPs of matrix products for each of what `count` counts."""
        counted = 0
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                batch = next(self.batches)
                self.step(batch)
                counted += count(batch)
        return counter.get_total_flops() / counted


def _endless(batches: Callable[[int, int], Iterator[Any]]) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from batches(epoch, 0)
        epoch += 1


def targets(batch: Any) -> int:
    """Targets of a batch."""
    return len(batch.target)


def tokens(batch: Any) -> int:
    """Real events and first tokens of a batch."""
    return int(batch.length.sum()) + len(batch.length)


def matrix_rate(device: torch.device) -> float:
    """FLOPs a second of the best bfloat16 product of square matrices."""
    best = 0.0
    for n in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(6):
            wait(device)
            started = time.perf_counter()
            a @ b
            wait(device)
            best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
