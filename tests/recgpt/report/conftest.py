"""A small pretrained run and a fine-tuned one, on a log whose titles, ids and outcome names are hostile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.evaluation import evaluate
from recgpt.stages import load_stage

HOSTILE = (
    '<script>alert("x")</script>',
    "</title></style><img src=http://evil.example/x.png onerror=alert(1)>",
    "\"quotes\" & 'apostrophes'",
    "emoji \N{CLAPPER BOARD}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}",
    "\N{RIGHT-TO-LEFT OVERRIDE}live\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED}",
    "two\nlines",
    "{{ 7 * 7 }} `code` $x_1$ %s",
    "",
)
N_ITEMS = 40
OUTCOME = "<b>like&"


def write_log(folder: Path) -> dict[str, Any]:
    """60 users of 3 to 22 events, and their `data` section."""
    rng = np.random.default_rng(0)
    lengths = [3 + i % 20 for i in range(60)]
    n = sum(lengths)
    item = np.minimum(rng.geometric(0.08, n), N_ITEMS) - 1
    columns = {
        "user": np.repeat([f"<u>{i}&" for i in range(60)], lengths).tolist(),
        "item": [f"item '{i}'" for i in item],
        "time": 1_600_000_000 + np.concatenate([np.sort(rng.integers(0, 10**6, k)) for k in lengths]),
        "click": [None if rng.random() < 0.1 else int(rng.random() < 0.4 + 0.01 * i) for i in item],
        OUTCOME: (rng.random(n) < 0.05).astype(int),
        "seconds": rng.exponential(30, n),
    }
    names = {
        "item": [f"item '{i}'" for i in range(N_ITEMS)],
        "title": [HOSTILE[i % len(HOSTILE)] for i in range(N_ITEMS)],
        "category": [f"<i>category {i % 3}</i>" for i in range(N_ITEMS)],
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "events.parquet")
    pq.write_table(pa.table(names), folder / "items.parquet")
    return {
        "events": str(folder / "events.parquet"),
        "user": "user",
        "item": "item",
        "time": "time",
        "outcomes": {"click": {"kind": "binary"}, OUTCOME: {"kind": "binary"}, "seconds": {"kind": "watch_time"}},
        "items": {"path": str(folder / "items.parquet"), "id": "item", "title": "title", "category": "category"},
        "impressions": {"history": "online"},
        "prepared": str(folder / "prepared"),
    }


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluated pretrained run `first` and an evaluated fine-tuned run `heads`; not to be changed."""
    folder = tmp_path_factory.mktemp("report")
    data = write_log(folder / "log")
    model = {"dim": 16, "heads": 2, "id": {"rows": 97}, "window": {"length": 16, "stride": 8, "chunk": 4}}
    run = {"steps": 6, "log_every": 2, "evaluate_every": 3, "dir": str(folder / "first")}
    load_stage("pretrain")({"data": data, "model": model, "run": run})
    evaluate(folder / "first", "test")
    run |= {"dir": str(folder / "heads")}
    heads = {"data": data, "tasks": {"outcomes": ["click", OUTCOME]}, "run": run}
    load_stage("finetune")(heads, from_run=folder / "first")
    evaluate(folder / "heads", "test")
    return folder


@pytest.fixture
def first(trained: Path, tmp_path: Path) -> Path:
    """A copy of the pretrained run that a test may change."""
    return Path(shutil.copytree(trained / "first", tmp_path / "first"))


@pytest.fixture
def heads(trained: Path, tmp_path: Path) -> Path:
    """A copy of the fine-tuned run that a test may change."""
    return Path(shutil.copytree(trained / "heads", tmp_path / "heads"))
